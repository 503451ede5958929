"""Hand broken files to each reader of balancer, which must accept them or raise balancer's own errors.

    python benchmarks/fuzz_readers.py [READER ...] [--count 100000] [--seed 1] [--only K] [--keep DIR] [--json FILE]

Each file is made from a small sound one, mutated by its structure or as bytes (`tests/broken.py`). The same seed and
number always make the same file, so that --only repeats a failure. A file may take 5 s of processor time and 1 GiB more
memory than the process has at the start. A warning counts as a failure. One line per reader: files tried; files
accepted ("taken"); the slowest file; and the kinds of failure, each with the first file that shows it. Files that fail
are kept in DIR, and the exit code is 1. Ctrl-C ends the run; what was tried until then is printed.
"""

from __future__ import annotations

import faulthandler
import io
import json
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
from models import DATA, ROOT
from sampling import measuring_parser, recorded

import balancer
from balancer.compiler.report import parse_report
from balancer.cost.hardware import load_hardware
from balancer.cost.profile import load_profile
from balancer.cost.segment import SegmentCosts
from balancer.documents import Refusal, read_json
from balancer.errors import BalancerError
from balancer.inputs import InputSpec, Item, load_items, model_interface, npz_bytes
from balancer.learning.measurements import SyntheticRow, read_measurements
from balancer.learning.profiling import profile_document
from balancer.loops.sources import RecordedTimes
from balancer.loops.tuning import measured_rate
from balancer.opened import open_plan
from balancer.plan import load_plan, plan_text, pycoral_obstacle
from balancer.planning.costed_model import costed_model_of
from balancer.planning.solved import pipelines_of
from balancer.runtime.images import load_image
from balancer.runtime.limits import mapping_entries
from balancer.runtime.recipes import check_tensors, promised
from balancer.runtime.tensors import layout, lives
from balancer.tflite import synth
from balancer.tflite.package import describe, is_compiled, read_package

sys.path.insert(0, str(ROOT))  # sound files and mutations are those of the tests

from tests import edgetpu_compiler, handmade
from tests.broken import (
    mutate_bytes,
    mutate_csv,
    mutate_json,
    mutate_lines,
    mutate_npy,
    mutate_npz,
    mutate_places,
    mutate_png,
    mutate_tables,
    use_model,
)
from tests.outside import moved_out

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tests.broken import Mutate

SECONDS, MEMORY_BYTES = 5.0, 1 << 30
MOST_BYTES = 1 << 18  # of a mutated file
SPECS = [InputSpec("x", (1, 2, 3), "int8"), InputSpec("y", (2,), "float32")]
PICTURES = [InputSpec("x", (1, 8, 8, c), dtype) for c, dtype in ((3, "uint8"), (1, "float32"), (1, "int8"))]


class TookTooLong(BaseException):
    """A file took longer than SECONDS. Not an Exception, so that a reader that catches too much does not catch it."""


@dataclass(frozen=True)
class Reader:
    """seeds: sound files to mutate. structured: mutations that know the format. use: reads a file and does all that is
    done with the result. suffix: of the file.
    """

    seeds: Sequence[bytes]
    structured: Sequence[Mutate]
    use: Callable[[Path], object]
    suffix: str = ""


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
    costed, pipelines = costed_model_of(opened), pipelines_of(plan)
    for segment in plan.segments:
        promised(plan, segment)
        costed.costs.terms(segment.ops)
    if pipelines and all(s.measured and s.measured.stage_ns for s in plan.segments):
        measured_rate(balancer.loops.sources.Seen(plan), costed.hardware.host.host_ns_per_stage)


def _report(path: Path) -> None:
    report = parse_report(path.read_bytes().decode("utf-8", "replace"))
    for model in report.models:
        model.reasons(model.statuses[0].type if model.statuses else "")
        report.about(model.output_file or "")


def _measurements(path: Path) -> None:
    for row in read_measurements(path)[:2]:
        if not isinstance(row, SyntheticRow) or row.width * row.layers < 100:  # larger ones are made, not read
            row.predicted_ns(load_hardware("pcie"))


