"""Broken files for each reader: nothing but balancer's own errors may come of them.

    python benchmarks/fuzz_readers.py [READER ...] [--count 100000] [--seed 1] [--only K] [--keep DIR]

Each file is a small seed, mutated by its structure or as bytes (`mutations.py`); number and seed give the same file
again (`--only`). A file may take 5 s of processor time and 1 GiB more memory than the process has. Warnings count as
failures. Files that fail are kept in DIR, and the exit code is 1. Ctrl-C ends it with what was found so far. Run it
from a checkout: seeds come from its tests.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from mutations import (
    mutate_bytes,
    mutate_csv,
    mutate_json,
    mutate_lines,
    mutate_npy,
    mutate_npz,
    mutate_png,
    mutate_tables,
)

import balancer
from balancer.compiler.report import parse_report
from balancer.cost.batch import SegmentBatch
from balancer.cost.hardware import load_hardware
from balancer.cost.profile import load_profile
from balancer.cost.segment import SegmentCosts
from balancer.documents import Refusal, read_json
from balancer.errors import BalancerError
from balancer.ground.downsets import DownSets
from balancer.inputs import InputSpec, load_items, model_interface, npz_bytes
from balancer.learning.measurements import SyntheticRow, read_measurements
from balancer.learning.profiling import profile_document
from balancer.loops.sources import RecordedTimes
from balancer.loops.tuning import measured_rate
from balancer.opened import open_plan
from balancer.plan import load_plan, plan_text, pycoral_obstacle
from balancer.planning.setting import setting_of
from balancer.planning.solved import pipelines_of
from balancer.runtime.images import load_image
from balancer.runtime.limits import mapping_entries
from balancer.runtime.recipes import check_tensors, promised
from balancer.runtime.tensors import layout, lives
from balancer.tflite import synth
from balancer.tflite.cut import Cutter
from balancer.tflite.package import describe, is_compiled, read_package

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mutations import Mutate

SECONDS, MEMORY_BYTES = 5.0, 1 << 30
MOST_BYTES = 1 << 18  # of a mutated file
ROOT = Path(__file__).resolve().parents[1]
SPECS = [InputSpec("x", (1, 2, 3), "int8"), InputSpec("y", (2,), "float32")]
PICTURES = [InputSpec("x", (1, 8, 8, c), dtype) for c, dtype in ((3, "uint8"), (1, "float32"), (1, "int8"))]


class TookTooLong(BaseException):
    """No Exception: a reader that catches too much must not catch it."""


@dataclass(frozen=True)
class Reader:
    """seeds: files to mutate. structured: mutations that know the format. use: what reads a file, and everything that
    trusts what was read. suffix: of the file.
    """

    seeds: Sequence[bytes]
    structured: Sequence[Mutate]
    use: Callable[[Path], object]
    suffix: str = ""


def _model(path: Path) -> None:
    cutter = Cutter(path.read_bytes())
    graph = cutter.graph
    costs = SegmentCosts(graph, load_hardware("pcie"))
    half = (1 << (len(graph.ops) + 1) // 2) - 1
    SegmentBatch(costs, DownSets.of([0, half, graph.all_ops], len(graph.ops)))([0, 0, 1], [1, 2, 2])
    for ops in (half, graph.all_ops & ~half):
        if ops & ~graph.folded:
            cutter.cut(ops)


def _package(path: Path) -> None:
    data = path.read_bytes()
    describe(data, "mutated")
    mapping_entries(data, "mutated")
    if is_compiled(data, "mutated"):
        read_package(data, name="mutated", where="mutated")


def _plan(path: Path) -> None:
    plan = load_plan(path)
    plan_text(plan).encode()
    pycoral_obstacle(plan)
    opened = open_plan(plan)
    check_tensors(opened)
    outputs = model_interface(opened.graph).outputs
    layout([lives(part, outputs) for part in plan.partitions()])
    setting, pipelines = setting_of(opened), pipelines_of(plan)
    for segment in plan.segments:
        promised(plan, segment)
        setting.costs.terms(segment.ops)
    if pipelines and all(s.measured and s.measured.stage_ns for s in plan.segments):
        measured_rate(balancer.loops.sources.Seen(plan), setting.hardware.host.host_ns_per_stage)


def _report(path: Path) -> None:
    found = parse_report(path.read_bytes().decode("utf-8", "replace"))
    for model in found.models:
        model.reasons(model.statuses[0].type if model.statuses else "")
        found.about(model.output_file or "")


def _measurements(path: Path) -> None:
    for row in read_measurements(path)[:2]:
        if not isinstance(row, SyntheticRow) or row.width * row.layers < 100:  # larger ones are made, not read
            row.predicted_ns(load_hardware("pcie"))


def _readers(folder: Path) -> dict[str, Reader]:
    """In a folder with a plan's files, which plans and tables of times speak of."""
    sys.path.insert(0, str(ROOT))
    from tests import edgetpu_compiler, handmade

    made = [handmade.conv_chain(), handmade.custom_op(), handmade.free_batch("RESHAPE"), handmade.shared_state(),
            handmade.free_batch("TRANSPOSE_CONV"), handmade.with_signature_and_metadata(),
            handmade.branch_and_add(), synth.fc(8, layers=3, inputs=4)]  # fmt: skip
    model = folder / "net.tflite"
    model.write_bytes(synth.fc(8, layers=4, inputs=4))
    plan = balancer.save(balancer.balance(model, 3, options=balancer.Options(stages=3)), folder / "plan")
    home = folder / "plan"
    compiler = balancer.find_compiler(edgetpu_compiler.install(folder / "bin"))
    compiled = balancer.balancing.compile_plan(plan, compiler).plan
    packages = [p.read_bytes() for p in sorted(home.glob("*_edgetpu.tflite"))]
    logs = [p.read_bytes() for p in sorted(home.glob("*.log"))] + [
        p.read_bytes() for p in sorted((ROOT.parent / "shared/data/compiler_logs").glob("*.log"))
    ]
    graph = balancer.load_graph(model)
    sha256 = plan.model.sha256
    profile = _json(profile_document(model))
    times = "".join(f"{plan.file_name},{s.name},1.5\n" for s in plan.segments)
    simple = f"plan,stage,measured_ms\n{times}".encode()
    arrays = {"x": np.zeros((3, 1, 2, 3), np.int8), "y": np.ones((3, 2), np.float32)}

    def hardware(path: Path) -> None:
        SegmentCosts(graph, load_hardware(path)).terms(graph.all_ops)

    def profiled(path: Path) -> None:
        SegmentCosts(graph, load_hardware("pcie"), load_profile(path, graph, sha256)).terms(graph.all_ops)

    preset = (ROOT / "balancer/cost/presets/pcie.json").read_bytes()
    document = plan_text(compiled).encode()
    measured = document.replace(
        b'"measured": null', b'"measured": {"stage_ns": 9, "runs": 1, "device": "x", "from": "cpu"}'
    )
    return {
        "models": Reader(made, [mutate_tables], _model, ".tflite"),
        "packages": Reader(packages, [mutate_tables], _package, ".tflite"),
        "plans": Reader([document, measured], [mutate_json], _plan, ".json"),
        "hardware": Reader([preset, preset.replace(b'"constants"', b'"base": "usb3", "constants"')], [mutate_json],
                           hardware, ".json"),
        "profiles": Reader([profile], [mutate_json], profiled, ".json"),
        "documents": Reader([profile, preset], [mutate_json],
                            lambda path: read_json(path, Refusal(BalancerError, "mend it")), ".json"),
        "recordings": Reader([simple], [mutate_csv], lambda path: RecordedTimes(path)(plan), ".csv"),
        "calibrations": Reader([simple, _published()], [mutate_csv], _measurements, ".csv"),
        "measured-plans": Reader([measured], [mutate_json], _measurements, ".json"),
        "arrays": Reader([_npy(arrays["x"])], [mutate_npy], lambda path: load_items(path, SPECS[:1]), ".npy"),
        "archives": Reader([npz_bytes(arrays)], [mutate_npz], lambda path: load_items(path, SPECS), ".npz"),
        "pictures": Reader(_pictures(), [mutate_png], lambda path: [load_image(path, spec) for spec in PICTURES], ".png"),
        "reports": Reader(logs, [mutate_lines], _report, ".log"),
    }  # fmt: skip


