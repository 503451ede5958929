"""Work of ops that only read and write activations: how many bytes the chip works through, and what goes through the host.

Narrow memory passes a row of 64 values at a time, those of the channels of one pixel. So the work of an op grows with its
output, the channels rounded up to 64, and with how many activations it reads for it:

    reads two, writes one        ADD, MUL, SUB of two activations           1      the unit of `written_ns_per_mib`
    looks each value up          LOGISTIC, TANH, SOFTMAX                    1
    reads one, writes one        PAD, CONCATENATION, slices, RELU           `moved_permille` thousandths
    gathers many values in one   pools, MEAN, SUM: by what they read        `moved_permille` thousandths

Sources. The unit: ADDs of residual networks on a card with eight TPUs. Rounding up, and LOGISTIC as a unit: YOLOv8n at 320
and 512 px and YOLOv8s, whose times differ by 5.5, 12.8 and 7.6 ms between half and full clock; sigmoids can't take more,
and EfficientNetB0 does not need more. One tensor less to read: DenseNet121, a third of whose work are such ops.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.cost.geometry import ARRAY_INPUTS, ARRAY_OUTPUTS, TILE_SIDE, feature_map
from balancer.ground.units import ceil_div, ceil_to

if TYPE_CHECKING:
    from collections.abc import Iterable

    from balancer.cost.constant_groups import Chip
    from balancer.graph import Graph, Op, Tensor

_ARITHMETIC = {"ADD", "MUL", "SUB"}
_LOOKED_UP = {"LOGISTIC", "TANH", "SOFTMAX", "LOG_SOFTMAX", "EXP", "RSQRT", "SQRT"}
_GATHERED = {"AVERAGE_POOL_2D", "MAX_POOL_2D", "MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"}
_PERMILLE = 1000


def work_bytes(graph: Graph, op: Op, chip: Chip) -> int:
    """The bytes that the op works through on the chip, in units of `written_ns_per_mib`."""
    if is_second_of_scaling(graph, op):
        return 0
    written = written_bytes(graph, op.outputs, chip)
    if op.type in _LOOKED_UP or (len(_activations(graph, op)) > 1 and op.type in _ARITHMETIC):
        return written
    moved = max(written, written_bytes(graph, _activations(graph, op), chip)) if op.type in _GATHERED else written
    return ceil_div(moved * chip.moved_permille, _PERMILLE)


def written_bytes(graph: Graph, tensors: Iterable[int], chip: Chip) -> int:
    """Bytes of these activations as the chip reads and writes them: channels in multiples of `written_channels`.

    A picture and other maps of at most 4 channels come in multiples of 4.
    """
    return sum(_padded_bytes(graph.tensors[t], chip.written_channels) for t in tensors)


def _padded_bytes(tensor: Tensor, written_channels: int) -> int:
    if tensor.shape is None:
        return tensor.bytes
    channels = max(1, feature_map(tensor).channels)
    step = min(written_channels, ARRAY_INPUTS if channels <= ARRAY_INPUTS else ARRAY_OUTPUTS)
    return tensor.bytes * ceil_to(channels, step) // channels


def is_second_of_scaling(graph: Graph, op: Op) -> bool:
    """Whether the op scales or shifts, by constants, what another op has just scaled or shifted: both are one pass.

    Source: batch norms that stay apart (DenseNet121: 62 times a MUL and an ADD with constants). As two passes each, its
    time would be 8 % too long.
    """
    if not _scales(graph, op):
        return False
    (source,) = _activations(graph, op)
    before = graph.producer.get(source)
    alone = graph.readers.get(source) == (op.index,) and source not in graph.outputs
    return alone and before is not None and _scales(graph, graph.ops[before])


def _scales(graph: Graph, op: Op) -> bool:
    return op.type in _ARITHMETIC and len(_activations(graph, op)) == 1 and len(op.inputs) > 1


def exchanged_bytes(graph: Graph, op: Op, chip: Chip) -> int:
    """Bytes of an activation that goes to the host and comes back before the op, because narrow memory does not hold it.

    A MUL of two activations needs three in narrow memory: both, and its product. Where they do not fit, the first one
    has left while the second was computed. An ADD does not: it rides on the convolution before it.

    Source: EfficientNetB0's first swish holds 112x112x96 three times, 3.6 MB where 3.1 fit; 2.8 MiB more cross its link
    than its other ops explain, and one such activation both ways is 2.3. ADDs of the same kind, of ResNet-50 at 299 px,
    show no such time.
    """
    operands = _activations(graph, op)
    if op.type != "MUL" or len(operands) < 2 or not op.outputs:
        return 0
    tensors = [graph.tensors[t] for t in (*operands, op.outputs[0])]
    tile_bytes = sum(_tile_bytes(tensor) for tensor in tensors)
    return min(t.bytes for t in tensors[:-1]) if tile_bytes > chip.narrow_bytes // TILE_SIDE**2 else 0


def _tile_bytes(tensor: Tensor) -> int:
    """Bytes of a tile's share of an activation: a quarter of the rows and of the columns, channels in multiples of 4."""
    shape = feature_map(tensor)
    return ceil_div(shape.height, TILE_SIDE) * ceil_div(shape.width, TILE_SIDE) * ceil_to(shape.channels, ARRAY_INPUTS)


def _activations(graph: Graph, op: Op) -> tuple[int, ...]:
    """The activations that the op reads."""
    return tuple(graph.activations[op.index])
