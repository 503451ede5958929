"""A folder of pictures through a pipeline of simulated TPUs: true results, at the rate that the plan promises.

    python examples/pictures.py MODEL.tflite FOLDER [--tpus 4]

Prints the highest class of each picture, in order, and the rate. Needs pillow.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

import balancer

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tpus", type=int, default=4)
    arguments = parser.parse_args(argv)
    options = balancer.Options(stages=arguments.tpus)
    plan = balancer.balance(arguments.model, arguments.tpus, options=options)
    # On real TPUs: `plan = balancer.compile_plan(plan, balancer.find_compiler()).plan`, and leave "sim" out.
    with balancer.Pipeline(plan, "sim") as pipeline:
        (spec,) = pipeline.interface.inputs
        pictures = balancer.image_files(arguments.folder)
        start = time.perf_counter()
        results = pipeline.map({spec.name: balancer.load_image(picture, spec)} for picture in pictures)
        for picture, result in zip(pictures, results, strict=True):
            assert isinstance(result, dict)  # an item that fails raises here: on_error is "stop"
            (scores,) = result.values()
            print(f"{picture.name}: class {int(scores.argmax())}")
        rate = len(pictures) / (time.perf_counter() - start)
    print(
        f"{len(pictures)} pictures, {rate:.1f}/s with the loading of files, {arguments.tpus} stages on simulated TPUs"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
