"""The folder with the real models beside the repository, and what is in it by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

SHARED = Path(__file__).resolve().parents[2] / "shared"
MODELS = SHARED / "models"
ZOO = MODELS / "zoo"
COMPILED = MODELS / "compiled"
HERE = MODELS.is_dir()

# The one source model that no CPU interpreter runs: its last op is the custom PosenetDecoderOp.
POSENET = MODELS / "posenet_mobilenet_v1_075_353_481_16_quant_decoder.tflite"

# Of today's converters; their constants stand outside the flatbuffer.
LITERT = tuple(sorted((MODELS / "litert").glob("*.tflite")))
SOURCES = tuple(sorted([*MODELS.glob("*.tflite"), *ZOO.glob("*.tflite")]))
RUNNABLE = tuple(path for path in (*SOURCES, *LITERT) if path != POSENET)
PACKAGES = tuple(sorted(COMPILED.rglob("*.tflite")))


def stem(path: object) -> str:
    """A short test id."""
    return path.stem if isinstance(path, Path) else str(path)


# Models with many ops, whose structures stand in smaller ones, too: tests that walk every op of a model take longest on them.
_MANY_OPS = {"DenseNet121_int8", "EfficientNetB0_int8", "NASNetMobile_int8", "ResNet101_int8"}


def many_ops_wide(paths: Iterable[Path]) -> list[Any]:
    """The paths as parameters of a test, which runs on the models with most ops only with `-m wide`."""
    return [pytest.param(path, marks=pytest.mark.wide) if path.stem in _MANY_OPS else path for path in paths]
