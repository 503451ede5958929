"""Single TPUs on hosts of every day: published times of Keras networks and of detectors, beside predicted ones.

    table of networks     model,host,ms_per_inference                         a USB Accelerator on three hosts
    table of detectors    source,model,input_px,host,link,clock,ms            USB and PCIe, both clocks

The published scripts hand over float pictures and take float results, so that their times hold a conversion of each value on
the host besides what `SegmentCosts` predicts. `CONVERSION_NS` is that, by script and host, fitted to these tables.

Errors are printed once more for each source with everything that was fitted to it undone: conversions are found again from
the other sources, and a host that only this source has takes the median of the others; constants of the presets that rest
on the source take the values in `_WITHOUT`.
"""

from __future__ import annotations

import csv
import math
import re
import statistics
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from detectors import efficientdet_lite, mobilenet_v1, yolo11, yolov5, yolov8

from balancer.cost.hardware import Hardware, load_hardware
from balancer.cost.segment import SegmentCosts
from balancer.errors import MeasurementError
from balancer.ground.opsets import OpSet, op_set
from balancer.tflite.read import load_graph, read_graph

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from sampling import Sample

    from balancer.graph import Graph

_KERAS, _YOLO = "keras", "yolo"
# ns of the host for each value of a picture and of a result that a script converts between float and int8.
CONVERSION_NS = {
    (_KERAS, "desktop"): 14.6, (_KERAS, "laptop"): 14.6, (_KERAS, "raspberry_pi_4"): 38.0,
    (_YOLO, "raspberry_pi_4"): 9.0, (_YOLO, "raspberry_pi_5"): 4.0, (_YOLO, "jetson_nano"): 33.0,
}  # fmt: skip
_ORDINARY_NS = statistics.median(CONVERSION_NS.values())
# The hosts on which the networks of the first table were timed: presets. The Raspberry Pi's link behaves like USB 2.
_NETWORK_HOSTS = {"desktop": "usb-desktop", "laptop": "usb-desktop", "raspberry_pi_4": "usb2"}
_DETECTOR_HOSTS = {
    ("raspberry_pi_4", "usb"): "usb",
    ("raspberry_pi_5", "usb"): "usb-pi5",
    ("jetson_nano", "pcie"): "pcie",
}
_BY_LINK = {"usb": "usb-desktop", "usb2": "usb2", "pcie": "pcie"}
# Fitted, together with its conversion, to the two published rows of this host: its PCIe link is this many times slower.
_NANO_NS_PER_MIB = 8_000_000
_KERAS_SOURCE = "Keras networks"
# Constants of a preset as they would be without a source: by the source's first words and the preset.
_WITHOUT: dict[tuple[str, str], dict[str, int]] = {
    # First inference of 241 models on x86-64; and any op as an ADD of two activations.
    (_KERAS_SOURCE, "usb-desktop"): {
        "stream_ns_per_mib": 2_320_000, "instruction_ns_per_mib": 2_320_000, "moved_permille": 1000
    },
    (_KERAS_SOURCE, "usb2"): {"moved_permille": 1000},
    # Channels as they are.
    ("Ultralytics guide", "usb"): {"written_channels": 1},
    ("Ultralytics guide", "usb-pi5"): {"written_channels": 1},
    ("github.com/jveitchmichaelis", "pcie"): {"stream_ns_per_mib": 2_710_000, "instruction_ns_per_mib": 2_710_000},
}  # fmt: skip
_NETWORK_COLUMNS = {"model", "host", "ms_per_inference"}
_DETECTOR_COLUMNS = {"source", "model", "input_px", "host", "link", "clock", "ms"}
_FEW_CLASSES = 4
_YOLO_NAME = re.compile(r"yolo(v5|v8|11)([nsml])")
_LITE_NAME = re.compile(r"efficientdet[-_]?lite([0-4])")


