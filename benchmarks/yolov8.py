"""YOLOv8 as Ultralytics' export for the Edge TPU writes it: by onnx2tf, full-integer with int8 at both ends.

Release 8.4 has the ops of a file that Ultralytics 8.4.190 exported, in their order. Release 8.0 has the counts of the
operation logs of 2023 (257 ops, too: 19 CONCATENATION, 60 MUL, 20 STRIDED_SLICE, 5 TRANSPOSE, 5 RESHAPE, in
github.com/ultralytics/ultralytics issue 4089): boxes and classes of a level are joined before levels are, and split
again. The order of its tail follows from the network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from converted import Converted, Window

if TYPE_CHECKING:
    from collections.abc import Sequence

# Multiples of depth and width, and the most channels before the multiple.
_VARIANTS = {"n": (0.33, 0.25, 1024), "s": (0.33, 0.50, 1024), "m": (0.67, 0.75, 768), "l": (1.0, 1.0, 512)}
_STRIDES = (8, 16, 32)  # pixels for each cell, by level
_BINS = 16  # of each side's distance to its cell, whose distribution the head gives
_SIDES = 4


def yolov8(variant: str = "n", size: int = 320, *, classes: int = 80, release: str = "8.4") -> bytes:
    """variant: n, s, m or l. size: of the square picture in pixels, a multiple of 32. release: 8.0 or 8.4.

    Raises ValueError for a size that the strides do not divide, and KeyError for an unknown variant or release.
    """
    if size < _STRIDES[-1] or size % _STRIDES[-1]:
        raise ValueError(f"YOLOv8 takes sizes that are multiples of {_STRIDES[-1]}, not {size}")
    net = _RELEASES[release](*_VARIANTS[variant])
    levels = net.neck(*net.backbone(net.input((1, size, size, 3))))
    return net.file(net.head(levels, classes))


class YOLO(Converted):
    """What YOLOv8 shares with its successors."""

    def __init__(self, depth: float, width: float, most: int) -> None:
        super().__init__()
        self.depth, self.width, self.most = depth, width, most

    def channels(self, channels: int) -> int:
        """After the multiple of width."""
        return -(-int(min(channels, self.most) * self.width) // 8) * 8

    def repeats(self, count: int) -> int:
        return max(round(count * self.depth), 1)

    def activated(self, x: int, channels: int, kernel: int = 1, stride: int = 1) -> int:
        """A convolution and SiLU. channels: as they are."""
        if stride == 1:
            return self.silu(self.conv2d(x, channels, Window(kernel)))
        window = Window(kernel, stride, padding="VALID")
        return self.silu(self.conv2d(self.pad(x, kernel // 2), channels, window))

    def halved(self, x: int, channels: int) -> int:
        return self.activated(x, self.channels(channels), 3, 2)

    def bottleneck(self, x: int, channels: int, inner: int, *, shortcut: bool) -> int:
        made = self.activated(self.activated(x, inner, 3), channels, 3)
        return self.combined("ADD", x, made) if shortcut else made

    def pooled(self, x: int) -> int:
        """Spatial pyramid pooling: three equal pools one after the other."""
        channels = self.shape(x)[-1]
        parts = [self.activated(x, channels // 2)]
        for _ in range(3):
            parts.append(self.max_pool(parts[-1], 5))
        return self.activated(self.concatenated(parts), channels)

    def raised(self, x: int, finer: int) -> int:
        """x with twice the side, joined to a finer picture. x is converted to the scale of the joined picture: its other
        reader has another.
        """
        _, rows, columns, _ = self.shape(x)
        doubled = self.resized(self.requantised(x), 2 * rows, 2 * columns, half_pixels=True)
        return self.concatenated([doubled, finer])

    def distances(self, levels: Sequence[int]) -> int:
        """Boxes of all levels (1, 64, boxes) as distances of their four sides (1, 4, boxes), in cells."""
        joined = self.concatenated(levels, axis=2) if len(levels) > 1 else levels[0]
        boxes = self.shape(joined)[-1]
        likely = self.softmax(self.transposed(self.reshaped(joined, (1, _SIDES, _BINS, boxes)), (0, 1, 3, 2)))
        return self.expected(self.conv2d(likely, 1), boxes)

    def expected(self, x: int, boxes: int) -> int:
        return self.reshaped(x, (1, _SIDES, boxes))

    def corners_to_boxes(self, distances: int) -> int:
        """Centres and extents of boxes, (1, 4, boxes) in cells."""
        boxes = self.shape(distances)[-1]
        cells = self.small((1, 2, boxes))
        low = self.combined("SUB", cells, self.sliced(distances, 1, 0, 2))
        high = self.combined("ADD", self.sliced(distances, 1, 2, 4), cells)
        centre = self.combined("MUL", self.combined("ADD", low, high), self.small(()))
        return self.concatenated([centre, self.combined("SUB", high, low)], axis=1)

    def scored(self, boxes: int, classes: int) -> int:
        """The output: boxes and the probabilities of their classes, in one scale."""
        return self.concatenated([boxes, self.requantised(self.logistic(classes))], axis=1)

    def by_cell(self, x: int) -> int:
        """A level's numbers (1, side, side, numbers) as (1, numbers, cells)."""
        _, rows, columns, numbers = self.shape(x)
        return self.reshaped(self.transposed(x, (0, 3, 1, 2)), (1, numbers, rows * columns))

    def box_branch(self, x: int, finest: int) -> int:
        """finest: channels of the finest level, which set those of all branches."""
        channels = max(16, finest // 4, _SIDES * _BINS)
        return self.conv2d(self.activated(self.activated(x, channels, 3), channels, 3), _SIDES * _BINS)

    def class_branch(self, x: int, finest: int, classes: int) -> int:
        channels = max(finest, min(classes, 100))
        return self.conv2d(self.activated(self.activated(x, channels, 3), channels, 3), classes)


class _YOLOv8(YOLO):
    def backbone(self, x: int) -> tuple[int, int, int]:
        """Features at strides 8, 16 and 32."""
        x = self._c2f(self.halved(self.halved(x, 64), 128), 128, 3, shortcut=True, halves_apart=True)
        fine = self._c2f(self.halved(x, 256), 256, 6, shortcut=True)
        middle = self._c2f(self.halved(fine, 512), 512, 6, shortcut=True)
        return fine, middle, self.pooled(self._c2f(self.halved(middle, 1024), 1024, 3, shortcut=True))

    def neck(self, fine: int, middle: int, coarse: int) -> list[int]:
        x = self._c2f(self.raised(coarse, middle), 512, 3)
        first = self._c2f(self.raised(x, fine), 256, 3)
        second = self._c2f(self.concatenated([self.halved(first, 256), x]), 512, 3)
        third = self._c2f(self.concatenated([self.halved(second, 512), coarse]), 1024, 3)
        return [first, second, third]

    def _c2f(self, x: int, channels: int, repeats: int, *, shortcut: bool = False, halves_apart: bool = False) -> int:
        """halves_apart: the converter writes the slice of the first half where it is read, as it does in the first block
        alone.
        """
        whole = self.channels(channels)
        inner = whole // 2
        x = self.activated(x, whole)
        first = None if halves_apart else self.sliced(x, 3, 0, inner)
        parts = [self.sliced(x, 3, inner, whole)]
        for _ in range(self.repeats(repeats)):
            parts.append(self.bottleneck(parts[-1], inner, inner, shortcut=shortcut))
        first = self.sliced(x, 3, 0, inner) if first is None else first
        return self.activated(self.concatenated([first, *parts]), whole)

    def head(self, levels: Sequence[int], classes: int) -> int:
        """The coarsest level first; the finest level's classes come last, behind the boxes."""
        finest = self.shape(levels[0])[-1]
        boxes: list[int] = []
        scores: list[int] = []
        for level, x in reversed(list(enumerate(levels))):
            boxes.insert(0, self.by_cell(self.box_branch(x, finest)))
            if level:
                scores.insert(0, self.by_cell(self.class_branch(x, finest, classes)))
        found = self.corners_to_boxes(self.distances(boxes))
        found = self.combined("MUL", found, self.small((1, 1, self.shape(found)[-1])))
        scores.insert(0, self.by_cell(self.class_branch(levels[0], finest, classes)))
        return self.scored(found, self.concatenated(scores, axis=2))


class _YOLOv8Of2023(_YOLOv8):
    """Boxes are in parts of the picture's side."""

    def head(self, levels: Sequence[int], classes: int) -> int:
        finest = self.shape(levels[0])[-1]
        each = []
        for x in levels:
            branches = [self.box_branch(x, finest), self.class_branch(x, finest, classes)]
            each.append(self.by_cell(self.concatenated(branches)))
        joined = self.concatenated(each, axis=2)
        found = self.corners_to_boxes(self.distances([self.sliced(joined, 1, 0, _SIDES * _BINS)]))
        strides = self.combined("MUL", found, self.small((1, 1, self.shape(found)[-1])))
        parts = self.combined("MUL", strides, self.small((1, _SIDES, 1)))
        return self.scored(parts, self.sliced(joined, 1, _SIDES * _BINS, _SIDES * _BINS + classes))

    def expected(self, x: int, boxes: int) -> int:
        return self.reshaped(self.transposed(x, (0, 3, 1, 2)), (1, _SIDES, boxes))


_RELEASES = {"8.0": _YOLOv8Of2023, "8.4": _YOLOv8}
