"""Calibrating the CPU: what is timed, how constants are fitted, and what users are told."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.cli.main import main
from balancer.cost.cpu_hardware import CpuHardware
from balancer.cost.cpu_work import OP_CLASSES, joined_to, op_class, work
from balancer.cost.hardware import load_kind, preset_names
from balancer.cost.timing import cpu_kind_ns
from balancer.errors import HardwareError, ProfileError
from balancer.interpreter import CHOICE
from balancer.learning.cpu_calibrating import Bench, HostWork, calibrate_cpu, cpu_document, inputs_of, opened_run
from balancer.learning.cpu_fit import TimedModel, fit, multipliers
from balancer.learning.interleaved import Clocks, TimingLimits, beside, interleaved
from balancer.learning.op_timing import time_ops
from balancer.learning.profiling import document_of
from balancer.planning.asked_devices import devices_asked
from balancer.planning.costed_model import CostedModel, open_costed_model, with_profile
from balancer.planning.machine import calibrated_cpu_path, this_cpu
from balancer.tflite.chains import Chain, Step, calibration_chains
from balancer.tflite.opened import open_model
from balancer.tflite.read import read_graph
from tests import handmade
from tests.plans import WIDE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from balancer.graph import Graph
    from balancer.inputs import Array

TRUTH = CpuHardware.with_constants("cpu-x86", load_kind("cpu-x86").constants | {"op_ns": 300}, rough=True)
# Of these models the hundreds of KiB of weights that the others have are not needed: only shapes count.
SMALL = tuple(chain for chain in calibration_chains() if len(chain.model()) < 220_000)
CONVOLUTIONS = sum(chain.name.startswith("CONV_2D") for chain in SMALL)


@cache
def graphs() -> tuple[Graph, ...]:
    return tuple(read_graph(chain.model(), name=chain.name) for chain in SMALL)


def true_ns(graph: Graph, truth: CpuHardware = TRUTH) -> float:
    """What a machine with these constants takes for a whole model."""
    amounts = multipliers(graph, truth.ops.lanes)
    return sum(amount * truth.constants[name] for name, amount in amounts.items())


def networks() -> list[Graph]:
    made = (handmade.conv_chain(5), handmade.free_batch("TRANSPOSE_CONV"), handmade.float_glue(), handmade.shared_buffer(),
            handmade.dag([("conv", 0, 1), ("dense", 1, 2), ("mul", 0, 3), ("pool", 2, 1), ("split", 4, 3)], [0]))  # fmt: skip
    return [read_graph(data, name="handmade") for data in made]


class Machine:
    """A made-up CPU: its clock goes on by what its constants say, more in slow spells and now and then by far."""

    def __init__(self, truth: CpuHardware, noise: Sequence[float] = (1.0,)) -> None:
        self.truth, self.ns, self.noise, self.runs = truth, 0.0, noise, count()

    def opened(self, model: bytes, inputs: Sequence[Array]) -> Callable[[], object]:
        graph = read_graph(model, name="model")
        assert len(inputs) == len(graph.inputs)
        taken = true_ns(graph, self.truth)

        def run() -> None:
            self.ns += taken * self.noise[next(self.runs) % len(self.noise)]

        return run

    @property
    def bench(self) -> Bench:
        clocks = Clocks(lambda: round(self.ns), lambda: self.ns / 1e9)
        return Bench(self.opened, clocks, lambda: HostWork(4000, 9000), lambda: "a made-up interpreter", 1)


def test_every_op_class_is_timed_by_some_chain() -> None:
    timed = {op_class(graph, op) for graph in graphs() for op in graph.ops}
    assert timed == set(OP_CLASSES)


@pytest.mark.parametrize("chain", calibration_chains()[::6], ids=lambda chain: chain.name)
def test_the_interpreter_runs_the_chains(chain: Chain) -> None:
    model = chain.model()
    graph = read_graph(model, name=chain.name)
    assert len(graph.ops) == len(chain.steps)
    outputs = opened_run(model, inputs_of(graph))()
    assert isinstance(outputs, list)
    assert [made.shape for made in outputs] == [graph.tensors[t].shape for t in graph.outputs]


@pytest.mark.parametrize("name", preset_names("cpu"))
def test_the_fit_and_the_cost_model_count_the_same_work(name: str) -> None:
    kind = load_kind(name)
    assert isinstance(kind, CpuHardware)
    for graph in (*networks(), *graphs()):
        around = sum(multipliers(graph, 1)[n] * kind.constants[n] for n in ("invoke_ns", "boundary_ns_per_mib"))
        predicted = sum(cpu_kind_ns(graph, op, kind) for op in graph.ops if not op.folded)
        # Each op rounds three times up to whole ns.
        assert -1 <= predicted - (true_ns(graph, kind) - around) <= 3 * len(graph.ops)


@given(st.sampled_from(SMALL), st.sampled_from((1, 4, 8, 16)))
def test_lanes_only_add_work(chain: Chain, lanes: int) -> None:
    graph = graphs()[SMALL.index(chain)]
    for op in graph.ops:
        least, padded = work(graph, op, 1), work(graph, op, lanes)
        assert padded.macs >= least.macs >= op.macs or op_class(graph, op) in {"max_pooling", "average_pooling"}
        assert padded.bytes >= least.bytes
        assert min(padded) >= 0


def test_a_pad_is_joined_to_the_convolution_that_reads_it_and_to_nothing_else() -> None:
    padded = Chain(
        "padded", (1, 8, 8, 8), (Step("PAD"), Step("CONV_2D", 8), Step("PAD"), Step("MAX_POOL_2D", window=2))
    )
    graph = read_graph(padded.model(), name="padded")
    assert [joined_to(graph, op) for op in graph.ops] == [1, None, None, None]
    assert cpu_kind_ns(graph, graph.ops[0], TRUTH) == 0 < cpu_kind_ns(graph, graph.ops[2], TRUTH)


def test_a_product_with_its_own_logistic_is_one_look_up() -> None:
    swish = Chain("swish", (1, 8, 8, 8), (Step("LOGISTIC"), Step("MUL"), Step("MUL")))
    graph = read_graph(swish.model(), name="swish")
    assert [joined_to(graph, op) for op in graph.ops] == [None, 0, None]


@settings(deadline=None, max_examples=8)
@given(
    st.lists(st.floats(0.3, 3), min_size=8, max_size=8), st.sampled_from((4, 8, 16)), st.integers(0, 2**32),
    st.dictionaries(st.integers(0, CONVOLUTIONS - 1), st.sampled_from((0.5, 1.7, 3.0)), max_size=3),
)  # fmt: skip
def test_the_fit_recovers_constants_from_noisy_times_with_outliers(
    scales: list[float], lanes: int, seed: int, outliers: dict[int, float]
) -> None:
    names = [n for n in TRUTH.constants if n.startswith(("conv", "depth", "dense", "elem", "padd", "invoke"))][:8]
    truth = TRUTH.changed({n: TRUTH.constants[n] * s for n, s in zip(names, scales, strict=True)} | {"lanes": lanes})
    noise = np.random.Generator(np.random.PCG64(seed)).normal(1, 0.01, len(SMALL))
    times = [true_ns(graph, truth) * n for graph, n in zip(graphs(), noise, strict=True)]
    for k, factor in outliers.items():
        times[k] *= factor
    timed = [TimedModel(c.name, g, round(ns)) for c, g, ns in zip(SMALL, graphs(), times, strict=True)]
    fitted = fit(timed)
    errors = [true_ns(g, truth.changed(fitted.constants)) / true_ns(g, truth) - 1 for g in networks()]
    assert np.abs(errors).max() < 0.25
    right = [
        true_ns(g, truth.changed(fitted.constants)) / true_ns(g, truth) - 1
        for k, g in enumerate(graphs()) if k not in outliers
    ]  # fmt: skip
    assert np.median(np.abs(right)) < 0.02
    assert np.quantile(np.abs(right), 0.9) < 0.06
    for name in ("convolution_ns_per_gmac", "wide_depthwise_ns_per_gmac"):
        assert fitted.constants[name] == pytest.approx(truth.constants[name], rel=0.12)
    assert set(fitted.left_out) == {SMALL[k].name for k in outliers}


def test_times_agree_though_the_machine_is_slow_for_a_while() -> None:
    # Half of the time another program is there; now and then an interruption takes ten times as long.
    noise = [1.0] * 97 + [10.0] + [1.02] * 50 + [7.0]
    machine = Machine(TRUTH, noise)
    runs = [
        machine.opened(chain.model(), inputs_of(graph)) for chain, graph in zip(SMALL[:12], graphs()[:12], strict=True)
    ]
    timed = interleaved(runs, runs[0], TimingLimits(20, 1e9, 20), clocks=machine.bench.clocks)
    for ns, graph in zip(timed.ns, graphs()[:12], strict=True):
        assert ns == pytest.approx(true_ns(graph), rel=0.03)


def test_rounds_end_at_the_limit_of_time_but_not_before_the_least() -> None:
    machine = Machine(TRUTH)
    run = machine.opened(SMALL[0].model(), inputs_of(graphs()[0]))
    done: list[int] = []
    assert (
        interleaved([run], run, TimingLimits(9, 1e9, 2), clocks=machine.bench.clocks, progress=done.append).rounds == 9
    )
    assert done == list(range(1, 10))
    assert interleaved([run], run, TimingLimits(9, 0, 2), clocks=machine.bench.clocks).rounds == 2
    with pytest.raises(ValueError, match="nothing to time"):
        interleaved([], run)


def test_the_companion_works_beside_the_body_and_ends_with_it() -> None:
    done = count()
    with beside(lambda: next(done)):
        while next(done) < 3:
            pass
    with beside(None):
        pass


def test_a_calibration_finds_the_machine_and_its_file_is_read_again(tmp_path: Path) -> None:
    machine = Machine(TRUTH, [1.0] * 50 + [4.0])
    rounds: list[tuple[int, int]] = []
    made = calibrate_cpu(
        limits=TimingLimits(6, 1e9, 6), bench=machine.bench, chains=SMALL, progress=lambda *done: rounds.append(done)
    )
    assert rounds[-1] == (6, 6)
    assert made.error < 0.01
    assert made.hardware.running.cores == 1
    assert (made.hardware.host.host_ns_per_stage, made.hardware.host.handover_ns) == (4000, 9000)
    for name in ("convolution_ns_per_gmac", "depthwise_ns_per_gmac", "scalar_ns_per_mib", "padding_row_ps"):
        assert made.hardware.constants[name] == pytest.approx(TRUTH.constants[name], rel=0.1)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(cpu_document(made, "mine")))
    kind = load_kind(path)
    assert kind == replace(made.hardware, name="mine")
    assert not kind.rough
    entries = json.loads(path.read_text())["constants"]
    assert {entry["known"] for entry in entries.values()} == {"fitted", "measured", "kept"}


def test_this_machines_calibration_is_its_kind_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert this_cpu().rough
    calibrated_cpu_path().parent.mkdir()
    made = calibrate_cpu(limits=TimingLimits(2, 1e9, 2), bench=Machine(TRUTH).bench, chains=SMALL)
    calibrated_cpu_path().write_text(json.dumps(cpu_document(made)))
    assert not this_cpu().rough
    assert this_cpu().ops == made.hardware.ops


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--cpu", "-o", "missing/mine.json"], 1, "its folder does not exist"), (["--cpu", "-o", "there.json"], 1, "--force"),
        (["--cpu", "--from", "pcie", "-o", "mine.json"], 1, "leave out --from"),
        (["--cpu", "--data", "x.csv"], 2, "not allowed"),
        ([], 2, "--data --cpu"),
    ],
)  # fmt: skip
def test_a_calibration_that_cannot_be_kept_is_refused_before_anything_is_timed(
    arguments: list[str], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.json").touch()
    assert main(["calibrate", *arguments]) == code
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out


def test_without_an_interpreter_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(CHOICE, "nothing")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert main(["calibrate", "--cpu"]) == 1
    captured = capsys.readouterr()
    assert "choose from" in captured.err
    assert captured.err.count("\n") == 1


def test_a_file_in_the_way_of_the_settings_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "balancer").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert main(["calibrate", "--cpu"]) == 1
    assert "name a file with -o" in capsys.readouterr().err


def test_ops_that_were_timed_add_up_to_the_whole_model() -> None:
    model = open_model(WIDE)
    times = time_ops(model, TRUTH, limits=TimingLimits(3, 1e9, 3), bench=Machine(TRUTH).bench)
    assert sum(times.ns) == pytest.approx(times.whole_ns, abs=len(times.ns))
    assert times.factor == pytest.approx(1, abs=0.01)
    for op, ns in zip(model.graph.ops, times.ns, strict=True):
        assert ns == pytest.approx(cpu_kind_ns(model.graph, op, TRUTH), rel=0.02, abs=50)


def test_a_profile_of_the_cpu_holds_for_cpus_alone(tmp_path: Path) -> None:
    costed = open_costed_model(WIDE, TRUTH)
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(document_of(costed, [1000 * (k + 1) for k in range(len(costed.graph.ops))])))
    both = CostedModel(costed.model, devices_asked({"pcie": 1, "cpu-x86": 1}))
    profiled = with_profile(both, path)
    whole = (1 << len(costed.graph.ops)) - 1
    assert profiled.costs_by_kind["pcie"].terms(whole) == both.costs_by_kind["pcie"].terms(whole)
    n = len(costed.graph.ops)
    assert profiled.costs_by_kind["cpu-x86"].terms(whole).cpu_ns == 1000 * n * (n + 1) // 2
    document: dict[str, Any] = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"device": "gpu"}))
    with pytest.raises(ProfileError, match="no device"):
        with_profile(both, path)


def test_only_a_cpu_is_measured_op_by_op(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model.tflite"
    model.write_bytes(WIDE)
    assert main(["profile", str(model), "--measure", "--hardware", "usb", "-o", str(tmp_path / "p.json")]) == 1
    assert "name a CPU" in capsys.readouterr().err
    with pytest.raises(HardwareError):
        load_kind(tmp_path / "p.json")
