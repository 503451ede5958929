"""The command as a user meets it: exit codes, one line on failure, JSON on stdout alone."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import balancer
from balancer.cli.main import main
from balancer.tflite import synth
from tests import handmade
from tests.shared import COMPILED

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.tflite"
    path.write_bytes(synth.fc(1800))
    return path


def _json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code = main([*arguments, "--json"])
    out = capsys.readouterr().out
    return code, json.loads(out)


def test_solve_writes_nothing_without_an_output(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", str(model), "-n", "3"]) == 0
    out = capsys.readouterr().out
    assert "predicted" in out
    assert "proof: optimal over all down-sets" in out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert [p.name for p in model.parent.iterdir()] == [model.name]


def test_solve_json_is_the_plan_file(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model.parent / "plan"
    code, document = _json(capsys, "solve", str(model), "-n", "3", "-o", str(folder))
    assert code == 0
    assert document == json.loads((folder / "net_plan_3.json").read_text())


def test_solve_then_verify_then_predict_the_same_plan(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model.parent / "plan"
    assert main(["solve", str(model), "-n", "3", "--pipelines", "1", "--replicas", "1", "-o", str(folder)]) == 0
    plan = folder / "net_plan_3.json"
    capsys.readouterr()
    code, result = _json(capsys, "verify", str(plan), "--random", "2")
    assert code == 0
    assert result["bit_exact"] is True
    assert result["items"] == 2
    code, predicted = _json(capsys, "predict", str(model), "--plan", str(plan))
    assert code == 0
    saved = json.loads(plan.read_text())
    assert [s["predicted"] for s in predicted["segments"]] == [s["predicted"] for s in saved["segments"]]
    assert predicted["pipelines"] == saved["pipelines"]
    assert list(predicted) == ["segments", "pipelines"]


def test_verify_takes_the_users_inputs(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model.parent / "plan"
    main(["solve", str(model), "-n", "2", "-o", str(folder)])
    np.save(model.parent / "x.npy", np.zeros((5, 64), np.float32))
    capsys.readouterr()
    code, result = _json(capsys, "verify", str(folder / "net_plan_2.json"), "--inputs", str(model.parent / "x.npy"))
    assert (code, result["items"]) == (0, 5)
    np.save(model.parent / "x.npy", np.zeros((5, 63), np.float32))
    assert main(["verify", str(folder / "net_plan_2.json"), "--inputs", str(model.parent / "x.npy")]) == 1


def test_a_mismatch_is_a_result_with_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.tflite").write_bytes(handmade.conv_chain(3))
    balancer.save(balancer.balance(tmp_path / "m.tflite", 2, options=balancer.Options(stages=2)), tmp_path / "plan")
    file, plan = tmp_path / "plan" / "m_segment_1_of_2.tflite", tmp_path / "plan" / "m_plan_2.json"
    data = bytearray(file.read_bytes())
    data[data.index(handmade.constant_input(bytes(data), op=0, position=1))] ^= 0x55
    old = hashlib.sha256(file.read_bytes()).hexdigest()
    file.write_bytes(data)
    plan.write_text(plan.read_text().replace(old, hashlib.sha256(bytes(data)).hexdigest()))
    capsys.readouterr()
    code, result = _json(capsys, "verify", str(plan))
    assert code == 1
    assert result["bit_exact"] is False
    assert result["mismatch"]["segment"] == "m_segment_1_of_2"


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (["solve", "absent.tflite", "-n", "2"], 1, "ModelError"),
        (["solve", "absent.tflite", "-n", "0"], 2, "UsageError"),
        (["solve", "absent.tflite"], 2, "UsageError"),
        (["nothing"], 2, "UsageError"),
        ([], 2, "UsageError"),
        (["verify", "absent.json"], 1, "PlanError"),
        (["predict", "absent.tflite", "--cuts", "1"], 1, "ModelError"),
        (["predict", "absent.tflite"], 2, "UsageError"),
        (["synth", "fc", "--width", "60000"], 1, "OutputError"),
        (["calibrate", "--data", "absent.csv"], 1, "MeasurementError"),
    ],
)
def test_failures_have_their_code_one_line_and_a_document(
    arguments: list[str],
    code: int,
    kind: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("balancer")
    found, document = _json(capsys, *arguments)
    assert found == code
    assert document["error"]["type"] == kind
    assert document["error"]["message"]
    assert list(tmp_path.iterdir()) == []


def test_infeasible_is_exit_code_3(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = _json(capsys, "solve", str(model), "-n", "1", "--overflow", "error")
    assert code == 3
    assert document["error"]["type"] == "InfeasibleError"


@pytest.mark.parametrize("cuts", ["40", "x", "", "3,2"])
def test_bad_cuts_are_an_error_line(model: Path, cuts: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(model), "--cuts", cuts]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_inspect_lists_every_op(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = _json(capsys, "inspect", str(model))
    assert code == 0
    assert {"index", "type", "parameter_bytes", "macs", "output_bytes", "mapped"} <= set(document["ops"][0])
    assert [op["type"] for op in document["ops"]][:2] == ["QUANTIZE", "FULLY_CONNECTED"]
    assert main(["inspect", str(model)]) == 0
    assert "FULLY_CONNECTED" in capsys.readouterr().out


@pytest.mark.shared
def test_inspect_of_a_compiled_file_tells_what_the_compiler_did(capsys: pytest.CaptureFixture[str]) -> None:
    path = COMPILED / "movenet_single_pose_lightning_ptq_edgetpu.tflite"
    code, document = _json(capsys, "inspect", str(path))
    assert code == 0
    assert (document["cached_bytes"], document["streamed_bytes"], len(document["cpu_ops"])) == (2_862_656, 2_368, 59)
    assert main(["inspect", str(path)]) == 0
    assert "GATHER_ND" in capsys.readouterr().out


def test_names_that_are_markup_or_no_text_are_printed_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "[bold]net.tflite"
    path.write_bytes(handmade.named("[red]in", b"caf\xe9".decode("utf-8", "surrogateescape"), "out"))
    done = subprocess.run(
        [sys.executable, "-m", "balancer", "solve", str(path), "-n", "2"], capture_output=True, text=True, check=True
    )
    assert "[bold]net" in done.stdout


def test_synth_writes_what_it_says_and_replaces_only_with_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "c.tflite"
    assert main(["synth", "conv", "--width", "8", "--size", "16", "-o", str(target)]) == 0
    assert target.read_bytes() == synth.conv(8, size=16)
    assert main(["synth", "conv", "--width", "9", "-o", str(target)]) == 1
    assert "--force" in capsys.readouterr().err
    assert main(["synth", "conv", "--width", "9", "--force", "-o", str(target)]) == 0


def test_demo_ends_with_a_comparison_that_ours_wins_and_bit_exact(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo"]) == 0
    out = capsys.readouterr().out
    assert out.rstrip().endswith("bit-exact: yes")
    code, document = _json(capsys, "demo")
    rates = {row["name"]: row["throughput_per_s"] for row in document["plan"]["comparison"]}
    assert code == 0
    assert rates["ours"] == max(rates.values())
    assert rates["ours"] > rates["copies"]
    assert rates["ours"] > rates["compiler default"]


def test_progress_and_colour_stay_out_of_pipes(model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "balancer", "solve", str(model), "-n", "2"], capture_output=True, check=True
    )
    assert done.stderr == b""
    assert b"\x1b" not in done.stdout


def test_a_reader_that_leaves_is_no_traceback(model: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "balancer", "inspect", str(model)], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert b"Traceback" not in done.stderr


_INTERRUPTED_IMPORT = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, *_):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)

sys.modules.pop("logging", None)
sys.meta_path.insert(0, Interrupting())
from balancer.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    "module", ["balancer.cli", "balancer.cli.main", "logging", "balancer.cli.verbs", "balancer.errors"]
)
def test_an_interrupt_while_modules_are_loaded_is_one_line(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED_IMPORT, module, "--version"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "balancer: interrupted; nothing was left half-written\n"


@pytest.mark.shared
def test_an_interrupt_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "balancer", "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    while not any(path.is_dir() for path in tmp_path.iterdir()) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert b"Traceback" not in stderr
    assert process.returncode in (0, 130)
    assert list(tmp_path.iterdir()) == []
