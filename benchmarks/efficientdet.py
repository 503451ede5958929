"""EfficientNet-Lite and the detectors EfficientDet-Lite0 to 4 that are built on it, as TFLite Model Maker exports them.

The networks are those of google/automl: RELU6 instead of swish, no squeeze-excite, plain sums in the feature pyramid.
Published logs of the vendor's compiler have the same counts of ops: 267 for Lite0 (by type), and 84 and 340 for the two
segments of Lite3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from converted import ONE, Converted, Window
from flatbuffers import flexbuffers

from balancer.tflite.flatbuffer import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

_RELU6 = Window(activation="RELU6")
# Of each stage of EfficientNet: repeats, kernel, stride, expansion, channels.
_STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip
_FEATURES = (2, 4, 6)  # the stages whose outputs enter the pyramid, at strides 8, 16 and 32
_LITE = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8))  # multiples of width and depth of Lite0 to 4
_ANCHORS = 9  # three scales by three ratios
_DETECTIONS = 25
# The nodes of one cell of the pyramid: the level (0 is the finest of five) and the nodes that are added, where 0 to 4
# are the cell's inputs.
_NODES = (
    (3, (3, 4)), (2, (2, 5)), (1, (1, 6)), (0, (0, 7)), (1, (1, 7, 8)), (2, (2, 6, 9)), (3, (3, 5, 10)), (4, (4, 11)),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Detector:
    """size: of the picture in pixels. channels, cells: of the pyramid. repeats: separable convolutions of a head."""

    size: int
    channels: int
    cells: int
    repeats: int


_DETECTORS = (
    _Detector(320, 64, 3, 3), _Detector(384, 88, 4, 3), _Detector(448, 112, 5, 3), _Detector(512, 160, 6, 4),
    _Detector(640, 224, 7, 4),
)  # fmt: skip


def efficientnet_lite(lite: int = 0, size: int = 224, *, classes: int = 1000) -> bytes:
    """The classifier EfficientNet-Lite0 to 4. size: of the square picture in pixels."""
    net = _EfficientNet()
    x = net.conv2d(net.backbone(net.input((1, size, size, 3)), *_LITE[lite])[-1], 1280, _RELU6)
    return net.file(net.softmax(net.dense_layer(net.averaged(x), classes)))


def efficientdet_lite(lite: int = 0, size: int | None = None, *, classes: int = 90) -> bytes:
    """The detector EfficientDet-Lite0 to 4 with its post-processing op. size: of the square picture in pixels; None for
    the published one.
    """
    net = _EfficientNet()
    detector = _DETECTORS[lite]
    side = size or detector.size
    x = net.requantised(net.input((1, side, side, 3), "UINT8"))
    stages = net.backbone(x, *_LITE[lite])
    levels = net.pyramid([stages[k] for k in _FEATURES], detector)
    scores = [net.reshaped(x, _boxes(net.shape(x), classes)) for x in net.head(levels, detector, _ANCHORS * classes)]
    places = [net.reshaped(x, _boxes(net.shape(x), 4)) for x in net.head(levels, detector, _ANCHORS * 4)]
    score = net.logistic(net.concatenated(scores, axis=1))
    return net.file(*net.detections(net.concatenated(places, axis=1), score, classes))


def _boxes(shape: Sequence[int], numbers: int) -> tuple[int, int, int]:
    _, rows, columns, _ = shape
    return (1, rows * columns * _ANCHORS, numbers)


class _EfficientNet(Converted):
    def backbone(self, x: int, width: float, depth: float) -> list[int]:
        """The output of each stage. The Lite networks keep the stem, and the depth of the first and last stage."""
        at, made = self.conv2d(x, 32, Window(3, 2, "RELU6")), []
        for number, (repeats, kernel, stride, expansion, channels) in enumerate(_STAGES):
            count = repeats if number in (0, len(_STAGES) - 1) else math.ceil(repeats * depth)
            for k in range(count):
                at = self._block(at, kernel, 1 if k else stride, expansion, _rounded(channels * width))
            made.append(at)
        return made

    def _block(self, x: int, kernel: int, stride: int, expansion: int, channels: int) -> int:
        """A linear bottleneck: widened, a depthwise convolution, narrowed, and added to its input where that fits."""
        inner = self.shape(x)[-1]
        wide = x if expansion == 1 else self.conv2d(x, expansion * inner, _RELU6)
        narrow = self.conv2d(self.depthwise_conv2d(wide, Window(kernel, stride, "RELU6")), channels)
        return self.combined("ADD", narrow, x) if stride == 1 and inner == channels else narrow

    def pyramid(self, features: Sequence[int], detector: _Detector) -> list[int]:
        """Five levels, each with half the side of the one before, through all cells."""
        coarse = self._halved(self.conv2d(features[-1], detector.channels))
        levels = [*features, coarse, self._halved(coarse)]
        for _ in range(detector.cells):
            levels = self._cell(levels, detector.channels)
        return levels

    def _cell(self, levels: Sequence[int], channels: int) -> list[int]:
        nodes, newest = list(levels), dict(enumerate(levels))
        sides = [self.shape(x)[1] for x in levels]
        for level, added in _NODES:
            parts = [self._resampled(nodes[k], sides[level], channels) for k in added]
            at = parts[0]
            for k, part in enumerate(parts[1:], start=2):
                at = self.combined("ADD", at, part, "RELU6" if k == len(parts) else "NONE")
            nodes.append(self.conv2d(self.depthwise_conv2d(at, Window(3)), channels))
            newest[level] = nodes[-1]
        return [newest[level] for level in range(len(levels))]

    def _resampled(self, x: int, side: int, channels: int) -> int:
        """As a picture of this side and number of channels."""
        if self.shape(x)[-1] != channels:
            x = self.conv2d(x, channels)
        if self.shape(x)[1] > side:
            return self._halved(x)
        return self.resized(x, side, side, half_pixels=False) if self.shape(x)[1] < side else x

    def _halved(self, x: int) -> int:
        return self.max_pool(x, 3, 2)

    def head(self, levels: Sequence[int], detector: _Detector, numbers: int) -> list[int]:
        """The numbers of each cell of each level. Levels share depthwise kernels and the last layer; the other kernels
        differ, since each level has a normalisation of its own that is folded into them.
        """
        channels = detector.channels
        shared = [self.depthwise_parameters(3, channels) for _ in range(detector.repeats + 1)]
        last, made = self.conv2d_parameters(1, channels, numbers), []
        for x in levels:
            for k in range(detector.repeats):
                x = self.conv2d(self.depthwise_conv2d(x, Window(3), shared[k]), channels, _RELU6)
            made.append(self.conv2d(self.depthwise_conv2d(x, Window(3), shared[-1]), numbers, ONE, last))
        return made

    def detections(self, places: int, scores: int, classes: int) -> list[int]:
        """Boxes, classes, scores and their number, by the custom op for non-maximum suppression."""
        anchors = self.parameter(np.ones((self.shape(places)[1], 4), np.float32), None)
        reads = [self._float(places), self._float(scores), anchors]
        options = {
            "max_detections": _DETECTIONS, "max_classes_per_detection": 1, "detections_per_class": _DETECTIONS,
            "use_regular_nms": False, "nms_score_threshold": 0.0, "nms_iou_threshold": 0.5, "num_classes": classes,
            "y_scale": 1.0, "x_scale": 1.0, "h_scale": 1.0, "w_scale": 1.0,
        }  # fmt: skip
        shapes = ((1, _DETECTIONS, 4), (1, _DETECTIONS), (1, _DETECTIONS), (1,))
        made = [self.tensor(shape, dtype="FLOAT32", scale=None) for shape in shapes]
        packed = np.frombuffer(bytes(flexbuffers.Dumps(options)), np.uint8)
        self.operator("CUSTOM:TFLite_Detection_PostProcess", reads, made, version=1, custom_options=packed)
        return made

    def _float(self, x: int) -> int:
        made = self.tensor(self.shape(x), dtype="FLOAT32", scale=None)
        self.operator("DEQUANTIZE", [x], [made], Table("DequantizeOptions", {}), version=2)
        return made


def _rounded(channels: float) -> int:
    """To a multiple of 8 that is not below nine tenths of the channels."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near + 8 if near < 0.9 * channels else near
