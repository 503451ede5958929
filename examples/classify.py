"""A picture through a classifier cut into segments, one thread a stage, beside the whole model.

    python examples/classify.py MODEL.tflite PICTURE LABELS.txt [--segments 4]

Prints the five likeliest labels of both, and exits 1 if they differ. Needs pillow.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

import balancer
from balancer.interpreter import Interpreter, open_interpreter
from balancer.workers import Failure, run_all

if TYPE_CHECKING:
    from collections.abc import Sequence

TOP = 5


class CpuStage:
    """One segment on the CPU: takes what it reads from the tensors so far, adds what it gives."""

    def __init__(self, segment: Any, model: bytes) -> None:
        self.takes = [t.tensor for t in segment.inputs]
        self.gives = [t.tensor for t in segment.outputs]
        self.interpreter: Interpreter = open_interpreter(model)

    def __call__(self, tensors: dict[str, Any]) -> dict[str, Any]:
        self.interpreter.run([tensors[name] for name in self.takes])
        return tensors | dict(zip(self.gives, self.interpreter.outputs(), strict=True))


def picture(path: Path, shape: tuple[int, ...]) -> Any:
    """The picture as the model takes it: uint8 RGB of the input's height and width."""
    with Image.open(path) as image:
        resized = image.convert("RGB").resize((shape[2], shape[1]))
    return np.asarray(resized, np.uint8)[None]


def best_labels(scores: Any, labels: list[str]) -> list[str]:
    order = np.argsort(-scores.ravel().astype(np.int64), kind="stable")
    return [labels[i] for i in order[:TOP]]


def classify_in_segments(model: Path, pixels: Any, segments: int) -> Any:
    """Scores from the chained segments of the best plan with so many stages."""
    with tempfile.TemporaryDirectory() as folder:
        plan = balancer.save(balancer.balance(model, segments, options=balancer.Options(stages=segments)), folder)
        stages = [CpuStage(s, (Path(folder) / str(s.file)).read_bytes()) for s in plan.segments]
    (result,) = run_all(stages, [{stages[0].takes[0]: pixels}])
    if isinstance(result, Failure):
        raise result.error
    return result[stages[-1].gives[0]]


def classify_whole(model: Path, pixels: Any) -> Any:
    interpreter = open_interpreter(model.read_bytes())
    interpreter.run([pixels])
    return interpreter.outputs()[0]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--segments", type=int, default=4)
    arguments = parser.parse_args(argv)
    graph = balancer.load_graph(arguments.model)
    pixels = picture(arguments.picture, graph.tensors[graph.inputs[0]].shape or ())
    labels = arguments.labels.read_text(encoding="utf-8").splitlines()
    whole = best_labels(classify_whole(arguments.model, pixels), labels)
    cut = best_labels(classify_in_segments(arguments.model, pixels, arguments.segments), labels)
    for place, (one, other) in enumerate(zip(whole, cut, strict=True), start=1):
        print(f"{place}. whole: {one:40} {arguments.segments} segments: {other}")
    return 0 if whole == cut else 1


if __name__ == "__main__":
    raise SystemExit(main())
