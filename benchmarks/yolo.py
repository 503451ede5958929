"""What YOLOv8 and YOLO11 have in common: layers, and the head whose boxes are distances without anchors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from converted import Converted, Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

STRIDES = (8, 16, 32)  # pixels for each cell, by level
BINS = 16  # of each side's distance to its cell, whose distribution the head gives
SIDES = 4


def checked_size(name: str, size: int) -> int:
    """Raises ValueError for a size that the strides do not divide."""
    if size < STRIDES[-1] or size % STRIDES[-1]:
        raise ValueError(f"{name} takes sizes that are multiples of {STRIDES[-1]}, not {size}")
    return size


class YOLO(Converted):
    """depth, width: multiples of the repeats and of the channels. most: channels before the multiple."""

    def __init__(self, depth: float, width: float, most: int) -> None:
        super().__init__()
        self.depth, self.width, self.most = depth, width, most

    def neck(self, fine: int, middle: int, coarse: int) -> Iterator[int]:
        """Features at strides 8, 16 and 32, each of which has seen the others. Each is written when it is asked for."""
        x = self.joining(self.raised(coarse, middle), 512)
        first = self.joining(self.raised(x, fine), 256)
        yield first
        second = self.joining(self.concatenated([self.halved(first, 256), x]), 512)
        yield second
        yield self.joining(self.concatenated([self.halved(second, 512), coarse]), 1024)

    def joining(self, x: int, channels: int) -> int:
        """A block of the neck. channels: before the multiple of width."""
        raise NotImplementedError

    def head(self, levels: Sequence[int], classes: int) -> int:
        """The output (1, 4 + classes, boxes). The coarsest level first; the finest level's classes come last, behind the
        boxes.
        """
        finest = self.shape(levels[0])[-1]
        boxes: list[int] = []
        scores: list[int] = []
        for level, x in reversed(list(enumerate(levels))):
            boxes.insert(0, self.by_cell(self.box_branch(x, finest)))
            if level:
                scores.insert(0, self.by_cell(self.class_branch(x, finest, classes)))
        found = self.decoded(boxes)
        scores.insert(0, self.by_cell(self.class_branch(levels[0], finest, classes)))
        return self.concatenated([found, self.probabilities(scores)], axis=1)

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

    def split_block(
        self, x: int, channels: int, inner: int, blocks: Sequence[Callable[[int], int]], *, halves_apart: bool = False
    ) -> int:
        """A convolution, whose second half goes through the blocks; both halves and all results are joined. inner: channels
        of a half. halves_apart: the converter writes the slice of the first half where it is read.
        """
        x = self.activated(x, 2 * inner)
        first = None if halves_apart else self.sliced(x, 3, 0, inner)
        parts = [self.sliced(x, 3, inner, 2 * inner)]
        for block in blocks:
            parts.append(block(parts[-1]))
        first = self.sliced(x, 3, 0, inner) if first is None else first
        return self.activated(self.concatenated([first, *parts]), channels)

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
        likely = self.softmax(self.transposed(self.reshaped(joined, (1, SIDES, BINS, boxes)), (0, 1, 3, 2)))
        return self.expected(self.conv2d(likely, 1), boxes)

    def expected(self, x: int, boxes: int) -> int:
        return self.reshaped(x, (1, SIDES, boxes))

    def corners_to_boxes(self, distances: int) -> int:
        """Centres and extents of boxes, (1, 4, boxes) in cells."""
        boxes = self.shape(distances)[-1]
        cells = self.small((1, 2, boxes))
        low = self.combined("SUB", cells, self.sliced(distances, 1, 0, 2))
        high = self.combined("ADD", self.sliced(distances, 1, 2, 4), cells)
        centre = self.combined("MUL", self.combined("ADD", low, high), self.small(()))
        return self.concatenated([centre, self.combined("SUB", high, low)], axis=1)

    def decoded(self, boxes: Sequence[int]) -> int:
        """Centres and extents (1, 4, boxes) in pixels. boxes: of each level."""
        found = self.corners_to_boxes(self.distances(boxes))
        return self.combined("MUL", found, self.small((1, 1, self.shape(found)[-1])))

    def probabilities(self, scores: Sequence[int]) -> int:
        """Of all classes (1, classes, boxes), in the scale of boxes. scores: of each level."""
        joined = self.concatenated(scores, axis=2) if len(scores) > 1 else scores[0]
        return self.requantised(self.logistic(joined))

    def by_cell(self, x: int) -> int:
        """A level's numbers (1, side, side, numbers) as (1, numbers, cells)."""
        _, rows, columns, numbers = self.shape(x)
        return self.reshaped(self.transposed(x, (0, 3, 1, 2)), (1, numbers, rows * columns))

    def box_branch(self, x: int, finest: int) -> int:
        """finest: channels of the finest level, which set those of all branches."""
        channels = max(16, finest // 4, SIDES * BINS)
        return self.conv2d(self.activated(self.activated(x, channels, 3), channels, 3), SIDES * BINS)

    def class_branch(self, x: int, finest: int, classes: int) -> int:
        channels = max(finest, min(classes, 100))
        return self.conv2d(self.activated(self.activated(x, channels, 3), channels, 3), classes)
