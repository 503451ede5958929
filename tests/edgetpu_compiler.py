"""A stand-in for the vendor's compiler: its flags, its report's wording, its files, and its ways to fail.

It keeps parameters by balancer's own cost model, changed as `Behaviour` says, so that tests decide what the truth is.
`install` writes a program that behaves in one way; run as a script, this file is that program. `InProcess` does without a
program, which takes a hundredth of the time.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from flatbuffers import flexbuffers

from balancer.compiler import find_compiler
from balancer.compiler.report import MAPPED
from balancer.compiler.running import FinishedRun
from balancer.cost.activation_sizes import Measure, activation_size
from balancer.cost.hardware import load_hardware
from balancer.cost.profile import OpCosts, Profile
from balancer.cost.segment import SegmentCosts
from balancer.ground.opsets import members
from balancer.tflite import flatbuffer
from balancer.tflite.cut import Cutter
from balancer.tflite.decoding import decode_model
from balancer.tflite.flatbuffer import Table
from balancer.tflite.model import EDGETPU_CUSTOM_OP, IDENTIFIER
from balancer.tflite.package import is_compiled, read_package
from balancer.tflite.schema import schema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.compiler import Compiler

VERSION = "16.0.384591198"
_VERSION_LINE = "Edge TPU Compiler version"
NOTICE = (
    "Model successfully compiled but not all operations are supported by the Edge TPU. A percentage of the model will "
    "instead run on the CPU, which is slower. If possible, consider updating your model to use only operations supported "
    "by the Edge TPU. For details, visit g.co/coral/model-reqs."
)


@dataclass
class Behaviour:
    """What the program does, by name of the file without ending; "*" is every file.

    fails: printed, exit code 1. hangs, crashes. flaky: fails the first time. silent: exit code 0 and no file. garbage: a
    file that is none. real: a file given out as the compiled one; plain: the source itself. runnable: behind what was
    compiled stands the source, for pretended Edge TPUs to run. room_*, bytes_per_million, on_cpu (output tensor ->
    status): its truth, see `Profile`. most_live_bytes, most_bytes: it refuses models whose activations are larger, by one
    measure or the other (`cost.activation_sizes`). segmenter: "crash" with --num_segments. folder: where it is installed;
    `calls` there gets a line for each run. seconds: that a compilation takes.
    """

    version: str = VERSION
    room_per_million: int = 1_000_000
    room_more: int = 0
    room_most: int = 1 << 60
    bytes_per_million: int = 1_000_000
    on_cpu: dict[str, str] = field(default_factory=dict)
    fails: dict[str, str] = field(default_factory=dict)
    hangs: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)
    flaky: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    garbage: list[str] = field(default_factory=list)
    real: dict[str, str] = field(default_factory=dict)
    plain: bool = False
    runnable: bool = False
    most_live_bytes: int = 1 << 60
    most_bytes: int = 1 << 60
    segmenter: str = ""
    folder: str = ""
    seconds: float = 0.0


def install(folder: Path, **changes: Any) -> Path:
    """A program in the folder that behaves so."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "edgetpu_compiler"
    behaviour = folder / "behaviour.json"
    made = Behaviour(folder=str(folder), **changes)
    behaviour.write_text(json.dumps(asdict(made)))
    root = Path(__file__).resolve().parents[1]
    told = (
        f'[ "$*" = --version ] && echo "{_VERSION_LINE} {made.version}" && exit\n'  # most starts ask for nothing else
    )
    lines = f'#!/bin/sh\n{told}PYTHONPATH="{root}" "{sys.executable}" "{Path(__file__).resolve()}" "{behaviour}" "$@"\n'
    script.write_text(lines)
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script


def in_process(folder: Path, **changes: Any) -> Compiler:
    """The same as a compiler that runs in this process, one segment at a time. Crashes and hanging are not for it."""
    runner = InProcess(Behaviour(folder=str(folder), **changes))
    return find_compiler(install(folder, **changes), runner=runner, cache=folder / "cache", jobs=1)


@dataclass
class InProcess:
    """A `Runner` that calls `run` instead of a program."""

    behaviour: Behaviour

    def __call__(
        self, arguments: Sequence[str], folder: Path, seconds: float, *, each_try: bool = False
    ) -> FinishedRun:
        with redirect_stdout(StringIO()) as output:
            code = run(self.behaviour, arguments[1:], folder)
        return FinishedRun(code, output.getvalue())

    def stop(self) -> None:
        pass


