"""Which ops the Edge TPU takes, and the reason for each that it does not take.

Sources: Axis' ARTPEC-7 page and the vendor's list in coral.ai/docs/edgetpu/models-intro ("Supported operations"),
compared with the ops that the compiler left outside the `edgetpu-custom-op` of real compiled files, and with published
operation logs. Only the compiler can tell for sure: it also refuses ops for reasons that are not published.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from balancer.graph import Tensor

_TAKEN = {
    "ADD", "AVERAGE_POOL_2D", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "EXPAND_DIMS", "FULLY_CONNECTED",
    "L2_NORMALIZATION", "LOGISTIC", "MAXIMUM", "MAX_POOL_2D", "MEAN", "MINIMUM", "MUL", "PACK", "PAD", "PRELU",
    "QUANTIZE", "REDUCE_MAX", "REDUCE_MIN", "RELU", "RELU6", "RELU_N1_TO_1", "RESHAPE", "RESIZE_BILINEAR",
    "RESIZE_NEAREST_NEIGHBOR", "RSQRT", "SLICE", "SOFTMAX", "SPACE_TO_DEPTH", "SPLIT", "SQUARED_DIFFERENCE",
    "SQUEEZE", "STRIDED_SLICE", "SUB", "SUM", "TANH", "TRANSPOSE", "TRANSPOSE_CONV", "UNIDIRECTIONAL_SEQUENCE_LSTM",
}  # fmt: skip
_EIGHT_BITS = {"int8", "uint8"}
# The vendor says 16,000, but the compiled bright_128x128 has one of 16,384 on the TPU.
_MOST_SOFTMAX_ELEMENTS = 16_384
# In compiled models a resize from 1x1 to 33x33 stays on the CPU (DeepLab), and doublings are mapped. The limit lies
# somewhere between.
_MOST_RESIZE_FACTOR = 8
# Of activations. Each of the 16 tiles has 192 KiB; the largest use in a compiled file is 196,596 bytes.
_TILE_BYTES = 192 << 10
_ALL_TILES_BYTES = 16 * _TILE_BYTES
_LANES = 4  # to a multiple of which the chip pads the last axis


class Limit(Protocol):
    """Why the Edge TPU does not take an op of a type that it takes in general; empty if it does.

    options: the op's scalar options by name. read, made: its inputs that are present, and its outputs.
    """

    def __call__(
        self, options: Mapping[str, int | float], read: Sequence[Tensor], made: Sequence[Tensor], /
    ) -> str: ...


def unmapped_reason(
    kind: str,
    options: Mapping[str, int | float],
    read: Sequence[Tensor],
    made: Sequence[Tensor],
    *,
    reads_model_input: bool,
) -> str:
    """Why the Edge TPU does not take an op of this type between these tensors; empty if it does.

    options: the op's scalar options by name. read: its inputs that are present, constants included. made: its outputs.
    reads_model_input: its first input is one of the model's.
    """
    if kind not in _TAKEN:
        return "Operation not supported"
    if not read or not made:
        return "it has no inputs or no outputs"
    activations = [t for t in (*read, *made) if not t.is_parameter and not t.is_variable]
    # Float is taken only by a QUANTIZE of a model input: the conversion of pictures to integers is often left to it.
    quantises_input = kind == "QUANTIZE" and reads_model_input
    if any(t.dtype not in _EIGHT_BITS for t in activations if not (quantises_input and t.dtype == "float32")):
        return "Operation is working on an unsupported data type"
    if any(t.shape is None for t in activations):
        return "its output has no static shape"
    if any(d > 1 for t in activations for d in (t.shape or ())[:-3]):
        return "Tensor has unsupported rank (up to 3 innermost dimensions mapped)"
    limit = _LIMITS.get(kind)
    return limit(options, read, made) if limit else ""


def _constant_weights(options: Mapping[str, int | float], read: Sequence[Tensor], made: Sequence[Tensor]) -> str:
    return "" if any(t.is_parameter for t in read) else "its weights are not constant"


def _convolution(options: Mapping[str, int | float], read: Sequence[Tensor], made: Sequence[Tensor]) -> str:
    if options.get("dilation_w_factor", 1) != options.get("dilation_h_factor", 1):
        return "dilation differs in x and y"
    return _constant_weights(options, read, made)


def _no_activation(options: Mapping[str, int | float], read: Sequence[Tensor], made: Sequence[Tensor]) -> str:
    return "it has a fused activation" if options.get("fused_activation_function", 0) else ""


def _resize(options: Mapping[str, int | float], read: Sequence[Tensor], made: Sequence[Tensor]) -> str:
    before, after = read[0].shape or (), made[0].shape or ()
    if len(before) != 4 or len(after) != 4:
        return "it resizes something other than a picture"
    factor = max(b / max(a, 1) for a, b in zip(before[1:3], after[1:3], strict=True))
    if factor > _MOST_RESIZE_FACTOR:
        return "resize to more than 8 times the size (precision)"
    # Reported: 256x256x32 to 512x512x32 stays on the CPU, 64x64x32 to 128x128x32 is mapped.
    return _too_large("result in narrow memory:", _padded_bytes(after), _ALL_TILES_BYTES)


def _padded_bytes(shape: Sequence[int]) -> int:
    """Bytes of a tensor of this shape on the chip, which pads the last axis."""
    *outer, last = shape or (1,)
    return math.prod(outer) * -(-last // _LANES) * _LANES


def _too_large(what: str, size_bytes: int, most_bytes: int) -> str:
    """Why an op is not mapped whose tensors take so many bytes of narrow memory; empty if they fit."""
    return f"{what} {size_bytes:,} bytes, more than {most_bytes:,}" if size_bytes > most_bytes else ""


def _reshape(options: Mapping[str, int | float], read: Sequence[Tensor], made: Sequence[Tensor]) -> str:
    """What a RESHAPE moves between tiles goes through one of them.

    It moves nothing if it only splits the last axis, as (40, 40, 810) to (14400, 90): EfficientDet's boxes are mapped. If it
    merges pixels into the last axis, source and result lie in one tile together. Decoded: 128x128x1 to 16,384 takes 70,660
    bytes of a tile, its 65,536 padded ones among them; YOLOv8n maps (144, 24, 24) to (144, 576) at 192 px, 165,888 bytes, and
    not (68, 40, 40) to (68, 1600) at 320 px, 217,600. Else the result does. Reported: YOLOv5 maps (400, 3, 85) to (1200, 85)
    at 160 px, 105,600 bytes, and not (3, 784, 85) to (2352, 85) at 224 px, 206,976.
    """
    before, after = read[0].shape or (1,), made[0].shape or (1,)
    if after[-1] < before[-1]:
        return ""
    if after[-1] > before[-1]:
        size_bytes = _padded_bytes(before) + _padded_bytes(after)
        return _too_large("source and result in one tile:", size_bytes, _TILE_BYTES)
    return _too_large("result in one tile:", _padded_bytes(after), _TILE_BYTES)


def _transpose(options: Mapping[str, int | float], read: Sequence[Tensor], made: Sequence[Tensor]) -> str:
    """What a TRANSPOSE moves goes through one tile.

    Decoded: YOLOv8n at 320 px maps one of 108,800 bytes. Reported: YOLOv5s at 224 px leaves one of 206,976 on the CPU.
    """
    size_bytes = max(_padded_bytes(t.shape or (1,)) for t in (read[0], made[0]))
    return _too_large("tensor in one tile:", size_bytes, _TILE_BYTES)


def _softmax(options: Mapping[str, int | float], read: Sequence[Tensor], made: Sequence[Tensor]) -> str:
    elements = (read[0].shape or (1,))[-1]
    return f"softmax over more than {_MOST_SOFTMAX_ELEMENTS} elements" if elements > _MOST_SOFTMAX_ELEMENTS else ""


def _strided_slice(options: Mapping[str, int | float], read: Sequence[Tensor], made: Sequence[Tensor]) -> str:
    return "ellipsis or new axis" if options.get("ellipsis_mask") or options.get("new_axis_mask") else ""


def _fully_connected(options: Mapping[str, int | float], read: Sequence[Tensor], made: Sequence[Tensor]) -> str:
    return (
        "weight format is not the default" if options.get("weights_format") else _constant_weights(options, read, made)
    )


_LIMITS: Mapping[str, Limit] = {
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _convolution,
    "TRANSPOSE_CONV": _constant_weights,
    "FULLY_CONNECTED": _fully_connected,
    "AVERAGE_POOL_2D": _no_activation,
    "MAX_POOL_2D": _no_activation,
    "CONCATENATION": _no_activation,
    "RESHAPE": _reshape,
    "RESIZE_BILINEAR": _resize,
    "RESIZE_NEAREST_NEIGHBOR": _resize,
    "SOFTMAX": _softmax,
    "STRIDED_SLICE": _strided_slice,
    "TRANSPOSE": _transpose,
}
