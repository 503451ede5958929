"""Terms of the cost model, computed a second time: by brute force on random graphs, and by hand on small ones."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import balancer
from balancer.cost.batch import SegmentBatch
from balancer.cost.caching import DenseGroups, caching_rule, dense_sure_bytes, groups_fit
from balancer.cost.capacity import CapacityRule, input_scratch, op_scratch
from balancer.cost.feeding import Feeding, StageCost, inference_ns, period_ns
from balancer.cost.filling import MOST_CELLS, fillings
from balancer.cost.geometry import FeatureMap, Window
from balancer.cost.hardware import CONSTANTS, DEFAULTS, Hardware, load_hardware
from balancer.cost.instructions import BASE_BYTES
from balancer.cost.layout import ParameterLayout, layout
from balancer.cost.segment import SegmentCosts
from balancer.cost.timing import bands, busy_ns, cpu_ns, gather_ns, input_ns, output_ns, start_ns, stream_ns
from balancer.graph import Graph, Op, Tensor
from balancer.ground.downsets import DownSets, NestedSets
from balancer.ground.opsets import members, op_set
from balancer.ground.rates import latency_ns, load_ns
from balancer.tflite import synth
from balancer.tflite.read import read_graph
from tests import handmade

if TYPE_CHECKING:
    from collections.abc import Callable

    from balancer.ground.opsets import OpSet

MIB = 1 << 20
TILES = 16
PCIE = load_hardware("pcie")
# Nothing costs anything, and all activations fit.
NOTHING = PCIE.changed(dict.fromkeys(CONSTANTS, 0) | DEFAULTS | {"narrow_bytes": 10**9})
# Only boundary tensors cost anything, and each byte in or out, large or small, costs another number of ns.
TRANSFERS = NOTHING.changed(
    {
        "input_ns_per_mib": 3 * MIB, "output_ns_per_mib": 50 * MIB, "large_tensor_bytes": 100,
        "large_input_ns_per_mib": 700 * MIB, "large_output_ns_per_mib": 9_000 * MIB, "narrow_bytes": MIB,
    }
)  # fmt: skip
# A small chip: beside the scratch of a 3x3 kernel, 13,312 bytes a tile, one or two kernels fit. A tile holds one group.
SMALL = PCIE.changed({"wide_bytes_per_tile": 640 + 13_312 + 1_200, "dense_tile_bytes": 900, "narrow_bytes": 1_000})


@st.composite
def graphs(draw: Callable[[Any], Any], most_ops: int = 6) -> Graph:
    """Any small graph: ops of several types that read earlier activations, tensors of unknown shape, unmapped ops, unread
    inputs, tensors that nobody takes, ops that share a state.
    """
    tensors: list[Tensor] = []

    def add(shape: tuple[int, ...] | None, *, parameter: bool = False) -> int:
        size = math.prod(shape) if shape else 0
        tensors.append(Tensor(len(tensors), f"t{len(tensors)}", shape, "int8", size, is_parameter=parameter))
        return len(tensors) - 1

    def activation() -> int:
        known = draw(st.integers(0, 11)) > 0
        return add((1, draw(st.integers(1, 3)), 5, draw(st.integers(1, 20))) if known else None)

    inputs = [activation() for _ in range(draw(st.integers(1, 3)))]
    values, ops = list(inputs), []
    for i in range(draw(st.integers(1, most_ops))):
        read = draw(st.lists(st.sampled_from(values), min_size=1, max_size=3))
        kind = draw(
            st.sampled_from(["ADD", "MUL", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "FULLY_CONNECTED"])
        )
        depth = draw(st.integers(1, 9))
        shape = {
            "ADD": (1, 1, 5, 7),
            "MUL": (1, 1, 5, 7),
            "CONV_2D": (70, 3, 3, depth),
            "DEPTHWISE_CONV_2D": (1, 3, 3, 8 * depth),
        }
        weights = add(shape.get(kind, (100 * depth, 12)), parameter=True)
        made = [activation() for _ in range(draw(st.integers(1, 2)))]
        unmapped = draw(st.sampled_from(["", "", "", "not taken"]))
        ops.append(Op(i, kind, 1, (read[0], weights, -1, *read[1:]), tuple(made), unmapped=unmapped))
        values += made
    outputs = draw(st.lists(st.sampled_from(values[len(inputs) :]), min_size=1, max_size=3))
    shared = draw(st.sets(st.integers(0, len(ops) - 1), min_size=2, max_size=2)) if len(ops) > 1 else set()
    together = (op_set(shared),) if shared and draw(st.booleans()) else ()
    return Graph("random", tuple(tensors), tuple(ops), tuple(inputs), tuple(outputs), together)


class Boundary(NamedTuple):
    """What crosses the boundary of a segment, and whether one may be there."""

    inputs: set[int]
    outputs: set[int]
    allowed: bool


def reads(graph: Graph, op: Op) -> set[int]:
    return {t for t in op.inputs if t >= 0 and not graph.tensors[t].is_parameter}


def boundary(graph: Graph, ops: set[int]) -> Boundary:
    """From the ops' own lists of tensors, without anything that the graph derives from them."""
    made = {t for i in ops for t in graph.ops[i].outputs}
    read = {t for i in ops for t in reads(graph, graph.ops[i])}
    read_outside = {t for op in graph.ops if op.index not in ops for t in reads(graph, op)}
    inputs, outputs = read - made, made & (read_outside | set(graph.outputs))
    if len(ops) == len(graph.ops):
        inputs, outputs = set(graph.inputs), set(graph.outputs)
    known = all(graph.tensors[t].shape is not None for t in inputs | (made & read_outside))
    whole_groups = all(group <= ops or not group & ops for group in (set(members(g)) for g in graph.together))
    return Boundary(inputs, outputs, bool(ops and outputs and known and whole_groups))


