"""YOLOv5 as Ultralytics' own exporter to TensorFlow writes it, full-integer with uint8 at both ends.

Counts of ops are those of published operation logs of the vendor's compiler: 294 ops of release 5.0 (Focus, SPP), 262
of release 6.2 (logs of YOLOv5n and YOLOv5s in github.com/jveitchmichaelis/edgetpu-yolo). Release 6.0 has the network of
6.2 with the head and the quantiser of 5.0. Which operands an older quantiser requantises depends on ranges that it saw;
only their number is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from converted import Converted, Window
from network import ACTIVATION, UNIT

if TYPE_CHECKING:
    from collections.abc import Sequence

# Multiples of depth and width.
_VARIANTS = {"n": (0.33, 0.25), "s": (0.33, 0.50), "m": (0.67, 0.75), "l": (1.0, 1.0)}
_ANCHORS = 3  # boxes for each cell of a level
_STRIDES = (8, 16, 32)  # pixels for each cell, by level


@dataclass(frozen=True, slots=True)
class _Release:
    """repeats: of the four C3 blocks of the backbone. focus: the picture is folded into channels first, and SPP comes
    before the last block. early_sigmoid: the head's first sigmoid works on whole levels. requantises: each operand of a
    concatenation has its own scale.
    """

    repeats: tuple[int, int, int, int]
    focus: bool
    early_sigmoid: bool
    requantises: bool


_RELEASES = {
    "5.0": _Release((3, 9, 9, 3), focus=True, early_sigmoid=True, requantises=True),
    "6.0": _Release((3, 6, 9, 3), focus=False, early_sigmoid=True, requantises=True),
    "6.2": _Release((3, 6, 9, 3), focus=False, early_sigmoid=False, requantises=False),
}


def yolov5(variant: str = "n", size: int = 320, *, classes: int = 80, release: str = "6.2") -> bytes:
    """variant: n, s, m or l. size: of the square picture in pixels, a multiple of 32. release: 5.0, 6.0 or 6.2.

    Raises ValueError for a size that the strides do not divide, and KeyError for an unknown variant or release.
    """
    if size < _STRIDES[-1] or size % _STRIDES[-1]:
        raise ValueError(f"YOLOv5 takes sizes that are multiples of {_STRIDES[-1]}, not {size}")
    return _YOLOv5(*_VARIANTS[variant], _RELEASES[release]).written(size, classes)


class _YOLOv5(Converted):
    def __init__(self, depth: float, width: float, release: _Release) -> None:
        super().__init__()
        self.depth, self.width, self.release = depth, width, release

    def written(self, size: int, classes: int) -> bytes:
        levels = self._neck(*self._backbone(self.requantised(self.input((1, size, size, 3), "UINT8"))))
        head = self._early_head if self.release.early_sigmoid else self._late_head
        made = [head(x, size // stride, classes) for x, stride in zip(levels, _STRIDES, strict=True)]
        if self.release.requantises:
            made = [made[0], *(self.requantised(x, UNIT) for x in made[1:])]
        boxes = self.concatenated(made, axis=1)
        scale = self.scales[boxes] or ACTIVATION
        return self.file(self.requantised(boxes, type(scale)(scale.step, scale.zero + 128), "UINT8"))

    def _backbone(self, x: int) -> tuple[int, int, int]:
        """Features at strides 8, 16 and 32."""
        release = self.release
        first = self._focused(x) if release.focus else self._conv(x, 64, 6, 2)
        x = self._c3(self._conv(first, 128, 3, 2), 128, release.repeats[0])
        fine = self._c3(self._conv(x, 256, 3, 2), 256, release.repeats[1])
        middle = self._c3(self._conv(fine, 512, 3, 2), 512, release.repeats[2])
        x = self._conv(middle, 1024, 3, 2)
        if release.focus:
            return fine, middle, self._c3(self._pooled(x), 1024, release.repeats[3], shortcut=False)
        return fine, middle, self._pooled(self._c3(x, 1024, release.repeats[3]))

    def _neck(self, fine: int, middle: int, coarse: int) -> tuple[int, int, int]:
        low = self._conv(coarse, 512)
        x = self._c3(self._joined(self._doubled(low), middle), 512, 3, shortcut=False)
        high = self._conv(x, 256)
        first = self._c3(self._joined(self._doubled(high), fine), 256, 3, shortcut=False)
        # A tensor that two concatenations read has the scale of the first one; the newer quantiser converts it for the
        # second.
        second = self._joined(self._conv(first, 256, 3, 2), self._again(high))
        second = self._c3(second, 512, 3, shortcut=False)
        third = self._joined(self._conv(second, 512, 3, 2), self._again(low))
        return first, second, self._c3(third, 1024, 3, shortcut=False)

    def _channels(self, channels: int) -> int:
        return -(-int(channels * self.width) // 8) * 8

    def _conv(self, x: int, channels: int, kernel: int = 1, stride: int = 1) -> int:
        """channels: before the multiple of width."""
        return self._activated(x, self._channels(channels), kernel, stride)

    def _activated(self, x: int, channels: int, kernel: int = 1, stride: int = 1) -> int:
        if stride == 1:
            return self.silu(self.conv2d(x, channels, Window(kernel)))
        padded = self.pad(x, 2 if kernel == 6 else kernel // 2)
        return self.silu(self.conv2d(padded, channels, Window(kernel, stride, padding="VALID")))

    def _focused(self, x: int) -> int:
        quarters = [self.every_second(x, row, column) for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
        return self._conv(self.concatenated(quarters), 64, 3)

    def _c3(self, x: int, channels: int, repeats: int, *, shortcut: bool = True) -> int:
        whole = self._channels(channels)
        inner = whole // 2
        at = self._activated(x, inner)
        for _ in range(max(round(repeats * self.depth), 1)):
            made = self._activated(self._activated(at, inner), inner, 3)
            at = self.combined("ADD", at, made) if shortcut else made
        beside = self._activated(x, inner)
        if self.release.requantises:
            beside = self.requantised(beside)
        return self._activated(self.concatenated([at, beside]), whole)

    def _pooled(self, x: int) -> int:
        """Spatial pyramid pooling: three pools beside each other, or three equal ones one after the other."""
        channels = self.shape(x)[-1]
        at = self._activated(x, channels // 2)
        if self.release.focus:
            pools = [self.max_pool(at, size) for size in (5, 9, 13)]
        else:
            pools = [self.max_pool(at, 5)]
            for _ in range(2):
                pools.append(self.max_pool(pools[-1], 5))
        return self._activated(self.concatenated([at, *pools]), channels)

    def _doubled(self, x: int) -> int:
        _, rows, columns, _ = self.shape(x)
        return self.resized(x, 2 * rows, 2 * columns, half_pixels=True)

    def _again(self, x: int) -> int:
        return x if self.release.requantises else self.requantised(x)

    def _joined(self, x: int, y: int) -> int:
        parts: Sequence[int] = [x, y]
        if self.release.requantises:
            parts = [self.requantised(p) for p in parts]
        return self.concatenated(parts)

    def _early_head(self, x: int, side: int, classes: int) -> int:
        """One level: (1, 3 * side * side boxes, 5 + classes)."""
        cells, numbers = side * side, 5 + classes
        x = self.reshaped(self.conv2d(x, _ANCHORS * numbers, Window(padding="VALID")), (1, cells, _ANCHORS, numbers))
        x = self.logistic(self.transposed(x, (0, 2, 1, 3)))
        shifted = self.combined("SUB", self._times(self.sliced(x, 3, 0, 2)), self.small(()))
        centre = self._times(self.combined("ADD", shifted, self.small((1, 1, cells, 2))))
        extent = self._times(self.sliced(x, 3, 2, 4))
        extent = self.combined("MUL", self.combined("MUL", extent, extent), self.small((1, _ANCHORS, 1, 2)))
        boxes = [self.combined("MUL", part, self.small((1, 2))) for part in (centre, extent)]
        rest = self.sliced(x, 3, 4, numbers)
        made = self.concatenated([*(self.requantised(part, UNIT) for part in boxes), rest])
        return self.reshaped(made, (1, _ANCHORS * cells, numbers))

    def _late_head(self, x: int, side: int, classes: int) -> int:
        """One level: (1, 3 * side * side boxes, 5 + classes)."""
        cells, numbers = side * side, 5 + classes
        x = self.reshaped(self.conv2d(x, _ANCHORS * numbers, Window(padding="VALID")), (1, cells, _ANCHORS, numbers))
        centre = self._times(self.logistic(self.sliced(x, 3, 0, 2)))
        centre = self._times(self.combined("ADD", centre, self.small((1, cells, 1, 2))))
        extent = self.logistic(self.sliced(x, 3, 2, 4))
        extent = self.combined("MUL", self.combined("MUL", extent, extent), self.small((1, 1, _ANCHORS, 2)))
        boxes = [self.combined("MUL", part, self.small((1, 2))) for part in (centre, extent)]
        rest = self.requantised(self.logistic(self.sliced(x, 3, 4, numbers)))
        return self.reshaped(self.concatenated([*boxes, rest]), (1, _ANCHORS * cells, numbers))

    def _times(self, x: int) -> int:
        """A multiple of the whole tensor."""
        return self.combined("MUL", x, self.small(()))
