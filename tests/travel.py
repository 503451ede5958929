"""Makes a plan's directory with compiled segments, for another environment to open: `python -m tests.travel DIR`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import balancer
from balancer.tflite import synth
from tests import edgetpu_compiler
from tests.shared import HERE, LITERT, ZOO


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        compiler = balancer.find_compiler(
            edgetpu_compiler.install(Path(scratch) / "bin"), cache=Path(scratch) / "cache"
        )
        made = Path(scratch) / "net.tflite"
        made.write_bytes(synth.fc(1800, layers=6))
        for model in [made, *([ZOO / "MobileNetV2_int8.tflite", *LITERT] if HERE else [])]:
            plan = balancer.balance(model, 4, options=balancer.Options(stages=4))
            balancer.save(balancer.refine(plan, compiler).plan, folder / model.stem)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
