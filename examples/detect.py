"""Objects in pictures, by a YOLOv8 cut into segments: boxes, classes, scores, and frames per second.

    python examples/detect.py PLAN [PICTURE|FOLDER ...] [--devices sim] [--frames 8] [--score 0.25] [--labels FILE]

PLAN is the directory that `balancer solve -o` wrote. Without --devices it runs on the Edge TPUs of this machine, which
need a compiled plan; `cpu` and `sim` need none. Pictures need pillow; without any, frames of coloured rectangles are made.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from yolo_boxes import Detections, decoded, letterbox_of, letterboxed, suppressed

import balancer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from yolo_boxes import Letterbox, Pixels

_FRAME = (480, 640)  # height and width of a made frame
_COARSEST_STEP = 0.1  # of scores, which are from 0 to 1


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which objects. score: the least. overlap: the most of two boxes of one class. in_pixels: whether a model with float
    outputs gives boxes in pixels of its input; else they are fractions of its width and height.
    """

    score: float = 0.25
    overlap: float = 0.7
    in_pixels: bool = False


@dataclass(frozen=True, slots=True)
class Detector:
    """What a detection model takes and gives. planes: whether its input is [1, 3, height, width]; else the colours come
    last. A quantisation is None for a float tensor.
    """

    input: str
    dtype: str
    planes: bool
    height: int
    width: int
    input_quantisation: balancer.Quantisation | None
    output: str
    output_quantisation: balancer.Quantisation | None

    def item(self, pixels: Pixels) -> dict[str, Any]:
        """A picture of the input's size as the pipeline takes it. YOLO takes levels from 0 to 1."""
        levels = pixels.astype(np.float32)[None] / np.float32(255)
        if self.planes:
            levels = levels.transpose(0, 3, 1, 2)
        quantised = self.input_quantisation
        return {self.input: quantised.integers(levels, self.dtype) if quantised else np.ascontiguousarray(levels)}

    def found_in(self, result: dict[str, Any], wanted: Wanted) -> Detections:
        """The likely boxes of one result, in pixels of the input. Raises ValueError where it is not YOLOv8's.

        Whether boxes of an integer output are fractions of the picture follows from the highest value that its scale
        reaches: its ratio to 1 is then smaller than that of the input's size to it.
        """
        made, in_pixels = result[self.output], wanted.in_pixels
        if made.dtype.kind != "f" and self.output_quantisation is None:
            raise ValueError(f"'{self.output}' has no scale")
        if self.output_quantisation is not None:
            highest = self.output_quantisation.reals(np.iinfo(made.dtype).max)
            made, in_pixels = self.output_quantisation.reals(made), bool(highest**2 > max(self.width, self.height))
        unit = (1.0, 1.0) if in_pixels else (float(self.width), float(self.height))
        return decoded(np.asarray(made, np.float32), unit, wanted.score)

    def doubts(self) -> str | None:
        """What keeps its scores from being of use, if something does."""
        step = self.output_quantisation.scale if self.output_quantisation else 0
        if step <= _COARSEST_STEP:
            return None
        return (
            f"the output's scale is {step:.3g}, so that the scores below {min(step / 2, 1):.2f} are 0; export with "
            "format=edgetpu, which gives boxes as fractions"
        )


def detector_of(pipeline: balancer.Pipeline) -> Detector:
    """Raises InputError where the model is no detector with one picture as its input and one output."""
    interface, where = pipeline.interface, pipeline.plan.file_name
    if len(interface.inputs) != 1 or len(interface.outputs) != 1:
        what = f"the model has {len(interface.inputs)} inputs and {len(interface.outputs)} outputs"
        raise balancer.InputError(what, where, "take a detector with one of each")
    (spec,), (output,) = interface.inputs, interface.outputs
    colours = [axis for axis in (3, 1) if len(spec.shape) == 4 and spec.shape[axis] == 3]
    if not colours or spec.shape[0] != 1:
        raise balancer.InputError(f"input {list(spec.shape)} takes no colour picture", where, "take another model")
    quantised = interface.quantisation
    if spec.dtype != "float32" and spec.name not in quantised:
        raise balancer.InputError(f"input '{spec.name}' has no scale", where, "convert the model again")
    planes = colours[0] == 1
    height, width = spec.shape[2:] if planes else spec.shape[1:3]
    return Detector(
        spec.name, spec.dtype, planes, height, width, quantised.get(spec.name), output, quantised.get(output)
    )


def detections(pipeline: balancer.Pipeline, frames: Iterable[Pixels], wanted: Wanted) -> Iterator[Detections]:
    """The objects in each frame, in the order of the frames. Raises InputError where the output is not YOLOv8's."""
    detector = detector_of(pipeline)
    places: deque[Letterbox] = deque()  # of the frames in flight

    def items() -> Iterator[dict[str, Any]]:
        for frame in frames:
            places.append(letterbox_of(frame.shape, detector.height, detector.width))
            yield detector.item(letterboxed(frame, places[-1], detector.height, detector.width))

    for result in pipeline.map(items()):
        assert isinstance(result, dict)  # an item that fails raises here: on_error is "stop"
        try:
            found = detector.found_in(result, wanted)
        except ValueError as error:
            what, where = f"output {error}", pipeline.plan.file_name
            raise balancer.InputError(what, where, "take a YOLOv8 or YOLO11, exported without NMS") from error
        yield placed(suppressed(found, wanted.overlap), places.popleft())


