"""What a YOLOv8 needs around it, in numpy: letterboxing before, decoding and non-maximum suppression behind.

Copy this file to use it. A model exported by Ultralytics takes RGB levels from 0 to 1 and gives one tensor
[1, 4 + classes, boxes]: for each box its centre, width and height, then a score for each class. In the exports for Edge
TPUs and LiteRT (`format=edgetpu` and `litert` of release 8.4), boxes are fractions of the input's width and height, since
one scale has to serve boxes and scores. In others, `saved_model` among them, they are in pixels of the input. YOLO11 has the
same output. A model "end to end", whose output is [1, boxes, 6], has its suppression inside and needs none of this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels: TypeAlias = NDArray[np.uint8]  # [height, width, 3]
    Reals: TypeAlias = NDArray[np.float64]
    Indices: TypeAlias = NDArray[np.intp]

GREY = 114  # of the margins: what Ultralytics trains with


@dataclass(frozen=True, slots=True)
class Letterbox:
    """Where a picture lies in the model's input, in pixels. Its own size, and its place and size in the input."""

    picture_width: int
    picture_height: int
    left: int
    top: int
    width: int
    height: int

    def to_picture(self, boxes: Reals) -> Reals:
        """Boxes [n, 4] as left, top, right, bottom in the input -> the same in the picture, and not beyond its edges."""
        scale = np.array([self.picture_width / self.width, self.picture_height / self.height] * 2)
        corner = np.array([self.left, self.top] * 2)
        edges = np.array([self.picture_width, self.picture_height] * 2)
        moved: Reals = np.clip((boxes - corner) * scale, 0, edges)
        return moved


@dataclass(frozen=True, slots=True)
class Detections:
    """Objects, the likeliest first. boxes: [n, 4], left, top, right, bottom in pixels of the picture."""

    boxes: Reals
    scores: Reals
    classes: Indices


def letterbox_of(shape: tuple[int, ...], height: int, width: int) -> Letterbox:
    """The largest place in an input of height x width that keeps the picture's proportions, in the middle.

    shape: the picture's, [height, width] and whatever comes behind.

    An odd row or column of margin goes below or to the right, as Ultralytics does it.
    """
    picture_height, picture_width = shape[:2]
    scale = min(height / picture_height, width / picture_width)
    inner_width = min(width, max(1, round(picture_width * scale)))
    inner_height = min(height, max(1, round(picture_height * scale)))
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    return Letterbox(picture_width, picture_height, left, top, inner_width, inner_height)


def letterboxed(pixels: Pixels, place: Letterbox, height: int, width: int) -> Pixels:
    """The picture resized to its place in an input of height x width, with grey margins."""
    made = np.full((height, width, 3), GREY, np.uint8)
    made[place.top : place.top + place.height, place.left : place.left + place.width] = resized(
        pixels, place.height, place.width
    )
    return made


def resized(pixels: Pixels, height: int, width: int) -> Pixels:
    """Bilinear, with the centres of pixels in the middle of them, as OpenCV does it. The time goes with the new size."""
    upper, lower, down = _neighbours(pixels.shape[0], height)
    before, after, right = _neighbours(pixels.shape[1], width)
    down, right = down[:, None, None], right[None, :, None]

    def row_mix(rows: Indices) -> NDArray[np.float32]:
        chosen = pixels[rows].astype(np.float32)
        mixed: NDArray[np.float32] = chosen[:, before] * (1 - right) + chosen[:, after] * right
        return mixed

    return np.rint(row_mix(upper) * (1 - down) + row_mix(lower) * down).astype(np.uint8)


def _neighbours(size: int, new_size: int) -> tuple[Indices, Indices, NDArray[np.float32]]:
    """For each new pixel along one axis the two old ones that it lies between, and the share of the second."""
    centres = np.clip((np.arange(new_size) + 0.5) * (size / new_size) - 0.5, 0, size - 1)
    first = centres.astype(np.intp)
    return first, np.minimum(first + 1, size - 1), (centres - first).astype(np.float32)


def decoded(output: NDArray[np.floating], unit: tuple[float, float], least_score: float) -> Detections:
    """The boxes whose best class has at least this score, in the output's order, in pixels of the input.

    output: [1, 4 + classes, boxes], real numbers. unit: pixels of the input for one unit of a box's x and width, and of
    its y and height: the input's width and height where boxes are fractions of them, 1 and 1 where they are in pixels.
    Raises ValueError for an output of another shape.
    """
    if output.ndim != 3 or output.shape[0] != 1 or not 5 <= output.shape[1] <= output.shape[2]:
        raise ValueError(f"{list(output.shape)} is not [1, 4 + classes, boxes]")
    all_scores = output[0, 4:]
    best = all_scores.argmax(axis=0)  # the first of equal ones
    scores = np.take_along_axis(all_scores, best[None], axis=0)[0]
    likely = np.flatnonzero(scores >= least_score)
    x, y, width, height = output[0][:4, likely].astype(np.float64) * np.array([*unit, *unit])[:, None]
    boxes = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=1)
    return Detections(boxes, scores[likely].astype(np.float64), best[likely])


def suppressed(found: Detections, most_overlap: float, most: int = 300) -> Detections:
    """Without the boxes that overlap a likelier one of the same class by more than `most_overlap`, the likeliest first.

    The overlap of two boxes is the area of their intersection over that of their union. Of equal scores the earlier box
    counts as likelier. At most `most` boxes are left.
    """
    order = np.argsort(-found.scores, kind="stable")
    boxes, scores, classes = found.boxes[order], found.scores[order], found.classes[order]
    areas = _areas(boxes[:, :2], boxes[:, 2:])
    left = np.ones(len(boxes), np.bool_)
    kept: list[int] = []
    for k in range(len(boxes)):
        if not left[k]:
            continue
        kept.append(k)
        if len(kept) == most:
            break
        shared = _areas(np.maximum(boxes[k, :2], boxes[k + 1 :, :2]), np.minimum(boxes[k, 2:], boxes[k + 1 :, 2:]))
        # Not divided by the union: it is 0 for two boxes without area.
        same = (classes[k + 1 :] == classes[k]) & (shared > most_overlap * (areas[k] + areas[k + 1 :] - shared))
        left[k + 1 :] &= ~same
    return Detections(boxes[kept], scores[kept], classes[kept])


def _areas(upper_left: Reals, lower_right: Reals) -> Reals:
    """Of boxes by their corners; 0 where a corner lies on the wrong side of the other."""
    sides: Reals = np.maximum(lower_right - upper_left, 0)
    return sides[:, 0] * sides[:, 1]