def depends(graph: Graph) -> list[set[int]]:
    """For each op all ops that it depends on."""
    makers = {t: op.index for op in graph.ops for t in op.outputs}
    found: list[set[int]] = []
    for op in graph.ops:
        direct = {makers[t] for t in reads(graph, op) if t in makers}
        found.append(direct.union(*(found[i] for i in direct)))
    return found


def down_sets(graph: Graph) -> list[OpSet]:
    """All of them, each before those that contain it."""
    before = [op_set(b) for b in depends(graph)]
    sets = [s for s in range(1 << len(before)) if all(before[i] & ~s == 0 for i in members(s))]
    return sorted(sets, key=lambda s: (s.bit_count(), s))


def nested_pairs(sets: list[OpSet]) -> list[tuple[int, int]]:
    return [(a, b) for a, inner in enumerate(sets) for b, outer in enumerate(sets) if a != b and not inner & ~outer]


@given(graphs())
def test_what_crosses_a_boundary_is_what_the_ops_lists_say(graph: Graph) -> None:
    sets = down_sets(graph)
    pairs = nested_pairs(sets)
    costs = SegmentCosts(graph, TRANSFERS)
    table = SegmentBatch(costs, DownSets.of(sets, len(graph.ops)))(*np.transpose(pairs))
    for k, (a, b) in enumerate(pairs):
        ops = sets[b] & ~sets[a]
        wanted = boundary(graph, set(members(ops)))
        assert table.allowed[k] == wanted.allowed == costs.allowed(ops)
        if wanted.allowed:
            taken = sum(3 * s + 700 * max(0, s - 100) for s in (graph.tensors[t].bytes for t in wanted.inputs))
            given_ = sum(50 * s + 9_000 * max(0, s - 100) for s in (graph.tensors[t].bytes for t in wanted.outputs))
            assert table.time_ns[k] == taken + given_
            terms = costs.terms(ops)
            assert (terms.input_ns, terms.output_ns, terms.stage_ns) == (taken, given_, taken + given_)


@given(graphs(), st.randoms(use_true_random=False))
def test_nested_sets_cross_the_same_boundaries(graph: Graph, random: Any) -> None:
    order: list[int] = []
    before = depends(graph)
    while len(order) < len(graph.ops):
        order.append(random.choice([i for i in range(len(before)) if i not in order and before[i] <= set(order)]))
    sets = [op_set(order[:k]) for k in range(len(order) + 1)]
    for hardware in (TRANSFERS, SMALL):
        costs = SegmentCosts(graph, hardware)
        rows = np.triu_indices(len(sets), 1)
        one, other = (SegmentBatch(costs, kind.of(sets, len(order)))(*rows) for kind in (DownSets, NestedSets))
        assert (one.allowed == other.allowed).all()
        for left, right in zip(one, other, strict=True):
            assert (left == right)[one.allowed].all()


