"""YOLO11 as Ultralytics 8.4's export for the Edge TPU writes it: by onnx2tf, full-integer with int8 at both ends.

The network has the ops of a file that Ultralytics 8.4.190 exported, in their order. The backbone ends with attention, whose
two BATCH_MATMUL the Edge TPU does not support.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from converted import Window
from yolo import YOLO, checked_size

from balancer.tflite.flatbuffer import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Multiples of depth and width, the most channels before the multiple, and whether all blocks have the deeper kind.
_VARIANTS = {
    "n": (0.50, 0.25, 1024, False), "s": (0.50, 0.50, 1024, False), "m": (0.50, 1.00, 512, True),
    "l": (1.00, 1.00, 512, True),
}  # fmt: skip
_BLOCKS = 2  # of each kind, before the multiple of depth
_HEAD_CHANNELS = 64  # channels of the attended half for each head of attention


def yolo11(variant: str = "n", size: int = 320, *, classes: int = 80) -> bytes:
    """variant: n, s, m or l. size: of the square picture in pixels, a multiple of 32.

    Raises ValueError for a size that the strides do not divide, and KeyError for an unknown variant.
    """
    side = checked_size("YOLO11", size)
    net = _YOLO11(*_VARIANTS[variant])
    levels = net.neck(*net.backbone(net.input((1, side, side, 3))))
    return net.file(net.scores_and_boxes(levels, classes))


class _YOLO11(YOLO):
    def __init__(self, depth: float, width: float, most: int, deep: bool) -> None:  # noqa: FBT001
        super().__init__(depth, width, most)
        self.deep = deep

    def backbone(self, x: int) -> tuple[int, int, int]:
        """Features at strides 8, 16 and 32."""
        x = self._c3k2(self.halved(self.halved(x, 64), 128), 256, share=0.25, halves_apart=True)
        fine = self._c3k2(self.halved(x, 256), 512, share=0.25)
        middle = self._c3k2(self.halved(fine, 512), 512, deep=True)
        coarse = self._c3k2(self.halved(middle, 1024), 1024, deep=True)
        return fine, middle, self._attending(self.pooled(coarse))

    def joining(self, x: int, channels: int) -> int:
        return self._c3k2(x, channels, deep=channels == 1024)

    def scores_and_boxes(self, levels: Iterable[int], classes: int) -> int:
        """The output (1, 4 + classes, boxes). The classes of a level follow it at once, boxes come last, the coarsest level
        first.
        """
        scores, kept = [], list[int]()
        for x in levels:
            kept.append(x)
            scores.append(self.by_cell(self.class_branch(x, self.shape(kept[0])[-1], classes)))
        likely, finest = self.probabilities(scores), self.shape(kept[0])[-1]
        boxes = [self.by_cell(self.box_branch(x, finest)) for x in reversed(kept)]
        return self.concatenated([self.decoded(boxes[::-1]), likely], axis=1)

    def class_branch(self, x: int, finest: int, classes: int) -> int:
        channels = max(finest, min(classes, 100))
        for _ in range(2):
            x = self.activated(self.silu(self.depthwise_conv2d(x, Window(3))), channels)
        return self.conv2d(x, classes)

    def _c3k2(
        self, x: int, channels: int, *, share: float = 0.5, deep: bool = False, halves_apart: bool = False
    ) -> int:
        """share: of the channels that go through each bottleneck. halves_apart: as the converter writes the first block
        alone.
        """
        whole = self.channels(channels)
        inner = int(whole * share)
        simple = partial(self.bottleneck, channels=inner, inner=inner // 2, shortcut=True)
        block = self._c3k if deep or self.deep else simple
        return self.split_block(x, whole, inner, [block] * self.repeats(_BLOCKS), halves_apart=halves_apart)

    def _c3k(self, x: int) -> int:
        """Two bottlenecks on half of the channels, beside a convolution."""
        channels = self.shape(x)[-1]
        inner = channels // 2
        at = self.activated(x, inner)
        for _ in range(2):
            at = self.bottleneck(at, inner, inner, shortcut=True)
        return self.activated(self.concatenated([at, self.activated(x, inner)]), channels)

    def _attending(self, x: int) -> int:
        """C2PSA: half of the channels go through blocks of attention and two convolutions."""
        whole = self.shape(x)[-1]
        inner = whole // 2
        x = self.activated(x, whole)
        first, at = self.sliced(x, 3, 0, inner), self.sliced(x, 3, inner, whole)
        for _ in range(self.repeats(_BLOCKS)):
            at = self.combined("ADD", at, self._attention(at))
            at = self.combined("ADD", at, self.conv2d(self.activated(at, 2 * inner), inner))
        return self.activated(self.concatenated([first, at]), whole)

    def _attention(self, x: int) -> int:
        """Queries and keys have half of the channels of values. Pictures are (1, heads, channels, cells) here."""
        _, rows, columns, channels = self.shape(x)
        heads, cells = channels // _HEAD_CHANNELS, rows * columns
        key = _HEAD_CHANNELS // 2
        all_three = self.transposed(self.conv2d(x, 2 * channels), (0, 3, 1, 2))
        all_three = self.reshaped(all_three, (1, heads, 2 * _HEAD_CHANNELS, cells))
        queries = self.combined("MUL", self.sliced(all_three, 2, 0, key), self.small(()))
        keys = self.sliced(all_three, 2, key, 2 * key)
        weights = self.softmax(self._product(queries, keys, (1, heads, cells, cells), adj_x=1))
        values = self.sliced(all_three, 2, 2 * key, 4 * key)
        mixed = self._picture(self._product(values, weights, self.shape(values), adj_y=1), rows, columns)
        # One kernel for each channel, as a convolution of groups.
        groups = self.conv2d_parameters(3, 1, channels)
        placed = self.conv2d(self._picture(values, rows, columns), channels, Window(3), groups)
        return self.conv2d(self.combined("ADD", mixed, placed), channels)

    def _product(self, x: int, y: int, shape: Sequence[int], *, adj_x: int = 0, adj_y: int = 0) -> int:
        """adj_x, adj_y: 1 where the last two axes of x and y change places first."""
        options = Table("BatchMatMulOptions", {"adj_x": adj_x, "adj_y": adj_y, "asymmetric_quantize_inputs": 0})
        return self.op("BATCH_MATMUL", [x, y], tuple(shape), options)

    def _picture(self, x: int, rows: int, columns: int) -> int:
        """(1, heads, channels, cells) as (1, rows, columns, all channels)."""
        _, heads, channels, _ = self.shape(x)
        return self.transposed(self.reshaped(x, (1, heads * channels, rows, columns)), (0, 2, 3, 1))
