"""Ops that run on the CPU in some segments and on the TPU in others: the structure of the cost, and what solvers make of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer import Options, balance
from balancer.cost.hardware import load_hardware
from balancer.cost.segment import SegmentCosts
from balancer.graph import Graph, Op, Tensor
from balancer.ground.opsets import members, op_set
from balancer.planning.problem import problem_of, structure
from balancer.solve import SolverOptions, solve
from tests.shared import ZOO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from balancer.ground.opsets import OpSet

USB = load_hardware("usb")


@st.composite
def mixed_graphs(draw: Callable[[Any], Any], most_ops: int = 7) -> Graph:
    """Graphs in which the Edge TPU does not take some ops. Some ops have a constant operand that is always streamed."""
    count = draw(st.integers(2, most_ops))
    size = st.integers(1, 1 << 16)
    tensors = [Tensor(0, "input", (1, 8, 8, 8), "int8", draw(size))]
    ops = []
    for i in range(count):
        reads = draw(
            st.lists(st.integers(max(0, len(tensors) - 4), len(tensors) - 1), min_size=1, max_size=2, unique=True)
        )
        reads = [t for t in reads if not tensors[t].is_parameter] or [0]
        if draw(st.booleans()):
            tensors.append(Tensor(len(tensors), f"constant {i}", (8,), "int8", 8, is_parameter=True))
            reads = [reads[0], len(tensors) - 1]
        tensors.append(Tensor(len(tensors), f"made {i}", (1, 8, 8, 8), "int8", draw(size)))
        unmapped = "not taken" if draw(st.integers(0, 3)) == 0 else ""
        ops.append(Op(i, "MUL", 1, tuple(reads), (len(tensors) - 1,), macs=draw(size), unmapped=unmapped))
    read = {t for op in ops for t in op.inputs}
    outputs = tuple(op.outputs[0] for op in ops if op.outputs[0] not in read)
    return Graph("mixed", tuple(tensors), tuple(ops), (0,), outputs)


def segments(graph: Graph) -> Iterator[OpSet]:
    """Every difference of two down-sets."""
    sets = [
        op_set(ops)
        for count in range(len(graph.ops) + 1)
        for ops in combinations(range(len(graph.ops)), count)
        if all(graph.before[i] & ~op_set(ops) == 0 for i in ops)
    ]
    return iter({b & ~a for a in sets for b in sets if a != b and a & b == a})


def structured_ns(graph: Graph, costs: SegmentCosts, ops: OpSet) -> int:
    """The formula of `Structure`, for parameters that always fit."""
    terms, inside = structure(costs), list(members(ops))
    total = terms.stage_ns + sum(terms.op_ns[i] or 0 for i in inside)
    starts = any(i in terms.streaming for i in inside)
    for i in inside:
        handed = any(h.followers >> i & 1 and ops >> h.op & 1 and ops & h.after for h in terms.handoffs)
        if terms.handoffs:
            total += (terms.handed_ns[i] if handed else terms.usual_ns[i]) - (terms.op_ns[i] or 0)
        starts |= i in terms.usually_streaming and not handed
    for t in terms.transfers:
        here, outside = [r for r in t.readers if r in inside], [r for r in t.readers if r not in inside]
        total += t.receive_ns if here and t.producer not in inside else 0
        total += t.send_ns if t.producer in inside and (t.leaves or outside) else 0
    return total + terms.spill_start_ns * starts


@given(mixed_graphs())
def test_the_structure_is_the_exact_cost_where_all_parameters_fit(graph: Graph) -> None:
    costs = SegmentCosts(graph, USB)
    for ops in segments(graph):
        if costs.allowed(ops):
            assert structured_ns(graph, costs, ops) == costs.terms(ops).stage_ns


@given(mixed_graphs(), st.integers(1, 3))
def test_cpsat_finds_what_the_search_over_all_down_sets_finds(graph: Graph, devices: int) -> None:
    problem = problem_of({"usb": SegmentCosts(graph, USB)}, (("usb", devices),), may_overflow=True)
    by_cpsat, by_downsets = (solve(problem, SolverOptions(solver=s, max_pipelines=1)) for s in ("cpsat", "downset"))
    assert by_cpsat.status == by_downsets.status == "optimal"
    assert by_cpsat.value.objective_ns == by_downsets.value.objective_ns


@pytest.mark.shared
@pytest.mark.wide
def test_the_tail_of_yolov8n_is_cut_off_where_the_cpu_is_slow() -> None:
    slow = replace(USB.cpu, cpu_ns_per_mib=4 * USB.cpu.cpu_ns_per_mib, cpu_op_ns=4 * USB.cpu.cpu_op_ns)
    path, hardware = ZOO / "YOLOv8n_320_int8.tflite", replace(USB, name="slow", cpu=slow)
    any_level = Options(compilable="any")
    plan, alone = (balance(path, n, hardware=hardware, options=any_level) for n in (3, 1))
    assert plan.solver.status == "optimal"
    (whole,), stages = alone.segments, [segment.predicted for segment in plan.segments]
    assert whole.predicted.cpu_ns > 2 * sum(stage.cpu_ns for stage in stages)
    assert plan.predicted.throughput_per_s > 3 * alone.predicted.throughput_per_s