def main(arguments: list[str]) -> int:
    return run(Behaviour(**json.loads(Path(arguments[0]).read_text())), arguments[1:], Path())


def run(behaviour: Behaviour, arguments: Sequence[str], folder: Path) -> int:
    """Compile as the arguments say, which name files in the folder. Returns the exit code."""
    parser = ArgumentParser()
    parser.add_argument("-o", "--out_dir", default=".")
    parser.add_argument("-s", "--show_operations", action="store_true")
    parser.add_argument("-n", "--num_segments", type=int, default=1)
    parser.add_argument("-d", "--search_delegate", action="store_true")
    parser.add_argument("-k", "--delegate_search_step", type=int, default=1)
    parser.add_argument("-t", "--timeout_sec", type=int, default=180)
    parser.add_argument("-m", "--min_runtime_version", type=int, default=14)
    parser.add_argument("-v", "--version", action="store_true")
    parser.add_argument("model", nargs="?")
    options = parser.parse_args(arguments)
    options.out_dir = folder / options.out_dir
    print(_VERSION_LINE, behaviour.version, flush=True)
    if options.version:
        return 0
    source = folder / options.model
    with (Path(behaviour.folder) / "calls").open("a") as calls:
        calls.write(f"{source.stem} {' '.join(arguments)}\n")
    if options.num_segments == 1:
        return compile_one(behaviour, options, source.stem, source.read_bytes(), source)
    if behaviour.segmenter == "crash":
        os.abort()
    return segment(behaviour, options, source)


def segment(behaviour: Behaviour, options: Namespace, source: Path) -> int:
    """`--num_segments`, by the parameter-count rule."""
    from balancer.planning.costed_model import open_costed_model
    from balancer.planning.ways import default_cuts

    costed = open_costed_model(source, "pcie")
    cutter, n = Cutter(costed.model.data), len(costed.graph.ops)
    edges = [0, *default_cuts(costed, options.num_segments), n]
    for i, (first, last) in enumerate(pairwise(edges)):
        path = Path(options.out_dir) / f"{source.stem}_segment_{i}_of_{options.num_segments}.tflite"
        path.write_bytes(cutter.cut((1 << last) - (1 << first)))
        code = compile_one(behaviour, options, path.stem, path.read_bytes(), path)
        if code:
            return code
    return 0


def applies(to: Any, name: str) -> bool:
    return "*" in to or name in to


def compile_one(behaviour: Behaviour, options: Namespace, name: str, data: bytes, source: Path) -> int:
    if options.search_delegate:
        print(f"Searching for valid delegate with step {options.delegate_search_step}")
        print(f"Try to compile segment with {len(decode_model(data, name).operators)} ops")
    print(f"Started a compilation timeout timer of {options.timeout_sec} seconds.", flush=True)
    time.sleep(behaviour.seconds)
    if applies(behaviour.hangs, name):
        subprocess.run(["sleep", "3600"], check=False)  # a child that outlives a killed wrapper
    if applies(behaviour.crashes, name):
        os.abort()
    marker = Path(behaviour.folder) / f"{name}.flaky"
    if applies(behaviour.flaky, name) and not marker.exists():
        marker.touch()
        print("\nInternal compiler error. Aborting! ")
        return 1
    if applies(behaviour.fails, name):
        print(behaviour.fails.get(name, behaviour.fails.get("*")))
        print("Compilation child process completed within timeout period.\nCompilation failed! ")
        return 1
    if applies(behaviour.silent, name):
        return 0
    out = Path(options.out_dir) / f"{name}_edgetpu.tflite"
    truth = Truth(behaviour, data)
    if truth.too_large:
        print("Compilation failed: Compilation failed due to large activation tensors in model.")
        print("Compilation child process completed within timeout period.\nCompilation failed! ")
        return 1
    made = (
        data if behaviour.plain else Path(behaviour.real[name]).read_bytes() if name in behaviour.real else truth.file()
    )
    if behaviour.runnable:
        made += data + len(data).to_bytes(8, "little")
    out.write_bytes(b"garbage" if applies(behaviour.garbage, name) else made)
    report(options, source, data, out, made, truth)
    return 0