@given(graphs())
def test_an_op_is_on_the_cpu_where_an_unmapped_op_ends_the_chips_part(graph: Graph) -> None:
    """Each op that is started on the chip costs its start, each on the CPU 1000 ns."""
    costs = SegmentCosts(graph, NOTHING.changed({"op_ns": 1, "cpu_op_ns": 1_000}))
    before = depends(graph)
    sets = down_sets(graph)
    pairs = nested_pairs(sets)
    table = SegmentBatch(costs, DownSets.of(sets, len(graph.ops)))(*np.transpose(pairs))
    for k, (a, b) in enumerate(pairs):
        ops = set(members(sets[b] & ~sets[a]))
        unmapped = {i for i in ops if graph.ops[i].unmapped}
        ending = {u for u in unmapped if before[u] & (ops - unmapped)}
        on_cpu = unmapped | {i for i in ops if before[i] & ending}
        assert costs.on_cpu(op_set(ops)) == op_set(on_cpu)
        if table.allowed[k]:
            assert table.time_ns[k] == sum(costs.op_terms[i].start_ns for i in ops - on_cpu) + 1_000 * len(on_cpu)
            assert costs.lower(op_set(ops)) <= table.time_ns[k]


def fits(groups: list[tuple[int, int]], tile_bytes: int) -> bool:
    """Groups into tiles, by a plain list: largest first, into the first tile with the least load."""
    tiles = [0] * TILES
    for size in sorted((size for size, count in groups for _ in range(count)), reverse=True):
        tiles[tiles.index(min(tiles))] += size
    return max(tiles) <= tile_bytes


