"""MobileNet v1 with any width and picture size."""

from __future__ import annotations

from converted import Converted, Window

# Channels and stride of each separable convolution (arXiv 1704.04861, table 1).
_BLOCKS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1),
    (1024, 2), (1024, 1),
)  # fmt: skip


def mobilenet_v1(width: float = 1.0, size: int = 224, *, classes: int = 1001) -> bytes:
    """The classifier. width: multiple of all channels. size: of the square picture in pixels."""
    net = Converted()
    x = net.conv2d(net.input((1, size, size, 3)), int(32 * width), Window(3, 2, "RELU6"))
    for channels, stride in _BLOCKS:
        x = net.depthwise_conv2d(x, Window(3, stride, "RELU6"))
        x = net.conv2d(x, int(channels * width), Window(activation="RELU6"))
    x = net.conv2d(net.average_pool(x), classes)
    return net.file(net.softmax(net.reshaped(x, (1, classes))))
