"""Segments that the compiler refuses: what follows for others, which plan is compiled next, and what plans remember."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import balancer
from balancer.cli.drawing_compiling import round_line
from balancer.cli.main import main
from balancer.compiler import Refused
from balancer.compiler.failures import About, failures_in
from balancer.cost.activation_sizes import ActivationSizes, Measure, activation_size
from balancer.cost.compilable import Compilable
from balancer.cost.hardware import load_hardware
from balancer.cost.segment import SegmentCosts
from balancer.errors import BalancerError, CompilerError, InfeasibleError, PlanError
from balancer.ground.downsets import DownSets, NestedSets
from balancer.ground.opsets import interval_set
from balancer.learning.refusals import forbidden_by, refused_segment
from balancer.loops.tuning import truth_of, tune
from balancer.planning.costed_model import CostedModel, costed_model_of, open_costed_model
from balancer.planning.forbidding import Forbidden, ForbiddenBetween, Part
from balancer.planning.least_size import least_size
from balancer.planning.solving import solve_costed_model
from balancer.tflite import synth
from balancer.tflite.cut import Cutter
from balancer.tflite.flatbuffer import Table
from tests import edgetpu_compiler, handmade

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from balancer.graph import Graph
    from balancer.ground.opsets import OpSet
    from balancer.loops.refining import RefineRound

PCIE = load_hardware("pcie")
LIMITS = {Measure.MOST_LIVE: "most_live_bytes", Measure.IN_TOTAL: "most_bytes"}
CHAIN = synth.conv(32, layers=9, size=32)


@st.composite
def models(draw: Callable[[Any], Any], most_ops: int = 7) -> bytes:
    step = st.tuples(st.sampled_from(handmade.DAG_KINDS), st.integers(0, 20), st.integers(0, 20))
    return handmade.dag(draw(st.lists(step, min_size=2, max_size=most_ops)), ())


def _down_sets(graph: Graph) -> list[OpSet]:
    sets = range(1 << len(graph.ops))
    closed = (s for s in sets if all(graph.before[i] & ~s == 0 for i in range(len(graph.ops)) if s >> i & 1))
    return sorted(closed, key=lambda s: (s.bit_count(), s))


def _pairs(sets: list[OpSet]) -> list[tuple[int, int]]:
    return [(a, b) for a, inner in enumerate(sets) for b, outer in enumerate(sets) if a != b and not inner & ~outer]


def _segments(draw: Callable[[Any], Any], costs: SegmentCosts) -> list[OpSet]:
    sets = _down_sets(costs.graph)
    found = [sets[b] & ~sets[a] for a, b in _pairs(sets)]
    return draw(st.lists(st.sampled_from([s for s in found if costs.allowed(s)]), max_size=3))  # type: ignore[no-any-return]


@given(models(), st.sampled_from(list(Measure)))
def test_sizes_of_many_segments_are_those_of_each(data: bytes, measure: Measure) -> None:
    costs = SegmentCosts(balancer.load_graph(data), PCIE)
    sets = _down_sets(costs.graph)
    nested = [interval_set(0, k) for k in range(len(costs.graph.ops) + 1)]
    for rows, kind in ((sets, DownSets), (nested, NestedSets)):
        pairs = _pairs(rows)
        sizes = ActivationSizes(costs, kind.of(rows, len(costs.graph.ops)))(measure, *np.transpose(pairs))
        for size, (a, b) in zip(sizes.tolist(), pairs, strict=True):
            assert size == activation_size(costs, rows[b] & ~rows[a], measure)


@given(models(), st.sampled_from(list(Measure)))
def test_a_segment_is_as_large_as_each_part_of_it(data: bytes, measure: Measure) -> None:
    costs = SegmentCosts(balancer.load_graph(data), PCIE)
    sets = _down_sets(costs.graph)
    size = {ops: activation_size(costs, ops, measure) for ops in {sets[b] & ~sets[a] for a, b in _pairs(sets)}}
    assert all(size[a] <= size[b] for a in size for b in size if not a & ~b)


@given(models(), st.data())
def test_what_is_forbidden_is_the_same_for_one_segment_and_for_many(data: bytes, draws: st.DataObject) -> None:
    costs = SegmentCosts(balancer.load_graph(data), PCIE)
    segments = frozenset(_segments(draws.draw, costs))
    parts = tuple(Part(ops, ops & costs.sure_on_tpu) for ops in _segments(draws.draw, costs))
    whole = costs.graph.all_ops
    limits = {
        measure: draws.draw(st.integers(1, activation_size(costs, whole, measure) + 1))
        for measure in draws.draw(st.sets(st.sampled_from(list(Measure))))
    }
    forbidden, sets = Forbidden(segments, parts, limits), _down_sets(costs.graph)
    pairs = _pairs(sets)
    found = ForbiddenBetween(forbidden, costs, DownSets.of(sets, len(costs.graph.ops)))(*np.transpose(pairs))
    for each, (a, b) in zip(found.tolist(), pairs, strict=True):
        ops = sets[b] & ~sets[a]
        assert each == forbidden.forbids(costs, ops)
        contained = any(not part.ops & ~ops for part in parts)
        too_large = any(activation_size(costs, ops, measure) >= limit for measure, limit in limits.items())
        if all(costs.graph.ops[i].mapped for i in range(len(costs.graph.ops))):
            assert each == (ops in segments or contained or too_large)


def _refused(costs: SegmentCosts, ops: OpSet, about: About = About.ACTIVATIONS) -> Any:
    return refused_segment(costs, ops, Refused("segment", "too large", "cut it", "output", about))


@given(models(), st.data())
def test_no_segment_is_forbidden_that_was_compiled_nor_any_part_of_it(data: bytes, draws: st.DataObject) -> None:
    costs = SegmentCosts(balancer.load_graph(data), PCIE)
    compiled = _segments(draws.draw, costs)
    refused = [ops for ops in _segments(draws.draw, costs) if not any(not ops & ~each for each in compiled)]
    forbidden = forbidden_by(costs, [_refused(costs, ops) for ops in refused], compiled)
    assert all(forbidden.forbids(costs, ops) for ops in refused)
    assert not any(forbidden.forbids(costs, ops) for ops in compiled)


def test_a_refusal_for_an_unknown_reason_forbids_that_segment_alone() -> None:
    costs = SegmentCosts(balancer.load_graph(CHAIN), PCIE)
    ops = interval_set(2, 5)
    forbidden = forbidden_by(costs, [_refused(costs, ops, About.SEGMENT)], [])
    assert forbidden == Forbidden(frozenset({ops}))
    larger = forbidden_by(costs, [_refused(costs, ops)], [])
    assert larger.forbids(costs, interval_set(1, 5))
    assert not forbidden.forbids(costs, interval_set(1, 5))


def _large_tables() -> bytes:
    """Two tables of 400,000 rows are joined: 12.8 MB, more than all memory of the chip."""
    b, shape = handmade.Builder(), (1, 400_000, 16)
    inputs = [b.tensor(f"in_{k}", shape) for k in range(2)]
    tables = [b.relu(t, f"table_{k}", shape=shape) for k, t in enumerate(inputs)]
    joined = b.tensor("joined", (1, 400_000, 32))
    b.op("CONCATENATION", tables, [joined], Table("ConcatenationOptions", {"axis": 2}))
    return b.file(inputs, [b.relu(joined, "out", shape=(1, 400_000, 32))])


def test_an_op_that_surely_does_not_compile_is_the_reason() -> None:
    """Here no plan is left, and that is said after one round."""
    costed = open_costed_model(_large_tables(), "pcie")
    costs, whole = costed.costs, costed.graph.all_ops
    assert costs.judgement(whole).level is Compilable.SURELY_NOT
    forbidden = forbidden_by(costs, [_refused(costs, whole)], [])
    assert forbidden.parts == (Part(0b100, 0b100),)
    assert forbidden.forbids(costs, 0b1100)
    assert not forbidden.forbids(costs, 0b11)
    # What was compiled after all contradicts a small part: a larger one is the reason.
    assert forbidden_by(costs, [_refused(costs, whole)], [0b100]).parts == (Part(0b111, 0b100),)
    assert forbidden_by(costs, [_refused(costs, whole)], [0b111]).parts == (Part(whole, whole),)


def _truth(data: bytes, ops: OpSet, measure: Measure) -> int:
    """The size by which the stand-in decides: of the segment's file, which knows nothing of the model around it."""
    costs = SegmentCosts(balancer.load_graph(Cutter(data).cut(ops)), PCIE)
    return activation_size(costs, costs.graph.all_ops, measure)