def _json(document: object) -> bytes:
    import json

    return json.dumps(document).encode()


def _npy(array: object) -> bytes:
    made = io.BytesIO()
    np.save(made, np.asarray(array))
    return made.getvalue()


def _published() -> bytes:
    return (
        b"family,width,n_layers,input,n_tpus,batch,partitioner,layers_per_segment,ms_per_inference,timing,off_chip_mib,use\n"
        b"fc,8,3,4,1,1,single,3,0.4,invoke_median,0,1\nfc,8,3,4,2,50,uniform,1-2,0.2,thread_queue_median,0.5;0.25,1\n"
        b"conv,4,2,8x8x3,2,10,uniform,1-1,0.3,runner,,1\n"
    )


def _pictures() -> list[bytes]:
    from PIL import Image, PngImagePlugin

    dice = np.random.default_rng(1)
    colours = Image.fromarray(dice.integers(0, 256, (12, 10, 3), dtype=np.uint8))
    grey = Image.fromarray(dice.integers(0, 1 << 16, (12, 10), dtype=np.uint16))
    text = PngImagePlugin.PngInfo()
    text.add_text("key", "value", zip=True)
    found = []
    for picture, form, more in (
        (colours, "PNG", {"pnginfo": text}), (grey, "PNG", {}), (colours.quantize(8), "PNG", {"transparency": b"\0\1"}),
        (colours.convert("LA"), "PNG", {}), (colours, "JPEG", {}), (colours.convert("L"), "JPEG", {"progressive": True}),
        (colours.quantize(8), "GIF", {}), (colours, "BMP", {}), (colours, "WEBP", {}),
    ):  # fmt: skip
        made = io.BytesIO()
        picture.save(made, form, **more)
        found.append(made.getvalue())
    return found