def kept(graph: Graph, costs: SegmentCosts, ops: OpSet, capacity: int, tile_bytes: int) -> set[int]:
    """The ops whose parameters are cached, one after the other."""
    rank = {"DEPTHWISE_CONV_2D": 0, "FULLY_CONNECTED": 1}
    sizes = {i: costs.op_terms[i].layout.cached for i in members(ops) if costs.op_terms[i].layout.cached}
    cached: set[int] = set()
    dense: list[tuple[int, int]] = []
    for i in sorted(sizes, key=lambda i: (rank.get(graph.ops[i].type, 2), -sizes[i], i)):
        if sizes[i] > capacity:
            continue
        if graph.ops[i].type == "FULLY_CONNECTED":
            out, depth = graph.tensors[graph.ops[i].inputs[1]].shape or (0, 0)
            added = (64 * (-(-depth // 4) * 4), -(-out // 64))
            if not fits([*dense, added], tile_bytes):
                continue
            dense.append(added)
        capacity -= sizes[i]
        cached.add(i)
    return cached


@given(graphs(8), st.integers(0, 60_000), st.integers(700, 5_000), st.booleans())
def test_tiles_and_capacity_are_filled_as_by_hand(graph: Graph, capacity: int, tile_bytes: int, few: bool) -> None:
    costs = SegmentCosts(graph, PCIE.changed({"dense_tile_bytes": tile_bytes}))
    n = len(graph.ops)
    sets = [(1 << k) - 1 for k in range(n + 1)]
    filling = fillings(costs, DownSets.of(sets, n), costs.mapped, most_cells=MOST_CELLS if few else 0)
    inners, outers = np.triu_indices(n + 1, 1)
    filled = filling.overflow(inners, outers, np.full(len(inners), capacity), np.zeros(len(inners), bool))
    for k, (a, b) in enumerate(zip(inners, outers, strict=True)):
        ops = sets[b] & ~sets[a] & costs.mapped
        cached = kept(graph, costs, ops, capacity, tile_bytes)
        assert costs.caching.cached(ops, capacity) == op_set(cached)
        out = [costs.op_terms[i] for i in members(ops) if i not in cached]
        assert filled.overflow_bytes[k] == sum(op.layout.streamed for op in out)
        assert filled.stall_ns[k] == sum(op.stall_ns for op in out if op.layout.cached)


@given(graphs())
def test_all_terms_agree_with_sums_over_ops_on_a_small_chip(graph: Graph) -> None:
    """Scratch and capacity, cached and streamed bytes, stalls and starts, summed op by op."""
    costs, link = SegmentCosts(graph, SMALL), SMALL.link
    sets = down_sets(graph)
    pairs = nested_pairs(sets)
    table = SegmentBatch(costs, DownSets.of(sets, len(graph.ops)))(*np.transpose(pairs))
    for k, (a, b) in enumerate(pairs):
        ops = sets[b] & ~sets[a]
        edge = boundary(graph, set(members(ops)))
        if not edge.allowed:
            continue
        chip = set(members(ops & ~costs.on_cpu(ops)))
        own = [costs.op_terms[i].scratch_bytes for i in chip]
        entering = [
            input_scratch(graph, t, graph.ops[i]) for i in chip for t in edge.inputs & reads(graph, graph.ops[i])
        ]
        capacity = CapacityRule(SMALL.chip.wide_bytes_per_tile).capacity_bytes(max([0, *own, *entering]))
        cached = kept(graph, costs, op_set(chip), capacity, SMALL.chip.dense_tile_bytes)
        out = [costs.op_terms[i] for i in chip - cached if costs.op_terms[i].layout.cached]
        always = sum(costs.op_terms[i].layout.always_streamed for i in chip)
        overflow = sum(op.layout.streamed for op in out)
        stalls = sum(op.stall_ns for op in out) + sum(costs.op_terms[i].always_streamed_ns for i in chip)
        terms = costs.terms(ops)
        assert terms.capacity_bytes == capacity
        assert terms.cached_bytes == sum(costs.op_terms[i].layout.cached for i in cached)
        assert (terms.overflow_bytes, terms.streamed_bytes) == (overflow, overflow + always)
        assert terms.parameter_bytes == terms.cached_bytes + overflow + always
        assert terms.streaming_ns == stalls + (link.stream_start_ns if overflow + always else 0)
        assert terms.scratch_ns >= sum(costs.op_terms[i].exchange_ns for i in chip)
        instructions = sum(costs.op_terms[i].instruction_bytes for i in chip)
        assert terms.instruction_bytes == (BASE_BYTES + instructions if chip else 0)
        assert terms.overhead_ns == costs.invoke_ns + sum(costs.op_terms[i].start_ns for i in chip)
        assert terms.compute_ns == sum(costs.op_terms[i].compute_ns for i in chip)
        assert table.overflow_bytes[k] == overflow
        assert table.streamed_bytes[k] == overflow + always
        assert table.time_ns[k] == terms.stage_ns


groups = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 12)), max_size=6)


@given(groups, st.integers(1, 120))
def test_groups_fit_where_a_plain_list_of_tiles_says_so(sizes: list[tuple[int, int]], tile_bytes: int) -> None:
    assert groups_fit([DenseGroups(*size) for size in sizes], tile_bytes) == fits(sizes, tile_bytes)


@given(groups, st.integers(1, 120), st.data())
def test_dense_ops_below_the_sure_bytes_always_fit(
    sizes: list[tuple[int, int]], tile_bytes: int, data: st.DataObject
) -> None:
    sure = dense_sure_bytes([DenseGroups(*size) for size in sizes], tile_bytes)
    chosen = [size for size in sizes if data.draw(st.booleans())]
    if sum(size * count for size, count in chosen) <= sure:
        assert fits(chosen, tile_bytes)


def test_sure_bytes_are_those_of_the_worst_case() -> None:
    """15 tiles hold one group of 10 bytes and half of another; 17 groups do not fit into tiles of 19 bytes."""
    assert dense_sure_bytes([DenseGroups(10, 17)], 19) == 16 * 19 - 15 * 10
    assert dense_sure_bytes([DenseGroups(10, 16)], 19) == 160
    assert dense_sure_bytes([DenseGroups(400, 1)], 19) == 0
    assert dense_sure_bytes([], 19) == 0