@dataclass(frozen=True, slots=True)
class Row:
    """A published time.

    label: of the row. script: what the host did, as in a key of `CONVERSION_NS`. stage_ms: predicted, without what the host
    converts. unfitted_ms: the same, with what was fitted to the row's source undone. values: that the host converts.
    """

    source: str
    label: str
    script: str
    host: str
    stage_ms: float
    unfitted_ms: float
    values: int
    measured_ms: float

    @property
    def key(self) -> tuple[str, str]:
        return self.script, self.host

    @property
    def conversion_ns(self) -> float:
        return CONVERSION_NS.get(self.key, _ORDINARY_NS)

    def predicted_ms(self, conversion_ns: float) -> float:
        return self.stage_ms + self.values * conversion_ns / 1e6

    def error(self, conversion_ns: float) -> float:
        return self.predicted_ms(conversion_ns) / self.measured_ms - 1

    def unfitted_error(self, conversion_ns: float) -> float:
        return (self.unfitted_ms + self.values * conversion_ns / 1e6) / self.measured_ms - 1


def read_table(path: Path, columns: set[str]) -> list[dict[str, str]]:
    """The rows of a CSV file. Raises MeasurementError where it cannot be read or has other columns."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise MeasurementError(f"cannot be read ({error})", str(path), "give a CSV file") from error
    if not rows or not columns <= set(rows[0]):
        raise MeasurementError(f"has no columns {', '.join(sorted(columns))}", str(path), "give such a file")
    return rows


def number(record: Mapping[str, str], column: str, path: Path) -> float:
    """A cell as a number above 0. Raises MeasurementError for another text."""
    try:
        value = float(record[column])
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise MeasurementError(f"column {column} holds '{record[column]}'", str(path), "give a number above 0")
    return value


def integer_ops(graph: Graph) -> OpSet:
    """All ops but those that convert a picture or a result between float and integer: the host does that."""

    def converts(k: int) -> bool:
        op = graph.ops[k]
        ends = {*graph.inputs, *graph.outputs}
        return op.type in ("QUANTIZE", "DEQUANTIZE") and any(
            t in ends and graph.tensors[t].dtype == "float32" for t in (*op.inputs, *op.outputs)
        )

    return op_set(k for k in range(len(graph.ops)) if not converts(k))


def values_of(graph: Graph) -> int:
    """Values of all inputs and outputs of a model."""
    return sum(math.prod(graph.tensors[t].shape or ()) for t in (*graph.inputs, *graph.outputs))


def stage_ms(graph: Graph, hardware: Hardware) -> float:
    return SegmentCosts(graph, hardware).terms(integer_ops(graph)).stage_ns / 1e6


def without(source: str, hardware: Hardware) -> Hardware:
    """The hardware without what was fitted to a source."""
    preset = hardware.name.partition(":")[0]
    changed = (c for (start, name), c in _WITHOUT.items() if name == preset and source.startswith(start))
    return hardware.changed(next(changed, {}))


@cache
def network(name: str, folder: Path) -> Graph | None:
    """A Keras network by its name: a file of the folder, or made; None where there is neither."""
    found = sorted(folder.rglob(f"{name}_int8.tflite"))
    if found:
        return load_graph(found[0])
    return read_graph(mobilenet_v1(1.0, 224), name=name) if name == "MobileNet" else None


def network_rows(path: Path, folder: Path) -> list[Row]:
    """The rows whose network and host are known."""
    rows = []
    for record in read_table(path, _NETWORK_COLUMNS):
        graph = network(record["model"], folder)
        preset = _NETWORK_HOSTS.get(record["host"])
        if graph is not None and preset is not None:
            hardware = load_hardware(preset)
            rows.append(
                Row(
                    _KERAS_SOURCE, f"{record['model']:18} {record['host']:15}", _KERAS, record["host"],
                    stage_ms(graph, hardware), stage_ms(graph, without(_KERAS_SOURCE, hardware)), values_of(graph),
                    number(record, "ms_per_inference", path),
                )
            )  # fmt: skip
    return rows


@cache
def detector(name: str, size: int, classes: int) -> Graph | None:
    """A detector by its name, as exported in the years of the published rows; None for another model."""
    yolo, lite = _YOLO_NAME.fullmatch(name), _LITE_NAME.fullmatch(name)
    if lite:
        data = efficientdet_lite(int(lite[1]), size=size)
    elif yolo is None:
        return None
    elif yolo[1] == "v5":
        data = yolov5(yolo[2], size, classes=classes, release="5.0")
    else:
        data = (
            yolo11(yolo[2], size, classes=classes)
            if yolo[1] == "11"
            else yolov8(yolo[2], size, classes=classes, release="8.0")
        )
    return read_graph(data, name=name)


def detector_hardware(host: str, link: str, clock: str) -> Hardware:
    """The hardware of a row. clock: std or max; another text is read as max."""
    hardware = load_hardware(_DETECTOR_HOSTS.get((host, link), _BY_LINK.get(link, "usb")))
    if host == "jetson_nano":
        hardware = hardware.changed({"stream_ns_per_mib": _NANO_NS_PER_MIB, "instruction_ns_per_mib": _NANO_NS_PER_MIB})
    return hardware.at_clock(clock if clock in ("std", "max") else "max")


def detector_rows(path: Path) -> list[Row]:
    """The rows whose model can be made."""
    rows = []
    for record in read_table(path, _DETECTOR_COLUMNS):
        classes = _FEW_CLASSES if "few classes" in record["source"] else 80
        graph = detector(record["model"], round(number(record, "input_px", path)), classes)
        if graph is not None:
            host, clock = record["host"], record["clock"]
            label = f"{record['model']} {record['input_px']} {host} {record['link']}:{clock}"
            hardware, source = detector_hardware(host, record["link"], clock), _short(record["source"])
            rows.append(
                Row(
                    source, f"{label:42}", _YOLO, host, stage_ms(graph, hardware),
                    stage_ms(graph, without(source, hardware)), values_of(graph), number(record, "ms", path),
                )
            )  # fmt: skip
    return rows


def _short(source: str) -> str:
    return source.split(",")[0].split(" (")[0].strip()


def fitted_ns(rows: Sequence[Row]) -> float:
    """The conversion that makes the median of the rows' errors 0, at least 0. rows: at least one."""
    return max(0.0, statistics.median((row.measured_ms - row.stage_ms) * 1e6 / row.values for row in rows))