def _readers(folder: Path) -> dict[str, Reader]:
    """All readers by name. folder: filled with a plan's files, since plans and tables of times refer to them."""
    made = [handmade.conv_chain(), handmade.custom_op(), handmade.free_batch("RESHAPE"), handmade.shared_state(),
            handmade.free_batch("TRANSPOSE_CONV"), handmade.with_signature_and_metadata(),
            handmade.branch_and_add(), synth.fc(8, layers=3, inputs=4)]  # fmt: skip
    model = folder / "net.tflite"
    model.write_bytes(synth.fc(8, layers=4, inputs=4))
    plan = balancer.save(balancer.balance(model, 3, options=balancer.Options(stages=3)), folder / "plan")
    home = folder / "plan"
    compiler = balancer.find_compiler(edgetpu_compiler.install(folder / "bin"))
    compiled = balancer.compile_plan(plan, compiler).plan
    packages = [p.read_bytes() for p in sorted(home.glob("*_edgetpu.tflite"))]
    logs = [p.read_bytes() for p in sorted(home.glob("*.log"))] + [
        p.read_bytes() for p in sorted((DATA / "compiler_logs").glob("*.log"))
    ]
    graph = balancer.load_graph(model)
    sha256 = plan.model.sha256
    profile = json.dumps(profile_document(model)).encode()
    times = "".join(f"{plan.file_name},{s.name},1.5\n" for s in plan.segments)
    simple = f"plan,stage,measured_ms\n{times}".encode()
    arrays: Item = {"x": np.zeros((3, 1, 2, 3), np.int8), "y": np.ones((3, 2), np.float32)}

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
        "models": Reader(made, [mutate_tables], lambda path: use_model(path.read_bytes()), ".tflite"),
        "models-outside": Reader([moved_out(data, merged=True) for data in made], [mutate_tables, mutate_places],
                                 lambda path: use_model(path.read_bytes()), ".tflite"),
        "packages": Reader(packages, [mutate_tables], _package, ".tflite"),
        "plans": Reader([document, measured], [mutate_json], _plan, ".json"),
        "hardware": Reader([preset, preset.replace(b'"constants"', b'"base": "usb3", "constants"')], [mutate_json],
                           hardware, ".json"),
        "profiles": Reader([profile], [mutate_json], profiled, ".json"),
        "documents": Reader([profile, preset], [mutate_json],
                            lambda path: read_json(path, Refusal(BalancerError, "mend it", "a JSON file")), ".json"),
        "recordings": Reader([simple], [mutate_csv], lambda path: RecordedTimes(path)(plan), ".csv"),
        "calibrations": Reader([simple, _published()], [mutate_csv], _measurements, ".csv"),
        "measured-plans": Reader([measured], [mutate_json], _measurements, ".json"),
        "arrays": Reader([_npy(arrays["x"])], [mutate_npy], lambda path: load_items(path, SPECS[:1]), ".npy"),
        "archives": Reader([npz_bytes(arrays)], [mutate_npz], lambda path: load_items(path, SPECS), ".npz"),
        "pictures": Reader(_pictures(), [mutate_png], lambda path: [load_image(path, spec) for spec in PICTURES], ".png"),
        "reports": Reader(logs, [mutate_lines], _report, ".log"),
    }  # fmt: skip


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
    files = []
    for picture, form, more in (
        (colours, "PNG", {"pnginfo": text}), (grey, "PNG", {}), (colours.quantize(8), "PNG", {"transparency": b"\0\1"}),
        (colours.convert("LA"), "PNG", {}), (colours, "JPEG", {}), (colours.convert("L"), "JPEG", {"progressive": True}),
        (colours.quantize(8), "GIF", {}), (colours, "BMP", {}), (colours, "WEBP", {}),
    ):  # fmt: skip
        made = io.BytesIO()
        picture.save(made, form, **more)
        files.append(made.getvalue())
    return files


def mutated(reader: Reader, name: str, seed: int, k: int) -> bytes:
    """File k of a reader: mutated by its structure, as bytes, or first in one way and then in the other."""
    dice = random.Random(f"{name} {seed} {k}")
    data = reader.seeds[k % len(reader.seeds)]
    kind = dice.random()
    if kind < 0.65:
        data = dice.choice(reader.structured)(data, dice)
    return (mutate_bytes(data, dice) if kind > 0.6 else data)[:MOST_BYTES]


