"""What segments take of a bus and of the host's cores, and that no plan is faster than these allow."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations, pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import balancer
from balancer.cli.main import main
from balancer.cost.cpu_hardware import CpuHardware
from balancer.cost.devices import Devices
from balancer.cost.hardware import Hardware, load_hardware, load_kind
from balancer.cost.instructions import BASE_BYTES
from balancer.cost.profile import OpCosts, Profile
from balancer.cost.segment import SegmentCosts
from balancer.ground.downsets import DownSets
from balancer.ground.opsets import interval_set
from balancer.ground.units import MIB, NS_PER_S
from balancer.planning.costed_model import CostedModel, open_costed_model
from balancer.planning.shared_work import CORES, SharedWork, bus_name
from balancer.solve import PipelineSpec, StageSpec, evaluate, steady_rate
from balancer.tflite import synth
from balancer.tflite.read import read_graph
from tests.plans import WIDE
from tests.test_cost_terms import down_sets, graphs, nested_pairs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from balancer.graph import Graph

USB, PCIE = load_hardware("usb"), load_hardware("pcie")
SLOW_BUS = USB.changed({"bus_ns_per_mib": 40_000_000})
SMALL = synth.fc(1800, layers=3)


def cpu(cores: int, threads: int = 1) -> CpuHardware:
    found = load_kind("cpu-x86").changed({"cores": cores, "threads": threads})
    assert isinstance(found, CpuHardware)
    return found


def test_the_rates_of_buses_are_nominal_and_links_keep_to_them() -> None:
    assert USB.link.bus_ns_per_mib == round(MIB * 10**9 / 500_000_000)  # 5 Gbit/s, of which 8 bits in 10 are data
    assert load_hardware("usb2").link.bus_ns_per_mib == round(MIB * 125_000 / (13 * 512))
    assert PCIE.link.bus_ns_per_mib == load_hardware("pcie-python").link.bus_ns_per_mib == 0
    for name in ("usb", "usb2", "usb-pi5", "usb-desktop"):
        link = load_hardware(name).link
        rates = (link.stream_ns_per_mib, link.instruction_ns_per_mib, link.input_ns_per_mib, link.output_ns_per_mib)
        assert min(rates) >= link.bus_ns_per_mib > 0


@pytest.mark.parametrize("hardware", [SLOW_BUS, USB])
def test_all_bytes_that_cross_the_link_keep_the_bus_busy(hardware: Hardware) -> None:
    graph = read_graph(WIDE, name="wide")
    shared = SharedWork({"usb": SegmentCosts(graph, hardware)}, (("usb", 2),))
    assert [resource.name for resource in shared.resources] == [bus_name("usb")]
    costs, n = SegmentCosts(graph, hardware), len(graph.ops)
    for a, b in combinations(range(n + 1), 2):
        ops = interval_set(a, b)
        if not costs.allowed(ops):
            continue
        terms, (inputs, outputs) = costs.terms(ops), graph.interface(ops)
        crossing = terms.streamed_bytes + terms.instruction_bytes + 2 * terms.scratch_bytes
        crossing += sum(graph.tensors[t].bytes for t in (*inputs, *outputs))
        (busy_ns,) = shared.exact(ops, "usb")
        if not terms.instruction_bytes:
            crossing += BASE_BYTES  # a segment that is invoked sends some, whatever it holds
        least_ns = crossing * hardware.link.bus_ns_per_mib / MIB
        assert least_ns <= busy_ns <= least_ns + len(graph.ops) * 4 + 8  # each part is rounded up


@given(graphs(), st.booleans())
def test_many_segments_take_what_each_of_them_takes(graph: Graph, profiled: bool) -> None:
    known = {i: OpCosts(ns=1000 + i, parameter_bytes=op.parameter_bytes) for i, op in enumerate(graph.ops)}
    profile = Profile("profile", known) if profiled else None
    costs = {
        "usb": SegmentCosts(graph, SLOW_BUS, profile), "pcie": SegmentCosts(graph, PCIE, profile),
        "cpu-x86": SegmentCosts(graph, cpu(2)),
    }  # fmt: skip
    shared = SharedWork(costs, (("usb", 2), ("pcie", 1), ("cpu-x86", 2)))
    assert [resource.name for resource in shared.resources] == [bus_name("usb"), CORES]
    rows = down_sets(graph)
    pairs = nested_pairs(rows)
    if not pairs:
        return
    inners, outers = np.transpose(pairs)
    sets = DownSets.of(rows, len(graph.ops))
    for kind, own in costs.items():
        taken = shared.batch(sets, kind)(inners, outers)
        assert taken is not None
        for k, (a, b) in enumerate(pairs):
            ops = rows[b] & ~rows[a]
            if own.allowed(ops):
                assert taken[:, k].tolist() == list(shared.exact(ops, kind))
                bus_ns, core_ns = shared.exact(ops, kind)
                host_ns, terms = own.hardware.host.host_ns_per_stage, own.terms(ops)
                assert core_ns - host_ns == (terms.stage_ns if kind == "cpu-x86" else terms.cpu_ns)
                assert (bus_ns > 0) == (kind == "usb")


def test_resources_that_cannot_limit_are_left_out() -> None:
    def names(*kinds: tuple[Hardware | CpuHardware, int]) -> list[str]:
        problem = open_costed_model(WIDE, Devices(kinds)).problem()
        return [resource.name for resource in problem.shared]

    assert names((PCIE, 8)) == names((USB, 1)) == names((USB, 1), (PCIE, 4)) == []
    assert names((USB, 2), (load_hardware("usb2"), 3)) == [bus_name("usb"), bus_name("usb2")]
    assert names((SLOW_BUS, 1)) == [bus_name("usb")]  # slower than the one device's own link
    assert names((PCIE, 2), (cpu(8), 1)) == []
    assert names((PCIE, 2), (cpu(2), 2)) == names((cpu(4, threads=2), 2)) == [CORES]


def crossing_bytes(plan: balancer.Plan, pipeline: int) -> int:
    segments = [plan.segment(stage.segment) for stage in plan.pipelines[pipeline].stages if stage.kind == "usb"]
    terms = [
        (s.predicted.streamed_bytes + s.predicted.instruction_bytes + 2 * s.predicted.scratch_bytes) for s in segments
    ]
    return sum(terms) + sum(t.bytes for s in segments for t in (*s.inputs, *s.outputs))


@pytest.mark.parametrize("rate", [2_097_152, 10_000_000, 40_000_000])
@pytest.mark.parametrize("count", [2, 4])
def test_a_plan_is_never_faster_than_what_its_bus_carries(rate: int, count: int) -> None:
    plan = balancer.balance(WIDE, Devices(((USB.changed({"bus_ns_per_mib": rate}), count),)))
    least = min(crossing_bytes(plan, k) for k in range(len(plan.pipelines)))
    assert plan.predicted.throughput_per_s * least * rate / MIB <= NS_PER_S * (1 + 1e-6)
    (bus,) = plan.predicted.shared
    assert bus.name == bus_name("usb")
    assert 0 < bus.share <= 1
    free = balancer.balance(WIDE, Devices(((USB.changed({"bus_ns_per_mib": 0}), count),)))
    assert plan.predicted.throughput_per_s <= free.predicted.throughput_per_s
    assert free.predicted.shared == ()
    for row in plan.comparison:
        assert (row.throughput_per_s or 0) <= plan.predicted.throughput_per_s * (1 + 1e-6)


def pipelines_of(costed: CostedModel, n_ops: int) -> Iterator[PipelineSpec]:
    """Every pipeline of intervals on devices of any kinds, one for each stage."""
    kinds = [kind for kind, count in costed.devices.counts for _ in range(count)]
    for stages in range(1, len(kinds) + 1):
        for cuts in combinations(range(1, n_ops), stages - 1):
            for used in set(_orders(tuple(kinds), stages)):
                parts = zip(pairwise([0, *cuts, n_ops]), used, strict=True)
                yield PipelineSpec(tuple(StageSpec(interval_set(a, b), kind) for (a, b), kind in parts))


def _orders(kinds: tuple[str, ...], length: int) -> Iterator[tuple[str, ...]]:
    if not length:
        yield ()
        return
    for k, kind in enumerate(kinds):
        for rest in _orders(kinds[:k] + kinds[k + 1 :], length - 1):
            yield (kind, *rest)


@pytest.mark.parametrize(
    "kinds", [((SLOW_BUS, 3),), ((SLOW_BUS, 2), (cpu(1), 1)), ((PCIE, 1), (cpu(2), 2)), ((USB, 2), (PCIE, 1))]
)
def test_no_pipeline_under_a_bus_or_few_cores_beats_the_plan(
    kinds: tuple[tuple[Hardware | CpuHardware, int], ...],
) -> None:
    costed = open_costed_model(SMALL, Devices(kinds))
    problem = costed.problem()
    plan = balancer.balance(SMALL, costed.devices, options=balancer.Options(compilable="any"))
    assert plan.solver.status == "optimal"
    values = [evaluate(problem, [pipeline]) for pipeline in pipelines_of(costed, problem.n_ops)]
    assert plan.solver.objective_ns <= min(value.objective_ns for value in values if value)


def test_cores_that_are_all_busy_slow_every_pipeline() -> None:
    costed = open_costed_model(SMALL, Devices(((cpu(2), 2),)))
    whole = PipelineSpec((StageSpec(interval_set(0, costed.problem().n_ops), "cpu-x86"),))
    kind, cost = costed.devices.kinds[0][0], costed.problem().exact(whole.stages[0].ops, "cpu-x86")
    assert cost is not None
    two = steady_rate(costed.problem(), [whole, whole])
    assert two == Fraction(2 * NS_PER_S, cost.time_ns + kind.host.host_ns_per_stage)
    roomy = open_costed_model(SMALL, Devices(((cpu(8), 2),))).problem()
    free, host = Fraction(2 * NS_PER_S, cost.time_ns), Fraction(NS_PER_S, kind.host.host_ns_per_stage)
    assert steady_rate(roomy, [whole, whole]) == min(free, host)


def test_a_bus_that_limits_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, hardware = tmp_path / "net.tflite", tmp_path / "slow.json"
    path.write_bytes(WIDE)
    constant = '{"value": 40000000, "known": "assumed", "source": "a slow bus"}'
    hardware.write_text(
        '{"format": "balancer-hardware", "version": 1, "name": "slow", "base": "usb", '
        f'"constants": {{"bus_ns_per_mib": {constant}}}}}'
    )
    assert main(["predict", str(path), "--cuts", "3", "--hardware", str(hardware)]) == 0
    said = capsys.readouterr().out
    assert "shared: the bus of slow 100 % busy" in said
    assert "slowest stage: " in said
    assert main(["solve", str(path), "-n", f"{hardware}=2"]) == 0
    said = capsys.readouterr().out
    shares = [line for line in said.splitlines() if line.startswith("shared: the bus of slow ")]
    assert len(shares) == 1
    assert ("limit: the bus of slow" in said) == ("100 % busy" in shares[0])
