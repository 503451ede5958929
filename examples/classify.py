"""A picture through a classifier cut into segments, a thread for each stage, beside the whole model.

    python examples/classify.py MODEL.tflite PICTURE LABELS.txt [--segments 4]

Prints the five likeliest labels of both, and exits 1 if they differ. Needs pillow.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import balancer

if TYPE_CHECKING:
    from collections.abc import Sequence

TOP = 5


def scores(model: Path, picture: Path, segments: int) -> Any:
    """What the model says of a picture, cut into so many segments that run on the CPU; one segment is the whole model."""
    plan = balancer.balance(model, segments, options=balancer.Options(stages=segments))
    with balancer.Pipeline(plan, "cpu") as pipeline:
        (spec,) = pipeline.interface.inputs
        (result,) = pipeline.run([{spec.name: balancer.load_image(picture, spec)}])
    assert isinstance(result, dict)  # an item that fails raises here: on_error is "stop"
    return next(iter(result.values()))


def best_labels(found: Any, labels: list[str]) -> list[str]:
    order = np.argsort(-found.ravel().astype(np.int64), kind="stable")
    return [labels[i] for i in order[:TOP]]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--segments", type=int, default=4)
    arguments = parser.parse_args(argv)
    labels = arguments.labels.read_text(encoding="utf-8").splitlines()
    whole = best_labels(scores(arguments.model, arguments.picture, 1), labels)
    cut = best_labels(scores(arguments.model, arguments.picture, arguments.segments), labels)
    for place, (one, other) in enumerate(zip(whole, cut, strict=True), start=1):
        print(f"{place}. whole: {one:40} {arguments.segments} segments: {other}")
    return 0 if whole == cut else 1


if __name__ == "__main__":
    raise SystemExit(main())