def placed(found: Detections, place: Letterbox) -> Detections:
    """With boxes in pixels of the picture instead of the input."""
    return Detections(place.to_picture(found.boxes), found.scores, found.classes)


def made_frames(count: int) -> Iterator[Pixels]:
    """Frames of coloured rectangles on grey, the same in every run."""
    dice = np.random.Generator(np.random.PCG64(0))
    for _ in range(count):
        frame = np.full((*_FRAME, 3), 128, np.uint8)
        for _ in range(12):
            (top, bottom), (left, right) = (np.sort(dice.integers(0, size + 1, 2)) for size in _FRAME)
            frame[top:bottom, left:right] = dice.integers(0, 256, 3)
        yield frame


def picture_files(given: Iterable[Path]) -> list[Path]:
    """The files as given, and those in folders by name."""
    return [file for path in given for file in (balancer.image_files(path) if path.is_dir() else [path])]


def taken_on(devices: Iterable[str]) -> str:
    """On what a rate was taken, in words."""
    words = {"cpu": "measured on this CPU", "sim": "simulated: Edge TPUs that compute, and wait, on this CPU"}
    found = dict.fromkeys(words.get(device, f"measured on Edge TPU {device}") for device in devices)
    return "; ".join(found)


def report(name: str, found: Detections, labels: Sequence[str]) -> None:
    """Print the objects of one picture."""
    print(f"{name}: {len(found.scores)} objects")
    for box, score, number in zip(found.boxes, found.scores, found.classes, strict=True):
        label = labels[number] if number < len(labels) else f"class {number}"
        print(f"  {label:14} {score:.3f}  " + "  ".join(f"{edge:7.1f}" for edge in box))


def arguments_of(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path, metavar="PLAN")
    parser.add_argument("pictures", type=Path, nargs="*", metavar="PICTURE")
    parser.add_argument("--devices", metavar="D,D", help="as for `balancer run`: cpu, sim, usb, or usb:0,usb:1")
    parser.add_argument(
        "--frames", type=int, default=8, metavar="K", help="to make where no picture is given; default 8"
    )
    parser.add_argument("--score", type=float, default=0.25, metavar="S", help="the least score of a box; default 0.25")
    parser.add_argument(
        "--overlap", type=float, default=0.7, metavar="S", help="the most of two boxes of one class; default 0.7"
    )
    parser.add_argument("--in-pixels", action="store_true", help="float outputs give boxes in pixels, not as fractions")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="names of the classes, one on each line")
    return parser.parse_args(argv)


def check(arguments: argparse.Namespace) -> None:
    """Raises InputError for numbers that no picture, no score and no overlap can have."""
    for option, value in (("--score", arguments.score), ("--overlap", arguments.overlap)):
        if not 0 <= value <= 1:
            raise balancer.InputError(f"{value:g} is not from 0 to 1", option, "give a share, such as 0.25")
    if arguments.frames < 1:
        raise balancer.InputError(f"{arguments.frames} is less than 1", "--frames", "give a number of frames")


def run(arguments: argparse.Namespace) -> None:
    """Print the objects of every picture, and then the rate. Raises BalancerError."""
    check(arguments)
    files = picture_files(arguments.pictures)
    frames = map(balancer.load_pixels, files) if files else made_frames(arguments.frames)
    names = [str(file) for file in files] or [f"frame {k}" for k in range(arguments.frames)]
    labels = arguments.labels.read_text(encoding="utf-8").splitlines() if arguments.labels else []
    wanted = Wanted(arguments.score, arguments.overlap, arguments.in_pixels)
    with balancer.Pipeline(arguments.plan, arguments.devices) as pipeline:
        if doubts := detector_of(pipeline).doubts():
            print(f"detect.py: {doubts}", file=sys.stderr)
        times = []
        for name, found in zip(names, detections(pipeline, frames, wanted), strict=True):
            times.append(time.perf_counter())
            report(name, found, labels)
        predicted, hardware = pipeline.plan.predicted, pipeline.plan.hardware.name
        if len(times) > 1:
            rate = (len(times) - 1) / (times[-1] - times[0])
            print(f"{rate:.1f} frames/s from the first result to the last ({taken_on(pipeline.devices)})")
    print(f"{predicted.throughput_per_s:.1f} inferences/s predicted on {predicted.tpus_used} Edge TPUs ({hardware})")


def main(argv: Sequence[str] | None = None) -> int:
    try:
        run(arguments_of(argv))
    except BrokenPipeError:  # whoever reads the output has read enough; what is still buffered goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (balancer.BalancerError, OSError, UnicodeDecodeError) as error:
        print(f"detect.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
