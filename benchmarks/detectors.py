"""Published networks of any size, as the bytes of full-integer TFLite files with real ops, options and shapes.

Weights are pseudo-random: nothing is detected. `balancer.load_graph` reads the bytes, as any interpreter does.
"""

from __future__ import annotations

from efficientdet import efficientdet_lite, efficientnet_lite
from mobilenet import mobilenet_v1
from yolo11 import yolo11
from yolov5 import yolov5
from yolov8 import yolov8

__all__ = ["efficientdet_lite", "efficientnet_lite", "mobilenet_v1", "yolo11", "yolov5", "yolov8"]