def _least_over_cuts(costed: CostedModel, n_tpus: int, measure: Measure) -> int:
    """By brute force: the predicted size of the largest segment in the partition in which it is smallest."""
    n = len(costed.graph.ops)
    cuts = (chosen for k in range(min(n, n_tpus)) for chosen in combinations(range(1, n), k))
    partitions = ([interval_set(a, b) for a, b in pairwise((0, *chosen, n))] for chosen in cuts)
    allowed = [p for p in partitions if all(costed.costs.allowed(ops) for ops in p)]
    return min(max(activation_size(costed.costs, ops, measure) for ops in p) for p in allowed)


@given(models(), st.sampled_from(list(Measure)), st.data())
def test_a_segments_file_is_never_larger_than_predicted(data: bytes, measure: Measure, draws: st.DataObject) -> None:
    """It may be smaller: what else reads a tensor is not known from its file."""
    costs = SegmentCosts(balancer.load_graph(data), PCIE)
    for ops in _segments(draws.draw, costs):
        assert _truth(data, ops, measure) <= activation_size(costs, ops, measure)


@settings(max_examples=10, deadline=None)
@given(data=models(), measure=st.sampled_from(list(Measure)), n_tpus=st.integers(2, 3), draws=st.data())
def test_all_is_compiled_wherever_a_partition_exists(
    data: bytes, measure: Measure, n_tpus: int, draws: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whichever measure the compiler goes by, within four rounds."""
    costed = open_costed_model(data, "pcie")
    least, whole = (
        _least_over_cuts(costed, n_tpus, measure),
        activation_size(costed.costs, costed.graph.all_ops, measure),
    )
    limit = draws.draw(st.integers(least - 1, whole))
    compiler = edgetpu_compiler.in_process(tmp_path_factory.mktemp("bin"), **{LIMITS[measure]: limit})
    rounds: list[RefineRound] = []
    try:
        plan = balancer.refine(balancer.balance(data, n_tpus), compiler, on_round=rounds.append).plan
    except (CompilerError, InfeasibleError):
        assert limit < least
        assert all(done.refused for done in rounds)
        return
    assert len(rounds) <= 4
    for segment in plan.segments:
        assert segment.reported is not None
        assert _truth(data, segment.ops, measure) <= limit


@given(models(), st.sampled_from(list(Measure)), st.integers(1, 3))
def test_the_least_size_is_that_of_some_partition_and_no_cuts_have_less(
    data: bytes, measure: Measure, n_tpus: int
) -> None:
    costed = open_costed_model(data, "pcie")
    assert least_size(costed.on(n_tpus), balancer.Options(), measure) <= _least_over_cuts(costed, n_tpus, measure)


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    path = tmp_path / "chain.tflite"
    path.write_bytes(CHAIN)
    return path


def _half(n_tpus: int) -> int:
    """A limit on all activations that whole models break and some plan keeps."""
    costed = open_costed_model(CHAIN, "pcie")
    whole = activation_size(costed.costs, costed.graph.all_ops, Measure.IN_TOTAL)
    return (whole + least_size(costed.on(n_tpus), balancer.Options(), Measure.IN_TOTAL)) // 2


def test_each_round_says_why_and_the_plan_remembers(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = edgetpu_compiler.install(tmp_path / "bin", most_bytes=_half(3))
    chosen = ["--compile", "--edgetpu_compiler_binary", str(program), "--cache", str(tmp_path / "cache")]
    assert main(["solve", str(chain), "-n", "3", "-o", str(tmp_path / "plan"), *chosen]) == 0
    out = capsys.readouterr().out
    assert "not compiled: chain_segment_0_of_1: an activation is too large for the Edge TPU" in " ".join(out.split())
    kept = tmp_path / "plan" / "chain_segment_0_of_1_round_1_refused.log"
    assert "large activation tensors" in kept.read_text()
    assert f"its output: {kept}" in out
    plan = balancer.load_plan(tmp_path / "plan")
    assert all(segment.reported for segment in plan.segments)
    assert "without what was refused" in plan.solver.over
    forbidden = costed_model_of(plan).forbidden
    assert interval_set(0, 10) in forbidden.segments
    assert not any(forbidden.forbids(costed_model_of(plan).costs, s.ops) for s in plan.segments)


def test_logs_are_kept_where_nothing_compiles(chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And a second call is not hindered by them."""
    program = edgetpu_compiler.install(tmp_path / "bin", fails={"*": "large activation tensors"})
    chosen = ["--compile", "--edgetpu_compiler_binary", str(program), "--cache", str(tmp_path / "cache")]
    for _ in range(2):
        assert (
            main(["solve", str(chain), "-n", "2", "-o", str(tmp_path / "plan"), *chosen]) == InfeasibleError.exit_code
        )
        names = {path.name for path in (tmp_path / "plan").iterdir()}
        assert "chain_segment_0_of_1_round_1_refused.log" in names
        assert all(name.endswith("_refused.log") for name in names)
        error = capsys.readouterr().err
        assert "each plan has a segment that is refused" in error
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    "said",
    ["Internal compiler error. Aborting!", "Segmentation fault", "Compilation timeout", "No space left on device"],
)
def test_a_fault_of_the_compiler_ends_it_at_once(chain: Path, tmp_path: Path, said: str) -> None:
    assert [failure.about for failure in failures_in(said)] == [About.COMPILER]
    rounds: list[RefineRound] = []
    compiler = edgetpu_compiler.in_process(tmp_path / "bin", fails={"*": said})
    with pytest.raises(CompilerError, match="cannot be compiled"):
        balancer.refine(balancer.balance(chain, 2), compiler, on_round=rounds.append)
    assert len(rounds) == 1


