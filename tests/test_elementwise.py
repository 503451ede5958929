"""What ops other than convolutions take on the chip: bytes that they work through, and activations that do not fit."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from balancer.cost.elementwise import exchanged_bytes, is_second_of_scaling, work_bytes, written_bytes
from balancer.cost.hardware import load_hardware
from balancer.cost.op_terms import op_terms
from balancer.cost.profile import OpCosts
from balancer.graph import Graph, Op, Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

PCIE = load_hardware("pcie")
CHIP = replace(PCIE.chip, written_channels=64, moved_permille=500)
sides = st.integers(1, 12)


def net(
    shapes: Sequence[tuple[int, ...]], ops: Sequence[tuple[str, tuple[int, ...], int]], parameters: set[int]
) -> Graph:
    """A graph of int8 tensors. ops: type, inputs, output."""
    tensors = tuple(
        Tensor(k, f"t{k}", shape, "int8", math.prod(shape), is_parameter=k in parameters)
        for k, shape in enumerate(shapes)
    )
    made = tuple(Op(k, kind, 1, read, (out,)) for k, (kind, read, out) in enumerate(ops))
    return Graph("net", tensors, made, (0,), (ops[-1][2],))


def alone(kind: str, source: tuple[int, ...], made: tuple[int, ...]) -> tuple[Graph, Op]:
    graph = net([source, made], [(kind, (0,), 1)], set())
    return graph, graph.ops[0]


def test_channels_are_worked_on_in_rows_of_64_and_pictures_in_rows_of_4() -> None:
    graph = net([(1, 3, 5, 65), (1, 3, 5, 3), (1, 3, 5, 5), (1, 1000)], [("PAD", (0,), 1)], set())
    assert [written_bytes(graph, [t], CHIP) for t in range(4)] == [15 * 128, 15 * 4, 15 * 64, 1024]
    assert written_bytes(graph, [0, 1], replace(CHIP, written_channels=1)) == 15 * 65 + 15 * 3


def test_work_by_what_an_op_reads() -> None:
    shape = (1, 4, 4, 64)
    two = net([shape, shape, shape], [("ADD", (0, 1), 2)], set())
    assert work_bytes(two, two.ops[0], CHIP) == 1024
    constant = net([shape, (64,), shape], [("ADD", (0, 1), 2)], {1})
    assert work_bytes(constant, constant.ops[0], CHIP) == 512
    assert work_bytes(*alone("LOGISTIC", shape, shape), CHIP) == 1024
    assert work_bytes(*alone("PAD", shape, (1, 6, 6, 64)), CHIP) == 36 * 64 // 2
    assert work_bytes(*alone("STRIDED_SLICE", shape, (1, 1, 1, 64)), CHIP) == 32
    assert work_bytes(*alone("MEAN", shape, (1, 1, 1, 64)), CHIP) == 512


def test_a_scale_and_a_shift_by_constants_are_one_pass() -> None:
    shape = (1, 4, 4, 64)
    shapes = [shape, (64,), shape, (64,), shape, shape]
    both = [("MUL", (0, 1), 2), ("ADD", (2, 3), 4)]
    graph = net(shapes, both, {1, 3})
    assert [is_second_of_scaling(graph, op) for op in graph.ops] == [False, True]
    assert work_bytes(graph, graph.ops[1], CHIP) == 0
    terms = [op_terms(graph, op, PCIE, OpCosts()) for op in graph.ops]
    assert terms[0].compute_ns > 0 == terms[1].compute_ns
    # The product is read elsewhere, too: it has to be written.
    shared = net(shapes, [*both, ("ADD", (2, 4), 5)], {1, 3})
    assert not any(is_second_of_scaling(shared, op) for op in shared.ops)
    # The second one reads two activations.
    mixed = net(shapes, [("MUL", (0, 1), 2), ("ADD", (0, 2), 4)], {1})
    assert not any(is_second_of_scaling(mixed, op) for op in mixed.ops)


@given(sides, sides, st.integers(1, 130))
def test_a_product_exchanges_one_operand_exactly_where_three_maps_do_not_fit(h: int, w: int, channels: int) -> None:
    shape = (1, h, w, channels)
    graph = net([shape, shape, shape], [("LOGISTIC", (0,), 1), ("MUL", (0, 1), 2)], set())
    tile = math.ceil(h / 4) * math.ceil(w / 4) * (channels + -channels % 4)
    fitting, short = replace(CHIP, narrow_bytes=16 * 3 * tile), replace(CHIP, narrow_bytes=16 * 3 * tile - 1)
    assert exchanged_bytes(graph, graph.ops[1], fitting) == 0
    assert exchanged_bytes(graph, graph.ops[1], short) == h * w * channels
    assert exchanged_bytes(graph, graph.ops[0], short) == 0


def test_what_is_exchanged_goes_out_and_comes_back() -> None:
    shape = (1, 112, 112, 96)
    graph = net([shape, shape, shape], [("LOGISTIC", (0,), 1), ("MUL", (0, 1), 2)], set())
    terms = op_terms(graph, graph.ops[1], PCIE, OpCosts())
    both_ways = PCIE.link.input_ns_per_mib + PCIE.link.output_ns_per_mib
    assert abs(terms.exchange_ns - both_ways * 112 * 112 * 96 / (1 << 20)) <= 1
    added = net([shape, shape, shape], [("LOGISTIC", (0,), 1), ("ADD", (0, 1), 2)], set())
    assert op_terms(added, added.ops[1], PCIE, OpCosts()).exchange_ns == 0
    gated = net([shape, (1, 1, 1, 96), shape], [("MUL", (0, 1), 2)], set())
    assert op_terms(gated, gated.ops[0], PCIE, OpCosts()).exchange_ns == 0
