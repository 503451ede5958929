"""YOLOv8 as Ultralytics' export for the Edge TPU writes it: by onnx2tf, full-integer with int8 at both ends.

Release 8.4 has the ops of a file that Ultralytics 8.4.190 exported, in their order. Release 8.0 has the counts of the
operation logs of 2023 (257 ops, too: 19 CONCATENATION, 60 MUL, 20 STRIDED_SLICE, 5 TRANSPOSE, 5 RESHAPE, in
github.com/ultralytics/ultralytics issue 4089): boxes and classes of a level are joined before levels are, and split
again. The order of its tail follows from the network.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from yolo import BINS, SIDES, YOLO, checked_size

if TYPE_CHECKING:
    from collections.abc import Sequence

# Multiples of depth and width, and the most channels before the multiple.
_VARIANTS = {"n": (0.33, 0.25, 1024), "s": (0.33, 0.50, 1024), "m": (0.67, 0.75, 768), "l": (1.0, 1.0, 512)}


def yolov8(variant: str = "n", size: int = 320, *, classes: int = 80, release: str = "8.4") -> bytes:
    """variant: n, s, m or l. size: of the square picture in pixels, a multiple of 32. release: 8.0 or 8.4.

    Raises ValueError for a size that the strides do not divide, and KeyError for an unknown variant or release.
    """
    side = checked_size("YOLOv8", size)
    net = _RELEASES[release](*_VARIANTS[variant])
    levels = list(net.neck(*net.backbone(net.input((1, side, side, 3)))))
    return net.file(net.head(levels, classes))


class _YOLOv8(YOLO):
    def backbone(self, x: int) -> tuple[int, int, int]:
        """Features at strides 8, 16 and 32."""
        x = self._c2f(self.halved(self.halved(x, 64), 128), 128, 3, shortcut=True, halves_apart=True)
        fine = self._c2f(self.halved(x, 256), 256, 6, shortcut=True)
        middle = self._c2f(self.halved(fine, 512), 512, 6, shortcut=True)
        return fine, middle, self.pooled(self._c2f(self.halved(middle, 1024), 1024, 3, shortcut=True))

    def joining(self, x: int, channels: int) -> int:
        return self._c2f(x, channels, 3)

    def _c2f(self, x: int, channels: int, repeats: int, *, shortcut: bool = False, halves_apart: bool = False) -> int:
        """halves_apart: as the converter writes the first block alone."""
        whole = self.channels(channels)
        inner = whole // 2
        block = partial(self.bottleneck, channels=inner, inner=inner, shortcut=shortcut)
        return self.split_block(x, whole, inner, [block] * self.repeats(repeats), halves_apart=halves_apart)


class _YOLOv8Of2023(_YOLOv8):
    """Boxes are in parts of the picture's side."""

    def head(self, levels: Sequence[int], classes: int) -> int:
        finest = self.shape(levels[0])[-1]
        each = []
        for x in levels:
            branches = [self.box_branch(x, finest), self.class_branch(x, finest, classes)]
            each.append(self.by_cell(self.concatenated(branches)))
        joined = self.concatenated(each, axis=2)
        found = self.corners_to_boxes(self.distances([self.sliced(joined, 1, 0, SIDES * BINS)]))
        strides = self.combined("MUL", found, self.small((1, 1, self.shape(found)[-1])))
        parts = self.combined("MUL", strides, self.small((1, SIDES, 1)))
        scores = self.sliced(joined, 1, SIDES * BINS, SIDES * BINS + classes)
        return self.concatenated([parts, self.probabilities([scores])], axis=1)

    def expected(self, x: int, boxes: int) -> int:
        return self.reshaped(self.transposed(x, (0, 3, 1, 2)), (1, SIDES, boxes))


_RELEASES = {"8.0": _YOLOv8Of2023, "8.4": _YOLOv8}