def _after_refusals(chain: Path, tmp_path: Path) -> balancer.Plan:
    compiler = edgetpu_compiler.in_process(tmp_path / "bin", most_bytes=_half(3))
    plan = balancer.refine(balancer.balance(chain, 3), compiler).plan
    assert plan.refusals is not None
    return balancer.save(plan, tmp_path / "plan")


def test_no_later_loop_proposes_a_refused_segment(chain: Path, tmp_path: Path) -> None:
    plan = _after_refusals(chain, tmp_path)
    forbidden, costs = costed_model_of(plan).forbidden, costed_model_of(plan).costs
    assert forbidden.segments
    tuned = tune(plan, truth_of(plan, seed=1))
    assert tuned.plan.refusals == plan.refusals
    assert not any(forbidden.forbids(costs, segment.ops) for segment in tuned.plan.segments)
    again = balancer.refine(plan, edgetpu_compiler.in_process(tmp_path / "again", most_bytes=_half(3)))
    assert not any(done.refused and done.refused[0].ops in forbidden.segments for done in again.rounds)
    assert again.plan.refusals is not None
    assert set(plan.refusals.segments if plan.refusals else ()) <= set(again.plan.refusals.segments)


def test_a_solved_model_that_remembers_refusals_has_none_of_them(chain: Path, tmp_path: Path) -> None:
    costed = costed_model_of(_after_refusals(chain, tmp_path))
    for n_tpus in (2, 3, 4):
        solution = solve_costed_model(costed.on(n_tpus), balancer.Options())
        sets = [stage.ops for pipeline in solution.pipelines for stage in pipeline.stages]
        assert not any(costed.forbidden.forbids(costed.costs, ops) for ops in sets)
        free = solve_costed_model(replace(costed, forbidden=Forbidden()).on(n_tpus), balancer.Options())
        assert solution.value >= free.value


