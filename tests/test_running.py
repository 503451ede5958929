"""run, bench and devices as a user meets them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import balancer
from balancer.cli.main import main
from balancer.inputs import random_items
from balancer.interpreter import open_interpreter
from balancer.opened import open_plan
from balancer.runtime.limits import SIMPLE_ENTRIES, mapping_entries, warn_of_mappings
from balancer.runtime.measuring import distribution
from balancer.runtime.pipeline import Pipeline
from balancer.tflite import synth
from tests import handmade
from tests.shared import COMPILED, MODELS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def plan(tmp_path: Path) -> balancer.Plan:
    (tmp_path / "net.tflite").write_bytes(synth.fc(400, layers=6))
    return balancer.save(
        balancer.balance(tmp_path / "net.tflite", 3, options=balancer.Options(stages=3)), tmp_path / "plan"
    )


def _path(plan: balancer.Plan) -> str:
    return str((plan.directory or "") / plan.file_name)  # type: ignore[operator]


@pytest.mark.parametrize("more", [["--devices", "cpu"], ["--devices", "sim"], ["--devices", "sim", "--sim-outputs", "recorded"],
                                  ["--devices", "cpu", "--processes"]])  # fmt: skip
def test_run_on_arrays(
    more: list[str], plan: balancer.Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = random_items(Pipeline(plan, "sim").interface.inputs, 5)
    np.save(tmp_path / "x.npy", np.stack([item["input"][0] for item in items]))
    out = tmp_path / "out"
    assert main(["run", _path(plan), "--inputs", str(tmp_path / "x.npy"), "--outputs", str(out), *more]) == 0
    assert "5 of 5 results" in capsys.readouterr().out
    whole = open_interpreter((tmp_path / "net.tflite").read_bytes())
    for item, path in zip(items, sorted(out.iterdir()), strict=True):
        whole.run([item["input"]])
        with np.load(path) as found:
            assert found["output"].tobytes() == whole.outputs()[0].tobytes()
    # What is there is not replaced without being asked to.
    assert main(["run", _path(plan), "--inputs", str(tmp_path / "x.npy"), "--outputs", str(out), *more]) == 1
    assert main(["run", _path(plan), "--inputs", str(tmp_path / "x.npy"), "--outputs", str(out), *more, "--force"]) == 0


@pytest.mark.shared
def test_run_on_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = MODELS / "mobilenet_v2_1.0_224_quant.tflite"
    plan = balancer.save(balancer.balance(model, 2, options=balancer.Options(stages=2)), tmp_path / "plan")
    folder = tmp_path / "pictures"
    folder.mkdir()
    dice = np.random.default_rng(1)
    for name in ("b.png", "a.jpg", "c.bmp"):
        Image.fromarray(dice.integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("not a picture")
    arguments = [
        "run",
        _path(plan),
        "--inputs",
        str(folder),
        "--outputs",
        str(tmp_path / "out"),
        "--devices",
        "cpu",
        "--json",
    ]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["items"] == 3
    assert [p.name for p in sorted((tmp_path / "out").iterdir())] == ["000000_a.npz", "000001_b.npz", "000002_c.npz"]
    (folder / "d.png").write_bytes(b"none")
    assert main([*arguments, "--force"]) == 1
    assert "cannot be read as a picture" in capsys.readouterr().err
    assert main([*arguments, "--force", "--on-error", "continue"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert len(document["failures"]) == 1
    assert "d.png" in document["failures"][0]


def test_pictures_for_a_model_that_takes_none(
    plan: balancer.Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    arguments = ["run", _path(plan), "--inputs", str(folder), "--outputs", str(tmp_path / "out"), "--devices", "cpu"]
    assert main(arguments) == 1
    assert "holds no pictures" in capsys.readouterr().err
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    assert main(arguments) == 1
    assert "takes no pictures" in capsys.readouterr().err


def test_bench_says_what_was_promised_and_what_is(plan: balancer.Plan, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", _path(plan), "--devices", "sim", "--seconds", "0.6", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["source"] == "simulated"
    assert found["predicted_throughput_per_s"] == plan.predicted.throughput_per_s
    assert found["predicted_latency_ns"] == plan.predicted.latency_ns
    assert found["throughput_per_s"] > 0
    assert found["latency"]["min"] <= found["latency_ns"] <= found["latency"]["max"]
    assert found["first_inference_ns"] >= sum(s["predicted_ns"] for s in found["stages"])
    assert [s["segment"] for s in found["stages"]] == [s.name for s in plan.segments]
    for stage in found["stages"]:
        assert stage["stage_ns"] >= stage["predicted_ns"]
        assert 0 < stage["share"] <= 1
    assert main(["bench", _path(plan), "--devices", "cpu", "--seconds", "0.5"]) == 0
    out = capsys.readouterr().out
    assert "measured (cpu)" in out
    assert "bottleneck: net_segment_" in out
    assert all(len(line) <= 100 for line in out.splitlines())


def test_bench_with_recorded_outputs_and_jitter(plan: balancer.Plan, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--sim-outputs", "recorded", "--sim-jitter", "0.1", "--sim-errors", "3", "--processes"]
    assert main(["bench", _path(plan), "--devices", "sim", "--seconds", "0.5", "--json", *more]) == 0
    assert json.loads(capsys.readouterr().out)["items"] >= 8


def test_bench_names_what_is_missing(plan: balancer.Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", _path(plan), "--devices", "usb"]) == 1
    assert "run `balancer compile` on the plan first" in capsys.readouterr().err
    assert main(["bench", _path(plan), "--devices", "gpu"]) == 1
    assert "name :0, usb:0, pci:0, usb, pci, cpu or sim" in capsys.readouterr().err
    assert main(["bench", str(tmp_path / "nothing.json"), "--devices", "sim"]) == 1
    assert main(["run", _path(plan), "--inputs", "x.npy", "--outputs", str(tmp_path / "o"), "--runner", "pycoral"]) == 1


def test_percentiles_are_values_that_occurred() -> None:
    found = distribution([5, 1, 3, 2, 4])
    assert (found.min, found.median, found.max, found.mean, found.count) == (1, 3, 5, 3, 5)
    assert (found.p90, found.p99) == (5, 5)
    assert distribution([7]).p95 == 7


@pytest.mark.shared
def test_mapping_entries_of_real_packages() -> None:
    for path in sorted(COMPILED.glob("*.tflite"))[:6]:
        assert 0 < mapping_entries(path.read_bytes(), path.stem) < SIMPLE_ENTRIES
    assert mapping_entries(handmade.conv_chain(), "plain") == 0


@pytest.mark.shared
def test_a_warning_comes_before_the_drivers_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from tests import edgetpu_compiler

    (tmp_path / "net.tflite").write_bytes(synth.fc(2600, layers=7, output_type="int8"))
    saved = balancer.save(balancer.balance(tmp_path / "net.tflite", 1), tmp_path / "plan")
    compiler = balancer.find_compiler(edgetpu_compiler.install(tmp_path / "bin"), cache=tmp_path / "cache")
    compiled = balancer.compile_plan(_path(saved), compiler).plan
    warn_of_mappings(open_plan(compiled), ["usb:0"])
    assert not caplog.records
    warn_of_mappings(open_plan(compiled), ["pci:0"])
    assert "page-table entries" in caplog.text