def mutated(reader: Reader, name: str, seed: int, k: int) -> bytes:
    """File k of a reader: by its structure, as bytes, or first one and then the other."""
    dice = random.Random(f"{name} {seed} {k}")
    data = reader.seeds[k % len(reader.seeds)]
    kind = dice.random()
    if kind < 0.65:
        data = dice.choice(reader.structured)(data, dice)
    return (mutate_bytes(data, dice) if kind > 0.6 else data)[:MOST_BYTES]


@dataclass
class Outcome:
    """Of one reader. failed: by kind of failure, the first file's number and the whole story."""

    files: int = 0
    taken: int = 0
    slowest: float = 0.0
    failed: dict[str, tuple[int, str]] = field(default_factory=dict)


def try_reader(reader: Reader, files: Iterable[tuple[int, bytes]], path: Path, keep: Path, found: Outcome) -> None:
    """Hand it these files, one after the other. path: where each stands in its turn. keep: what those that fail are
    called, but for their numbers. found: is filled in.
    """
    for k, data in files:
        path.write_bytes(data)
        start = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            reader.use(path)
            found.taken += 1
        except BalancerError as error:
            if "\n" in str(error) or len(str(error)) > 4000:
                _note(found, k, data, keep, f"message {str(error)[:60]!r}")
        except (Exception, TookTooLong) as error:  # noqa: BLE001 - that is what is sought
            place = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__} at {place.filename}:{place.lineno}"
            _note(found, k, data, keep, what)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        found.files += 1
        found.slowest = max(found.slowest, time.process_time() - start)


def _note(found: Outcome, k: int, data: bytes, keep: Path, what: str) -> None:
    if what not in found.failed:
        found.failed[what] = k, traceback.format_exc(limit=-6)
        keep.parent.mkdir(parents=True, exist_ok=True)
        keep.with_name(f"{k}-{keep.name}").write_bytes(data)


def _limit() -> None:
    def late(*_: object) -> None:
        raise TookTooLong

    signal.signal(signal.SIGPROF, late)
    size = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES,) * 2)
    warnings.simplefilter("error")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.enable()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", help="default: all")
    parser.add_argument("--count", type=int, default=100_000, help="of files for each reader")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, metavar="K", help="this file alone")
    parser.add_argument("--keep", type=Path, default=Path("fuzz_failures"), metavar="DIR", help="for files that fail")
    arguments = parser.parse_args(argv)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="balancer-fuzz-") as name:
        readers = _readers(Path(name))
        unknown = set(arguments.readers) - set(readers)
        if unknown:
            parser.error(f"no reader {', '.join(sorted(unknown))}; there are {', '.join(readers)}")
        _limit()
        for reader in arguments.readers or readers:
            numbers = range(arguments.count) if arguments.only is None else [arguments.only]
            one = readers[reader]
            files = ((k, mutated(one, reader, arguments.seed, k)) for k in numbers)
            place = Path(name) / "plan" / f"mutated{one.suffix}"
            found, going_on = Outcome(), False
            with suppress(KeyboardInterrupt):
                try_reader(one, files, place, arguments.keep / f"{reader}{one.suffix}", found)
                going_on = True
            print(f"{reader:15} {found.files:7} files {found.taken:7} taken  slowest {1000 * found.slowest:6.0f} ms  "
                  f"{len(found.failed)} kinds of failure", flush=True)  # fmt: skip
            for what, (k, story) in found.failed.items():
                print(f"  --only {k}: {what}\n{story}", flush=True)
            failed += len(found.failed)
            if not going_on:
                break
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