class Truth:
    """What this compiler does with one model."""

    def __init__(self, behaviour: Behaviour, data: bytes) -> None:
        self.model = decode_model(data, "model")
        self.graph = Cutter(data).graph
        outputs = {op.index: self.graph.tensors[op.outputs[0]].name for op in self.graph.ops}
        ops = {i: OpCosts(mapped=False) for i, name in outputs.items() if name in behaviour.on_cpu}
        plain = SegmentCosts(self.graph, load_hardware("pcie"))
        scale = behaviour.bytes_per_million
        if scale != 1_000_000:
            sizes = ((i, op.layout.cached * scale // 1_000_000) for i, op in enumerate(plain.op_terms))
            ops |= {i: OpCosts(parameter_bytes=size, mapped=False if i in ops else None) for i, size in sizes}
        profile = Profile("truth", ops, behaviour.room_per_million, behaviour.room_more, behaviour.room_most)
        costs = SegmentCosts(self.graph, load_hardware("pcie"), profile)
        self.terms = costs.terms(self.graph.all_ops)
        limits = {Measure.MOST_LIVE: behaviour.most_live_bytes, Measure.IN_TOTAL: behaviour.most_bytes}
        self.too_large = any(
            activation_size(costs, self.graph.all_ops, measure) > limit for measure, limit in limits.items()
        )
        self.on_cpu = costs.on_cpu(self.graph.all_ops)
        self.status = {
            i: behaviour.on_cpu.get(name, "More than one subgraph is not supported") for i, name in outputs.items()
        }

    def file(self) -> bytes:
        """The model with its mapped ops replaced by one custom op that carries a package."""
        subgraph = self.model.subgraph
        cpu = [o for i, o in enumerate(self.model.operators) if self.on_cpu >> i & 1]
        if len(cpu) == len(self.model.operators):
            return flatbuffer.encode(self.model.root, identifier=IDENTIFIER, size_hint=1 << 16)
        tpu = [o for i, o in enumerate(self.model.operators) if not self.on_cpu >> i & 1]
        made = {int(t) for o in tpu for t in o["outputs"]}
        read = {int(t) for o in tpu for t in o["inputs"] if t >= 0 and not self.model.is_constant(int(t))}
        wanted = {int(t) for o in cpu for t in o["inputs"]} | {int(t) for t in subgraph["outputs"]}
        inputs, outputs = sorted(read - made), sorted(made & wanted)
        leading = [o for o in cpu if {int(t) for t in o["outputs"]} & read]
        code = len(self.model.codes)
        custom = Table("Operator", {
            "opcode_index": code, "inputs": np.array(inputs, np.int32), "outputs": np.array(outputs, np.int32),
            "custom_options": np.frombuffer(self.package(inputs, outputs), np.uint8),
        })  # fmt: skip
        number = schema().enums["BuiltinOperator"].index("CUSTOM")
        codes = [*self.model.codes, Table("OperatorCode", {
            "deprecated_builtin_code": number, "builtin_code": number, "custom_code": EDGETPU_CUSTOM_OP, "version": 1,
        })]  # fmt: skip
        operators = [*leading, custom, *(o for o in cpu if o not in leading)]
        used = {int(t) for o in operators for part in ("inputs", "outputs") for t in o[part]}
        tensors = [t if k in used else t.changed(buffer=0) for k, t in enumerate(self.model.tensors)]
        root = self.model.root.changed(
            operator_codes=codes,
            subgraphs=[subgraph.changed(operators=operators, tensors=tensors)],
            buffers=[Table("Buffer", {}) if not self.kept(k, used) else b for k, b in enumerate(self.model.buffers)],
        )
        return flatbuffer.encode(root, identifier=IDENTIFIER, size_hint=1 << 16)

    def kept(self, buffer: int, used: set[int]) -> bool:
        return any(self.model.tensors[t]["buffer"] == buffer for t in used if t >= 0)

    def package(self, inputs: list[int], outputs: list[int]) -> bytes:
        runs = self.executable(2 if self.terms.cached_bytes else 0, self.terms.streamed_bytes)
        runs = runs.changed(
            input_layers=[self.layer(t) for t in inputs],
            output_layers=[self.layer(t) for t in outputs],
            used_narrow_memory_bytes_per_tile=1024,
        )
        executables = [runs]
        if self.terms.cached_bytes:
            executables.append(self.executable(1, self.terms.cached_bytes))
        blobs = [flatbuffer.encode(e, identifier=b"EXEC", size_hint=1 << 12) for e in executables]
        multi = multi_executable(blobs)
        package = flatbuffer.encode(
            Table("Package", {
                "min_runtime_version": 14, "serialized_multi_executable": np.frombuffer(multi, np.uint8), "keypair_version": 0,
                "compiler_version": "cl/",
            }), identifier=b"DWN1", size_hint=1 << 12,
        )  # fmt: skip
        builder = flexbuffers.Builder()
        with builder.Map():
            for key, write, value in (("1", builder.Int, 0), ("4", builder.Blob, package), ("5", builder.Int, -1)):
                builder.Key(key)
                write(value)
        return bytes(builder.Finish())

    def executable(self, kind: int, parameter_bytes: int) -> Table:
        bitstream = Table("InstructionBitstream", {"bitstream": np.zeros(64, np.uint8)})
        return Table("Executable", {
            "version": 0, "name": "test", "batch_size": 1, "instruction_bitstreams": [bitstream], "type": kind,
            "parameters": np.zeros(parameter_bytes, np.uint8), "chip": "beagle", "parameter_caching_token": 7,
        })  # fmt: skip

    def layer(self, t: int) -> Table:
        tensor = self.model.tensors[t]
        shape = ([1, 1, 1, *(int(d) for d in tensor["shape"])])[-3:]
        size = -(-int(np.prod(shape)) // 8) * 8
        kinds = {"INT8": 8, "UINT8": 0}
        kind = kinds.get(self.model.type_of(tensor), 8)
        return Table("Layer", {
            "name": tensor["name"], "size_bytes": size, "y_dim": shape[0], "x_dim": shape[1], "z_dim": shape[2],
            "data_type": kind,
        })  # fmt: skip


def multi_executable(blobs: list[bytes]) -> bytes:
    """The one table that holds a vector of byte strings."""
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    parts = [builder.CreateByteVector(blob) for blob in blobs]
    builder.StartVector(4, len(parts), 4)
    for part in reversed(parts):
        builder.PrependUOffsetTRelative(part)
    vector = builder.EndVector()
    builder.StartObject(1)
    builder.PrependUOffsetTRelativeSlot(0, vector, 0)
    builder.Finish(builder.EndObject())
    return bytes(builder.Output())


def size(count: int) -> str:
    """As the compiler prints it."""
    if count < 1 << 10:
        return f"{count:.2f}B"
    return f"{count / 1024:.2f}KiB" if count < 1 << 20 else f"{count / (1 << 20):.2f}MiB"


def report(options: Namespace, source: Path, data: bytes, out: Path, made: bytes, truth: Truth) -> None:
    package = read_package(made, name="", where="") if is_compiled(made, "") else None
    cached = package.cached_bytes if package else 0
    streamed = package.streamed_bytes if package else 0
    left = max(0, truth.terms.capacity_bytes - cached)
    n, on_cpu = len(truth.graph.ops), list(members(truth.on_cpu))
    print(f"\nModel compiled successfully in {time.monotonic_ns() % 5000} ms.\n")
    print(f"Input model: {source}\nInput size: {size(len(data))}")
    print(f"Output model: {out}\nOutput size: {size(len(made))}")
    print(f"On-chip memory used for caching model parameters: {size(cached)}")
    print(f"On-chip memory remaining for caching model parameters: {size(left)}")
    print(f"Off-chip memory used for streaming uncached model parameters: {size(streamed)}")
    print(f"Number of Edge TPU subgraphs: {int(package is not None)}\nTotal number of operations: {n}")
    print(f"Operation log: {out.with_suffix('.log')}")
    if on_cpu:
        print(f"\n{NOTICE}\nNumber of operations that will run on Edge TPU: {n - len(on_cpu)}")
        print(f"Number of operations that will run on CPU: {len(on_cpu)}")
    if options.show_operations:
        rows: dict[tuple[str, str], int] = {}
        for op in truth.graph.ops:
            status = truth.status[op.index] if truth.on_cpu >> op.index & 1 else MAPPED
            key = (op.type.split(":")[0], status)
            rows[key] = rows.get(key, 0) + 1
        print("\nOperator                       Count      Status\n")
        for (kind, status), count in rows.items():
            print(f"{kind:<30} {count:<10} {status}")
    else:
        print("See the operation log file for individual operation details.")
    out.with_suffix(".log").write_text(f"Edge TPU Compiler version {VERSION}\nInput: {source}\nOutput: {out}\n")
    print("Compilation child process completed within timeout period.\nCompilation succeeded! ")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