def conversions_without(rows: Sequence[Row], source: str) -> dict[tuple[str, str], float]:
    """The conversion of each script and host, fitted without a source. What only this source has takes the others' median."""
    left = [row for row in rows if row.source != source]
    fitted = {key: fitted_ns([row for row in left if row.key == key]) for key in sorted({row.key for row in left})}
    middle = statistics.median(fitted.values()) if fitted else _ORDINARY_NS
    return {row.key: fitted.get(row.key, middle) for row in rows}


def score_rows(name: str, rows: Sequence[Row], among: Sequence[Row]) -> list[Sample]:
    """Print each row's prediction, and the errors with each source left out of the fit. among: the rows of that fit."""
    samples: list[Sample] = []
    for row in rows:
        predicted = row.predicted_ms(row.conversion_ns)
        print(
            f"{row.label} predicted {predicted:7.2f} measured {row.measured_ms:7.2f} ms "
            f"{100 * row.error(row.conversion_ns):+6.1f} %  (host {row.values * row.conversion_ns / 1e6:5.2f})"
        )
        samples.append({"score": name, "row": " ".join(row.label.split()), "source": row.source,
                        "predicted_ms": predicted, "measured_ms": row.measured_ms})  # fmt: skip
    if not rows:
        print("no row has a known model and host")
        return samples
    errors = [abs(row.error(row.conversion_ns)) for row in rows]
    print(f"{name}: mean error {100 * statistics.fmean(errors):.1f} %, largest {100 * max(errors):.1f} %")
    for source in dict.fromkeys(row.source for row in rows):
        left_out = [row for row in rows if row.source == source]
        conversions = conversions_without(among, source)
        held = [abs(row.unfitted_error(conversions[row.key])) for row in left_out]
        print(f"  left out of the fit: {source[:70]}: mean {100 * statistics.fmean(held):.1f} % over {len(held)}")
    return samples


def score_single(networks: Path | None, detectors: Path | None, folder: Path | None) -> list[Sample]:
    """Print and return the scores of one or both tables. folder: with the files of the networks."""
    keras = network_rows(networks, folder) if networks and folder else []
    yolo = detector_rows(detectors) if detectors else []
    samples: list[Sample] = []
    if networks:
        samples += score_rows("usb", keras, [*keras, *yolo])
    if detectors:
        samples += score_rows("detectors", yolo, [*keras, *yolo])
    return samples
