"""Which converters' files balancer takes: each network is converted, solved, cut and verified on the CPU.

    python benchmarks/converters.py [--only NAME ...] [--small] [--environments DIR] [--keep DIR] [--json FILE]

Each converter runs in a virtual environment of its own, made in DIR (default: a temporary folder) from the package
registry with `python -m venv` and pip; an environment that is there is taken as it is. The scripts that run inside stand
in benchmarks/converting. Weights are random, so nothing else is downloaded. `--small` takes the networks of a few ops
alone. `--keep` keeps the converted files.

Printed is a table in Markdown, which docs/converters.md shows. "not mapped" counts the ops that the Edge TPU does not
take, by their type or their size; "on the CPU" those that run on the CPU if the model is one segment, predicted: also all
that read results of the others; "outside" the constants that stand outside the flatbuffer. A file is cut into 2 and 4
segments, written to a directory and read again; each boundary tensor is compared bit for bit with that of the whole
model. Exit code 1: a file could not be made by a converter that is not known to fail, was refused, or differs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models import ROOT
from sampling import measuring_parser, recorded

import balancer
from balancer.errors import BalancerError
from balancer.tflite.decoding import decode_model, decode_root

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

SCRIPTS = ROOT / "benchmarks" / "converting"
SEGMENTS = (2, 4)
_SECONDS = 1800  # for one network; tracing by LiteRT takes minutes
_FAULT = "no file, the converter fails: "
_QUIET = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "YOLO_AUTOINSTALL": "false",  # else Ultralytics changes the environment as it runs
    "YOLO_OFFLINE": "true",
}


class ConversionError(Exception):
    """A converter failed, or could not be installed. Its message is the last line that was printed."""


@dataclass(frozen=True)
class Network:
    """pixels: width and height of the input. is_small: whether it is a few ops made by hand."""

    name: str
    pixels: int

    @property
    def is_small(self) -> bool:
        return self.name == "small"


@dataclass(frozen=True)
class Environment:
    """name: of its folder. requirements: what pip is given. python: the lowest version; a newer one will do."""

    name: str
    requirements: tuple[str, ...]
    python: tuple[int, int] = (3, 10)

    @property
    def interpreter(self) -> str:
        """Ours if it is new enough, else the lowest that will do. Raises ConversionError where that is not installed."""
        if sys.version_info[:2] >= self.python:
            return sys.executable
        wanted = f"python{self.python[0]}.{self.python[1]}"
        found = shutil.which(wanted)
        if found is None:
            raise ConversionError(f"needs {wanted} on the PATH")
        return found


@dataclass(frozen=True)
class Converter:
    """script: in SCRIPTS; called with `method`, the network's name, its pixels, and the file to write. fault: what the
    converter itself is known to end with, if it makes no file.
    """

    name: str
    environment: Environment
    script: str
    method: str
    networks: tuple[Network, ...]
    fault: str | None = None


@dataclass(frozen=True)
class Row:
    """What became of one network. ends: types and shapes of the model's inputs and outputs. outcome: "bit-exact", or
    what went wrong.
    """

    converter: str
    network: str
    pixels: int
    ops: int = 0
    not_mapped: int = 0
    on_cpu: int = 0
    outside: int = 0
    ends: str = ""
    outcome: str = ""

    @property
    def is_good(self) -> bool:
        """Whether nothing went wrong, or only what the converter is known for."""
        return self.outcome == "bit-exact" or self.outcome.startswith(_FAULT)


SMALL = Network("small", 32)
TENSORFLOW = Environment("tensorflow", ("tensorflow==2.21.0", "ai-edge-quantizer==0.10.0"))
ONNX2TF = Environment("onnx2tf", ("onnx2tf==2.6.9", "onnx"), python=(3, 12))
# Its newest releases write .tflite themselves; those up to 1.29 do it with TensorFlow, as Ultralytics wants them.
ONNX2TF_1 = Environment("onnx2tf-1", ("onnx2tf<1.30", "onnx"))
# One release of PyTorch, so that pip takes a build without CUDA (200 MB instead of 3 GB) where it is pointed to one.
LITERT = Environment("litert", ("litert-torch==0.10.0", "ai-edge-quantizer==0.10.0", "torch==2.13.0"))
ULTRALYTICS = Environment("ultralytics", (*LITERT.requirements, "ultralytics==8.4.190"))
# What Ultralytics asks for on Python up to 3.12, one by one, as it exports.
SAVED_MODEL = Environment(
    "saved-model",
    ("ultralytics==8.4.190", "torch==2.13.0", "tensorflow<=2.19", "tf_keras<=2.19", "onnx2tf>=1.26.3,<1.29", "onnx<2",
     "onnxslim", "onnxruntime", "sng4onnx", "onnx_graphsurgeon", "ai-edge-litert", "psutil"),
)  # fmt: skip
KERAS = (SMALL, Network("MobileNetV2", 224), Network("ResNet50", 224), Network("EfficientNetB0", 224))
PYTORCH = (SMALL, Network("MobileNetV2", 224))
YOLOS = (Network("yolov8n", 320), Network("yolo11n", 320))
CONVERTERS = (
    Converter("TensorFlow 2.21", TENSORFLOW, "with_tensorflow.py", "converter", KERAS),
    Converter("TensorFlow 2.21, ai-edge-quantizer 0.10", TENSORFLOW, "with_tensorflow.py", "quantizer", KERAS[:2]),
    Converter("onnx2tf 1.29", ONNX2TF_1, "with_onnx2tf.py", "onnx", (SMALL,)),
    Converter("onnx2tf 2.6", ONNX2TF, "with_onnx2tf.py", "onnx", (SMALL,), fault="flatbuffer_direct fast path failed"),
    Converter("litert-torch 0.10, ai-edge-quantizer 0.10", LITERT, "with_litert_torch.py", "pytorch", PYTORCH),
    Converter("Ultralytics 8.4, format=tflite", ULTRALYTICS, "with_ultralytics.py", "tflite", YOLOS),
    Converter("Ultralytics 8.4, format=saved_model", SAVED_MODEL, "with_ultralytics.py", "saved_model", YOLOS),
)


def interpreter_of(environment: Environment, folder: Path) -> Path:
    """The Python of the environment in this folder, which is made if need be. Raises ConversionError."""
    python = folder / environment.name / "bin" / "python"
    if not python.exists():
        try:
            _run([environment.interpreter, "-m", "venv", folder / environment.name], folder)
            _run([python, "-m", "pip", "install", "--quiet", "--no-compile", *environment.requirements], folder)
        except ConversionError:
            shutil.rmtree(folder / environment.name, ignore_errors=True)  # or it would be taken as it is next time
            raise
    return python


def convert(converter: Converter, network: Network, environments: Path, out: Path) -> None:
    """Make the file. Raises ConversionError."""
    python = interpreter_of(converter.environment, environments)
    script = SCRIPTS / converter.script
    with tempfile.TemporaryDirectory() as scratch:  # converters leave files where they run
        _run([python, script, converter.method, network.name, network.pixels, out.resolve()], Path(scratch))


def _run(command: Sequence[object], folder: Path) -> None:
    try:
        done = subprocess.run(
            [str(word) for word in command], cwd=folder, capture_output=True, text=True, check=False,
            stdin=subprocess.DEVNULL, timeout=_SECONDS, env=os.environ | _QUIET | {"YOLO_CONFIG_DIR": str(folder)},
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ConversionError(f"took more than {_SECONDS} s") from error
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        raise ConversionError(lines[-1].strip())


def tried(converter: Converter, network: Network, path: Path) -> Row:
    """The row of a converted file. Raises BalancerError where it is refused."""
    graph = balancer.load_graph(path)
    outcomes = [_cut_and_verified(path, stages) for stages in SEGMENTS if stages <= len(graph.ops)]
    inside = graph.interface(graph.all_ops)
    tensors = [graph.tensors[t] for t in (inside.inputs[0], inside.outputs[0])]
    return Row(
        converter.name,
        network.name,
        network.pixels,
        ops=len(graph.ops),
        not_mapped=sum(not op.mapped for op in graph.ops),
        on_cpu=graph.on_cpu(graph.all_ops, graph.mapped).bit_count(),
        outside=sum(b["offset"] > 1 for b in decode_root(path.read_bytes(), str(path))["buffers"]),
        ends=" to ".join(f"{t.dtype} {'x'.join(map(str, t.shape or ()))}" for t in tensors),
        outcome=next((found for found in outcomes if found != "bit-exact"), "bit-exact"),
    )


def _cut_and_verified(path: Path, stages: int) -> str:
    """What `verify` says of a plan of so many segments, written to a directory. Raises BalancerError."""
    options = balancer.Options(stages=stages, solver="chain")
    with tempfile.TemporaryDirectory() as folder:
        plan = balancer.save(balancer.balance(path, stages, options=options), folder)
        if not all(
            decode_model((Path(folder) / s.file).read_bytes(), s.name).is_inline for s in plan.segments if s.file
        ):
            return f"{stages} segments: constants outside"
        return "bit-exact" if balancer.verify(folder, 1).bit_exact else f"{stages} segments differ"


def rows(arguments: argparse.Namespace, environments: Path, kept: Path) -> Iterator[Row]:
    """A row for each network of each converter that was asked for."""
    for converter in CONVERTERS:
        if arguments.only and not any(word in converter.name for word in arguments.only):
            continue
        for network in converter.networks:
            if arguments.small and not network.is_small:
                continue
            path = kept / f"{network.name}_{network.pixels}_{CONVERTERS.index(converter)}.tflite"
            try:
                convert(converter, network, environments, path)
                yield tried(converter, network, path)
            except (ConversionError, BalancerError) as error:
                known = converter.fault is not None and converter.fault in str(error)
                yield Row(converter.name, network.name, network.pixels, outcome=f"{_FAULT if known else ''}{error}")


def line(row: Row) -> str:
    cells = (
        row.converter,
        f"{row.network}, {row.pixels} px",
        row.ops,
        row.not_mapped,
        row.on_cpu,
        row.outside,
        row.ends,
        row.outcome,
    )
    return f"| {' | '.join(map(str, cells))} |"


def main(argv: Sequence[str] | None = None) -> int:
    parser = measuring_parser(__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="converters whose name has one of these words")
    parser.add_argument("--small", action="store_true", help="only networks of a few ops")
    parser.add_argument("--environments", type=Path, metavar="DIR", help="where environments are, or are to be made")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where converted files are kept")
    arguments = parser.parse_args(argv)
    failed = 0
    with recorded("converters", arguments) as samples, tempfile.TemporaryDirectory() as folder:
        environments, kept = (arguments.environments or Path(folder)).resolve(), arguments.keep or Path(folder)
        for used in (environments, kept):
            used.mkdir(parents=True, exist_ok=True)
        print(
            "| converter | network | ops | not mapped | on the CPU (pred.) | outside | input to output | 2 and 4 segments |"
        )
        print("| --- | --- | ---: | ---: | ---: | ---: | --- | --- |")
        for row in rows(arguments, environments, kept):
            print(line(row), flush=True)
            samples.append(vars(row))
            failed += not row.is_good
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
