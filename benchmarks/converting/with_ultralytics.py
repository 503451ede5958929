"""Exports a YOLO of random weights to int8, in an environment that has Ultralytics and what this format needs.

    python with_ultralytics.py FORMAT NETWORK PIXELS OUT

FORMAT is `tflite` (LiteRT) or `saved_model` (onnx2tf and TensorFlow; its file for full-integer devices is taken, which
`format=edgetpu` gives to the Edge TPU compiler). It is calibrated on the two pictures that come with Ultralytics.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import ultralytics

_SEED = 7
_CLASSES = 80
# onnx2tf calibrates on the pictures it is given, but Ultralytics wants to fetch this file first if it isn't there.
_SAMPLE = Path("calibration_image_sample_data_20x128x128x3_float32.npy")


def calibration() -> Path:
    """A data set in the current folder, of the pictures in Ultralytics' package."""
    images, labels = Path("set/images"), Path("set/labels")
    images.mkdir(parents=True)
    labels.mkdir()
    for picture in sorted((Path(ultralytics.__file__).parent / "assets").glob("*.jpg")):
        shutil.copy(picture, images)
        (labels / f"{picture.stem}.txt").write_text("0 0.5 0.5 0.2 0.2\n", encoding="utf-8")
    names = "".join(f"  {k}: class {k}\n" for k in range(_CLASSES))
    described = Path("set.yaml")
    described.write_text(
        f"path: {Path('set').resolve()}\ntrain: images\nval: images\nnames:\n{names}", encoding="utf-8"
    )
    return described


def main() -> None:
    kind, name, pixels, out = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    np.save(_SAMPLE, np.random.default_rng(_SEED).random((20, 128, 128, 3), np.float32))
    torch.manual_seed(_SEED)
    made = ultralytics.YOLO(f"{name}.yaml").export(
        format=kind, imgsz=pixels, int8=True, data=str(calibration()), batch=1, device="cpu"
    )
    folder = Path(made)
    shutil.copy(next(folder.glob("*_full_integer_quant.tflite")) if folder.is_dir() else folder, out)


if __name__ == "__main__":
    main()
