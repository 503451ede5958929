"""Converts a PyTorch network of random weights to int8, in an environment that has litert-torch and ai-edge-quantizer.

    python with_litert_torch.py pytorch NETWORK PIXELS OUT

litert-torch converts to float32, and ai-edge-quantizer quantises the file. NETWORK is `small` or `MobileNetV2`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TypeAlias

import litert_torch
import numpy as np
import torch
from ai_edge_quantizer import quantizer, recipe
from torch import nn

_SEED = 7
_SAMPLES = 2
Act: TypeAlias = "nn.Module | None"


class Small(nn.Module):
    """A few kinds of ops: convolutions, an addition, a sigmoid, a concatenation, a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.point, self.last = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 8, 3, padding=1)
        self.dense = nn.Linear(24, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        stem = torch.relu(self.stem(image))
        added = stem + self.point(torch.relu(self.deep(stem)))
        joined = torch.cat([added, torch.sigmoid(self.last(added))], dim=1)
        return self.dense(joined.mean(dim=(2, 3)))


class Residual(nn.Module):
    """A branch whose output is added to its input."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image + self.branch(image)


def conv(channels: tuple[int, int], kernel: int, *, stride: int = 1, group: int = 1, act: Act = None) -> nn.Module:
    """A convolution with its normalisation. channels: in and out."""
    layer = nn.Conv2d(*channels, kernel, stride, kernel // 2, groups=group, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(channels[1], momentum=1.0), act or nn.Identity())


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)]


def mobilenet_v2() -> nn.Module:
    """Sandler et al., MobileNetV2 (CVPR 2018), table 2: expansion, channels, blocks, stride."""
    act, width = nn.ReLU6(), 32
    layers: list[nn.Module] = [conv((3, width), 3, stride=2, act=act)]
    table = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expansion, channels, blocks, first in table:
        for k in range(blocks):
            stride, wide = first if k == 0 else 1, width * expansion
            grown = [conv((width, wide), 1, act=act)] if expansion > 1 else []
            deep = conv((wide, wide), 3, stride=stride, group=wide, act=act)
            block = nn.Sequential(*grown, deep, conv((wide, channels), 1))
            layers.append(Residual(block) if stride == 1 and width == channels else block)
            width = channels
    return nn.Sequential(*layers, conv((width, 1280), 1, act=act), *head(1280))


NETWORKS = {"small": Small, "MobileNetV2": mobilenet_v2}


def network(name: str, images: list[np.ndarray]) -> nn.Module:
    """The network with the statistics of these images in its normalisations; without them activations fade to 0."""
    torch.manual_seed(_SEED)
    made = NETWORKS[name]().train()
    with torch.no_grad():
        made(torch.from_numpy(np.concatenate(images)))
    return made.eval()


def main() -> None:
    name, pixels, out = sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    plain = Path("float32.tflite")
    draw = np.random.default_rng(_SEED)
    images = [draw.random((1, 3, pixels, pixels), np.float32) for _ in range(_SAMPLES)]
    litert_torch.convert(network(name, images), (torch.from_numpy(images[0]),)).export(str(plain))
    tool = quantizer.Quantizer(str(plain))
    tool.load_quantization_recipe(recipe.static_wi8_ai8())
    found = tool.calibrate({"serving_default": [{"args_0": image} for image in images]})
    tool.quantize(calibration_result=found).export_model(str(out))


if __name__ == "__main__":
    main()