def test_sizing_a_plan_counts_none_of_what_was_refused_for_it(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole model on one TPU was refused, so there is no plan for one."""
    plan = _after_refusals(chain, tmp_path)
    sizing, of_model = balancer.size(plan, max_tpus=3), balancer.size(chain, max_tpus=3)
    assert sizing.rows[0].throughput_per_s is None
    assert of_model.rows[0].throughput_per_s is not None
    rates = [
        (row.throughput_per_s or 0, free.throughput_per_s or 0)
        for row, free in zip(sizing.rows, of_model.rows, strict=True)
    ]
    assert all(rate <= free for rate, free in rates)
    assert rates[2][0] > 0
    assert main(["size", str(tmp_path / "plan"), "--max-tpus", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["throughput_per_s"] is None
    assert main(["size", str(tmp_path / "plan"), "--hardware", "usb"]) == PlanError.exit_code
    assert "has hardware of its own" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("refusals", "wrong"),
    [
        ({"segments": ["0-99"], "parts": []}, "not within ops 0 to 9"),
        ({"segments": [], "parts": [{"ops": "0-3", "on_chip": "4"}]}, "'4' is not within '0-3'"),
        ({"segments": [], "parts": [{"ops": "0-77", "on_chip": "4"}]}, "not within ops 0 to 9"),
        ({"segments": "0-3", "parts": []}, "not a valid value"),
    ],
)
def test_refusals_that_do_not_fit_the_model_are_named(
    chain: Path, tmp_path: Path, refusals: dict[str, Any], wrong: str
) -> None:
    saved = balancer.save(balancer.balance(chain, 2), tmp_path / "plan")
    file = tmp_path / "plan" / saved.file_name
    document = json.loads(file.read_text())
    assert document["refusals"] is None
    file.write_text(json.dumps(document | {"refusals": refusals}))
    with pytest.raises(PlanError, match=wrong):
        balancer.load_plan(file)


def test_a_plan_of_before_refuses_nothing(chain: Path, tmp_path: Path) -> None:
    saved = balancer.save(balancer.balance(chain, 2), tmp_path / "plan")
    file = tmp_path / "plan" / saved.file_name
    document = json.loads(file.read_text())
    del document["refusals"]
    file.write_text(json.dumps(document))
    assert balancer.load_plan(file).refusals is None
    assert not costed_model_of(file).forbidden


def test_constraints_hold_after_refusals(chain: Path, tmp_path: Path) -> None:
    options = balancer.Options(constraints=balancer.Constraints(pinned={1: 0}))
    compiler = edgetpu_compiler.in_process(tmp_path / "bin", most_bytes=_half(3))
    try:
        plan = balancer.refine(balancer.balance(chain, 3, options=options), compiler, options=options).plan
    except BalancerError as error:
        assert "refused" in str(error)
        return
    assert plan.segments[0].ops >> 1 & 1


@pytest.fixture(scope="module")
def wide_ops() -> bytes:
    """Three convolutions of which each needs more of a tile, by itself, than segments that surely compile."""
    b, shape = handmade.Builder(), (1, 256, 256, 24)
    tensor = source = b.tensor("picture", shape)
    for k in range(3):
        tensor = b.conv(tensor, f"map_{k}", shape=shape)
    return b.file([source], [tensor])


def test_where_an_op_is_too_large_by_itself_no_cut_is_advised(wide_ops: bytes, tmp_path: Path) -> None:
    alone = open_costed_model(wide_ops, "pcie").costs.judgement(1).tile_bytes
    compiler = edgetpu_compiler.in_process(tmp_path / "bin", most_live_bytes=alone - 1)
    rounds: list[RefineRound] = []
    with pytest.raises(BalancerError, match=r"which op \d CONV_2D needs by itself; no cut helps"):
        balancer.refine(balancer.balance(wide_ops, 2), compiler, on_round=rounds.append)
    for done in rounds:
        assert "needs by itself" in round_line(done)
        assert all(len(line) <= 80 for line in round_line(done).splitlines())


@pytest.mark.parametrize("about", list(About))
def test_only_refusals_of_activations_name_a_tensor(wide_ops: bytes, about: About) -> None:
    costs = open_costed_model(wide_ops, "pcie").costs
    refused = _refused(costs, costs.graph.all_ops, about)
    assert (refused.tensor is not None) == (about is About.ACTIVATIONS)
    assert (refused.alone is not None) == (about is About.ACTIVATIONS)


@pytest.mark.parametrize(
    "said",
    [
        "Invalid model: x.tflite\nModel not quantized",
        "Model not quantized",
        "Invalid model: x.tflite",
        "static-sized tensors",
    ],
)
def test_a_model_that_cannot_be_read_is_to_be_converted_again(chain: Path, tmp_path: Path, said: str) -> None:
    assert all(found.about is About.MODEL and "batch size" in found.remedy for found in failures_in(said))
    compiler = edgetpu_compiler.in_process(tmp_path / "bin", fails={"*": said})
    rounds: list[RefineRound] = []
    with pytest.raises(CompilerError, match="convert the model again"):
        balancer.refine(balancer.balance(chain, 2), compiler, on_round=rounds.append)
    assert "live" not in round_line(rounds[0])
    assert ("quantised" in rounds[0].refused[0].reason) == ("quantized" in said)


def test_a_directory_of_logs_says_what_it_is(chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = edgetpu_compiler.install(tmp_path / "bin", fails={"*": "Model not quantized"})
    chosen = ["--compile", "--edgetpu_compiler_binary", str(program), "--cache", str(tmp_path / "cache")]
    assert main(["solve", str(chain), "-n", "2", "-o", str(tmp_path / "plan"), *chosen]) == 1
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "plan")]) == 1
    said = capsys.readouterr().err
    assert "holds no plan, only what the compiler printed of segments that it refused" in said
    log = next((tmp_path / "plan").iterdir())
    assert main(["inspect", str(log)]) == 0
    assert "the compiler finds it not quantised" in capsys.readouterr().out