def test_a_dense_ops_groups_are_of_64_outputs_and_4_inputs() -> None:
    graph = read_graph(synth.fc(130), name="fc")
    costs = SegmentCosts(graph, PCIE)
    dense = [i for i, op in enumerate(graph.ops) if op.type == "FULLY_CONNECTED"]
    assert costs.caching.dense_groups[dense[1]] == (64 * 132, 3)
    assert costs.caching.dense_bytes(dense[1]) == 64 * 132 * 3
    assert costs.caching.dense_bytes(0) == 0
    again = caching_rule(graph, [op.layout for op in costs.op_terms], PCIE.chip.dense_tile_bytes)
    assert again == costs.caching


def test_transfers_of_a_skip_connection_written_out() -> None:
    """conv_0 is read by conv_1 and by the add. Each tensor has 64 bytes."""
    graph = read_graph(handmade.branch_and_add(), name="branch")
    costs = SegmentCosts(graph, PCIE)
    taken, given_ = math.ceil(64 * 6_700_000 / MIB), math.ceil(64 * 2_500_000 / MIB)
    sides = {ops: (t.input_ns // taken, t.output_ns // given_) for ops in range(1, 8) if (t := costs.terms(ops))}
    assert sides == {
        0b001: (1, 1), 0b010: (1, 1), 0b100: (2, 1),
        0b011: (1, 2),  # conv_0 and conv_1 are both read by the add
        0b110: (1, 1), 0b111: (1, 1), 0b101: (2, 2),
    }  # fmt: skip


@pytest.mark.parametrize("of", [input_ns, output_ns])
def test_large_tensors_take_more_for_what_is_beyond(of: Callable[[int, Hardware], int]) -> None:
    for size in (0, 99, 100, 101, 5_000):
        base, beyond = (3, 700) if of is input_ns else (50, 9_000)
        assert of(size, TRANSFERS) == base * size + beyond * max(0, size - 100)
    third = NOTHING.changed({"input_ns_per_mib": MIB // 3, "output_ns_per_mib": MIB // 3})
    assert of(1, third) == 1  # rounded up


CHIP = PCIE.changed(
    {
        "mac_ns_per_gmac": 10**9, "dense_ns_per_mib": 2 * MIB, "written_ns_per_mib": 3 * MIB, "op_ns": 7,
        "gather_ns": 1_000, "gather_ns_per_mib": MIB, "gather_least_pixels": 64, "narrow_bytes": 8_192,
        "band_bytes": 10_000, "least_bands": 2, "stream_ns_per_mib": 5 * MIB, "cpu_ns_per_gmac": 10**9,
        "cpu_ns_per_mib": 2 * MIB, "cpu_op_ns": 11, "written_channels": 1, "moved_permille": 1000,
    }
)  # fmt: skip


def one_op(
    kind: str, weights: tuple[int, ...], source: tuple[int, ...], made: tuple[int, ...], **fields: Any
) -> tuple[Graph, Op]:
    """A graph of one op that reads a tensor and weights. fields: of the op."""
    shapes = [source, weights, made]
    tensors = tuple(Tensor(k, "", s, "int8", math.prod(s), is_parameter=k == 1) for k, s in enumerate(shapes))
    op = Op(0, kind, 1, (0, 1), (2,), **fields)
    return Graph("one", tensors, (op,), (0,), (2,)), op


def test_times_of_ops_written_out() -> None:
    """With 1 ns for each multiply-accumulate, 2 for each byte of dense parameters, and 3 for each written byte."""
    none = ParameterLayout()
    dense = one_op("FULLY_CONNECTED", (64, 12), (1, 12), (1, 64))
    assert busy_ns(*dense, ParameterLayout(cached=768), CHIP) == 2 * 768
    relu = one_op("RELU", (1,), (1, 4, 4, 4), (1, 4, 4, 4))
    assert (busy_ns(*relu, none, CHIP), start_ns(*relu, CHIP)) == (3 * 64, 0)
    add = one_op("ADD", (1,), (1, 4, 4, 4), (1, 4, 4, 4), macs=10)
    assert (busy_ns(*add, none, CHIP), start_ns(*add, CHIP)) == (3 * 64 + 10, 7)
    options = {"filter_height": 2, "filter_width": 2, "stride_h": 2, "stride_w": 2}
    pool = one_op("MAX_POOL_2D", (1,), (1, 4, 4, 4), (1, 2, 2, 4), options=options)
    assert busy_ns(*pool, none, CHIP) == 3 * 64  # by what it reads
    depthwise = one_op("DEPTHWISE_CONV_2D", (1, 3, 3, 8), (1, 5, 5, 8), (1, 5, 5, 8))
    assert busy_ns(*depthwise, none, CHIP) == (8 * 8) * 9 * 4 * 64 + 3 * 200
    small = one_op("CONV_2D", (70, 3, 3, 6), (1, 4, 4, 6), (1, 4, 4, 70))
    assert busy_ns(*small, none, CHIP) == 16 * 9 * 8 * 128
    up = one_op("CONV_2D", (64, 2, 2, 4), (1, 4, 4, 4), (1, 8, 8, 64))
    assert busy_ns(*up, none, CHIP) == 16 * 4 * 4 * 64  # more output than input pixels: the input's count
    assert cpu_ns(*add, CHIP) == 11 + 10 + 2 * (64 + 64)
    # On the CPU, kinds differ: 50 and 8000 thousandths of the bytes written.
    for kind, work in (("RESHAPE", 4), ("STRIDED_SLICE", 8 * 64)):
        assert cpu_ns(*one_op(kind, (1,), (1, 4, 4, 4), (1, 4, 4, 4)), CHIP) == 11 + 2 * work


def test_bands_written_out() -> None:
    """A map of 8x8x64 has 4096 bytes in narrow memory; 10,000 bytes hold the output and some rows of the input."""

    def window(depth: int, kernel: int = 3, out: int = 64) -> Window:
        return Window("conv", FeatureMap(8, 8, depth), FeatureMap(8, 8, out), kernel, kernel, 1)

    assert bands(window(64), CHIP) == 1  # 4096 + 4096 = 8192 bytes, as many as there are
    tight = CHIP.changed({"narrow_bytes": 8_191})
    assert bands(window(64), tight) == 2  # both tile rows at once, but least_bands
    assert bands(window(4), tight) == 1
    assert bands(window(5), tight) == 2
    assert bands(window(64, kernel=1), tight) == 1
    assert bands(replace(window(64), kind="depthwise"), tight) == 1
    tall = Window("conv", FeatureMap(32, 8, 64), FeatureMap(32, 8, 64), 3, 3, 1)  # 16,384 bytes, 8 tile rows
    assert bands(tall, CHIP.changed({"band_bytes": 16_384 + 6_144})) == 3  # 3 of 8 rows at a time
    assert bands(tall, CHIP) == 8  # the output alone is too large: one row at a time
    assert bands(tall, CHIP.changed({"band_bytes": 10**6})) == 2
    large = one_op("CONV_2D", (64, 3, 3, 64), (1, 32, 8, 64), (1, 32, 8, 64))
    three = CHIP.changed({"band_bytes": 16_384 + 6_144})
    assert stream_ns(*large, ParameterLayout(streamed=100), three) == 3 * 500
    macs = 256 * 9 * 64 * 64
    assert busy_ns(*large, ParameterLayout(), three) == macs + macs * 4 // 32  # two borders of two rows each
    assert stream_ns(*one_op("ADD", (1,), (4,), (4,)), ParameterLayout(streamed=100), CHIP) == 500


def test_gathering_written_out() -> None:
    for height, depth, kernel, wanted in (
        (8, 65, 3, 1_000 + 64 * 65), (8, 64, 3, 0), (7, 65, 3, 0), (8, 65, 1, 0), (9, 65, 3, 1_000 + 72 * 65),
    ):  # fmt: skip
        conv = one_op("CONV_2D", (4, kernel, kernel, depth), (1, height, 8, depth), (1, height, 8, 4))
        assert gather_ns(*conv, CHIP) == wanted
    assert gather_ns(*one_op("DEPTHWISE_CONV_2D", (1, 3, 3, 65), (1, 8, 8, 65), (1, 8, 8, 65)), CHIP) == 0


@pytest.mark.parametrize(("channels", "padded"), [(3, 16), (17, 20), (20, 20), (64, 64)])
def test_depthwise_weights_take_four_bytes_of_each_channel_padded_to_four(channels: int, padded: int) -> None:
    shape = (1, 8, 8, channels)
    lines = -(-4 * 9 * padded // 64)
    laid_out = layout(*one_op("DEPTHWISE_CONV_2D", (1, 3, 3, channels), shape, shape))
    assert laid_out == ParameterLayout(cached=64 * lines, streamed=64 * lines)


def test_scratch_written_out() -> None:
    """Landing buffers, halos of 4 x 4 tiles, pools, and tensors that enter."""
    kib, none = 1 << 10, ParameterLayout()

    def scratch(kind: str, weights: tuple[int, ...], side: int, depth: int, **options: int) -> int:
        stride = options.get("stride_h", 1)
        out = side // stride
        return op_scratch(
            *one_op(kind, weights, (1, side, side, depth), (1, out, out, depth), options=options), none
        )  # fmt: skip

    assert op_scratch(*one_op("FULLY_CONNECTED", (4, 4), (4,), (4,)), ParameterLayout(has_headers=True)) == 25 * kib
    assert op_scratch(*one_op("FULLY_CONNECTED", (4, 4), (4,), (4,)), none) == 0
    assert scratch("ADD", (1,), 8, 64) == 0
    landing = 512 + 128 * 64
    assert scratch("CONV_2D", (64, 3, 3, 64), 1, 64) == landing + 512 * 9
    assert scratch("CONV_2D", (64, 3, 3, 64), 8, 64) == landing + 512 * 9
    assert scratch("CONV_2D", (64, 1, 1, 12), 8, 12) == landing + 512 * 3
    assert scratch("CONV_2D", (64, 2, 4, 64), 8, 64) == landing + 512 * 8
    assert scratch("CONV_2D", (64, 1, 7, 64), 8, 64) == landing + 512 * 16
    # A tile's share: 18 * 18 * 128 bytes of input with its halo and 16 * 16 * 128 of output are more than 60 KiB.
    assert scratch("CONV_2D", (128, 3, 3, 128), 64, 128) == 62 * kib
    assert scratch("CONV_2D", (128, 1, 1, 128), 64, 128) == landing + 512 * 16
    assert scratch("CONV_2D", (256, 2, 2, 256), 64, 256, stride_h=2, stride_w=2) == 62 * kib  # windows side by side
    # Depthwise: twice (4 + 2) ** 2 * 64 = 2304 bytes is less than the landing buffers; 10 ** 2 * 64 bytes twice is more.
    assert scratch("DEPTHWISE_CONV_2D", (1, 3, 3, 64), 16, 64) == landing + 512 * 9
    assert scratch("DEPTHWISE_CONV_2D", (1, 3, 3, 64), 48, 64) == 2 * 14 * 14 * 64
    assert scratch("DEPTHWISE_CONV_2D", (1, 3, 3, 512), 32, 512) == 62 * kib
    pool = {"filter_height": 3, "filter_width": 3}
    assert scratch("MAX_POOL_2D", (1,), 16, 64, **pool) == 6 * 6 * 64 * 175 // 100
    steep = 10 * 10 * 512 - 37 * kib
    assert scratch("MAX_POOL_2D", (1,), 32, 512, **pool) == 37 * kib * 175 // 100 + steep * 480 // 100
    strides = pool | {"stride_h": 2, "stride_w": 2}
    assert scratch("MAX_POOL_2D", (1,), 112, 64, **strides) == 29 * 29 * 64 * 244 // 100 - 66 * kib
    assert scratch("MAX_POOL_2D", (1,), 64, 64, filter_height=2, filter_width=2, stride_h=2, stride_w=2) == 0
    # 18 * 18 * 512 bytes of input and 16 * 16 * 512 of output exceed the 192 KiB of narrow memory; half as many do not.
    for depth, held in ((512, 39 * kib), (256, 0)):
        graph, conv = one_op("CONV_2D", (depth, 3, 3, depth), (1, 64, 64, depth), (1, 64, 64, depth))
        assert input_scratch(graph, 0, conv) == 2 * 64 * depth + held
    graph, conv = one_op("CONV_2D", (64, 3, 3, 65), (1, 16, 5, 65), (1, 16, 5, 64))
    assert input_scratch(graph, 0, conv) == 2 * 512


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=9), st.integers(0, 10**6), st.integers(0, 1 << 24))
def test_latency_and_loading_are_sums_over_stages(stages: list[int], handover_ns: int, cached: int) -> None:
    total = 0
    for ns in stages:
        total += ns + handover_ns
    assert latency_ns(stages, handover_ns) == total
    assert load_ns(cached, 2_800_000, 17) == math.ceil(Fraction(cached * 2_800_000, MIB)) + 17


@pytest.mark.parametrize("load_start_ns", [0, 12_345])
def test_a_plans_first_inference_is_its_latency_and_the_loading_of_each_segment(load_start_ns: int) -> None:
    hardware = PCIE.changed({"load_ns": load_start_ns})
    plan = balancer.balance(synth.fc(1_500), 3, hardware=hardware)
    constants, by_name = plan.hardware.constants, {s.name: s.predicted for s in plan.segments}
    latencies, firsts = [], []
    for pipeline in plan.pipelines:
        stages = [by_name[stage.segment] for stage in pipeline.stages]
        latencies.append(sum(s.stage_ns for s in stages) + len(stages) * constants["handover_ns"])
        loads = [Fraction(s.cached_bytes * constants["load_ns_per_mib"], MIB) for s in stages]
        firsts.append(latencies[-1] + sum(math.ceil(load) + load_start_ns for load in loads))
        assert pipeline.predicted.latency_ns == latencies[-1]
    assert plan.predicted.latency_ns == max(latencies)
    assert plan.predicted.first_inference_ns == max(firsts) > max(latencies)


def test_feeding_written_out() -> None:
    stages = [StageCost(3_000, 400, 0, MIB), StageCost(5_000, 100, 64, 2 * MIB), StageCost(4_900, 300, 0, 0)]
    hardware = PCIE.changed(
        {
            "handover_ns": 10, "host_ns_per_stage": 100, "thread_ns": 20, "wake_ns": 500, "upstream_permille_2": 100,
            "upstream_permille_3": 200, "upstream_permille_4": 400, "load_ns_per_mib": 1_000, "load_ns": 7,
        }
    )  # fmt: skip

    def ns(batch: int, feeding: Feeding, count: int = 3) -> float:
        return inference_ns(stages[:count], hardware, batch, feeding)

    assert ns(1, Feeding.INVOKE) == ns(9, Feeding.INVOKE) == 12_900
    assert ns(1, Feeding.STEADY) == 12_900 + 3 * 10
    assert ns(10, Feeding.STEADY) == (12_930 + 9 * 5_000) / 10
    assert ns(1, Feeding.THREADS) == 12_900 + 3 * 520
    assert ns(1, Feeding.THREADS, count=1) == 3_000 + 20  # nothing streams, nothing sleeps
    assert ns(10, Feeding.THREADS) == pytest.approx((14_460 + 9 * 5_500) / 10)
    assert ns(10, Feeding.RUNNER) == pytest.approx((12_900 + 9 * 5_080) / 10)  # 5_000 + 200 of 1000 * 400
    assert ns(10, Feeding.RUNNER, count=2) == pytest.approx((8_000 + 9 * 5_040) / 10)
    assert ns(10, Feeding.FRESH) == pytest.approx((12_900 + 9 * 5_080 + 2_007) / 10)  # the largest upload
    four = [*stages, StageCost(100, 0, 0, 0)]
    assert inference_ns(four, hardware, 10, Feeding.RUNNER) == pytest.approx((13_000 + 9 * 5_160) / 10)
    busy = hardware.changed({"host_ns_per_stage": 2_000})
    assert period_ns(stages, busy) == 6_000
    assert inference_ns(stages, busy, 10, Feeding.THREADS) == pytest.approx((14_460 + 9 * 6_000) / 10)


def test_the_lower_bound_counts_what_exceeds_the_largest_capacity() -> None:
    """Streaming alone costs anything: 3 ns for each byte, after 5 ns to invoke the segment."""
    hardware = NOTHING.changed({"stream_ns_per_mib": 3 * MIB, "invoke_ns": 5, "wide_bytes_per_tile": 640 + 100})
    costs = SegmentCosts(read_graph(synth.fc(130), name="fc"), hardware)
    streamed = sum(op.layout.streamed for op in costs.op_terms)
    assert costs.lower(costs.graph.all_ops) == 5 + 3 * (streamed - 16 * 100)
    assert costs.lower(0b1) == 5