@dataclass
class Outcome:
    """What became of the files of one reader. failed: by kind of failure, the first file's number and the traceback."""

    files: int = 0
    taken: int = 0
    slowest_s: float = 0.0
    failed: dict[str, tuple[int, str]] = field(default_factory=dict)
    complete: bool = False

    def note(self, what: str, k: int, keep: Path, data: bytes) -> None:
        """Count a failure, and keep the file if it is the first of its kind."""
        if what not in self.failed:
            self.failed[what] = k, traceback.format_exc(limit=-6)
            keep.parent.mkdir(parents=True, exist_ok=True)
            keep.with_name(f"{k}-{keep.name}").write_bytes(data)

    def print(self, reader: str) -> None:
        print(f"{reader:15} {self.files:7} files {self.taken:7} taken  slowest {1000 * self.slowest_s:6.0f} ms  "
              f"{len(self.failed)} kinds of failure", flush=True)  # fmt: skip
        for what, (k, story) in self.failed.items():
            print(f"  --only {k}: {what}\n{story}", flush=True)


@dataclass
class Trial:
    """A reader at work on broken files.

    path: where each file is written in its turn. keep: where a file that fails is kept, with its number before the name.
    """

    reader: Reader
    path: Path
    keep: Path
    outcome: Outcome = field(default_factory=Outcome)

    def run(self, files: Iterable[tuple[int, bytes]]) -> Outcome:
        """Try the numbered files one after the other. Ctrl-C ends this early."""
        with suppress(KeyboardInterrupt):
            for k, data in files:
                self._try(k, data)
            self.outcome.complete = True
        return self.outcome

    def _try(self, k: int, data: bytes) -> None:
        self.path.write_bytes(data)
        start = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            self.reader.use(self.path)
            self.outcome.taken += 1
        except BalancerError as error:
            if "\n" in str(error) or len(str(error)) > 4000:
                self.outcome.note(f"message {str(error)[:60]!r}", k, self.keep, data)
        except (Exception, TookTooLong) as error:  # noqa: BLE001 - that is what is sought
            place = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
            self.outcome.note(what, k, self.keep, data)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        self.outcome.files += 1
        self.outcome.slowest_s = max(self.outcome.slowest_s, time.process_time() - start)


def _limit_process() -> None:
    """Turn a file that takes too long into TookTooLong, too much memory into MemoryError, and warnings into errors."""

    def late(*_: object) -> None:
        raise TookTooLong

    signal.signal(signal.SIGPROF, late)
    size = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES,) * 2)
    warnings.simplefilter("error")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.enable()


def main(argv: Sequence[str] | None = None) -> int:
    parser = measuring_parser(__doc__)
    parser.add_argument("readers", nargs="*", metavar="READER", help="default: all")
    parser.add_argument("--count", type=int, default=100_000, help="files for each reader (default: 100000)")
    parser.add_argument("--seed", type=int, default=1, help="of the random changes (default: 1)")
    parser.add_argument("--only", type=int, metavar="K", help="try file K alone")
    parser.add_argument("--keep", type=Path, default=Path("fuzz_failures"), metavar="DIR", help="for files that fail")
    arguments = parser.parse_args(argv)
    numbers = range(arguments.count) if arguments.only is None else [arguments.only]
    with (
        tempfile.TemporaryDirectory(prefix="balancer-fuzz-") as scratch,
        recorded("fuzz_readers", arguments) as samples,
    ):
        readers = _readers(Path(scratch))
        unknown = set(arguments.readers) - set(readers)
        if unknown:
            parser.error(f"no reader {', '.join(sorted(unknown))}; there are {', '.join(readers)}")
        _limit_process()
        for name in arguments.readers or readers:
            reader = readers[name]
            files = ((k, mutated(reader, name, arguments.seed, k)) for k in numbers)
            place = Path(scratch) / "plan" / f"mutated{reader.suffix}"
            outcome = Trial(reader, place, arguments.keep / f"{name}{reader.suffix}").run(files)
            outcome.print(name)
            samples.append({
                "reader": name, "files": outcome.files, "taken": outcome.taken, "slowest_s": outcome.slowest_s,
                "failed": {what: k for what, (k, _) in outcome.failed.items()}, "complete": outcome.complete,
            })  # fmt: skip
            if not outcome.complete:
                break
    return 1 if any(sample["failed"] for sample in samples) else 0


if __name__ == "__main__":
    sys.exit(main())
