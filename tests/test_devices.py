"""Edge TPUs: seen in sysfs, named by users, opened in a process that may die of it."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from balancer.cli import drawing_runs
from balancer.cli.main import main
from balancer.errors import DeviceError
from balancer.planning import asked_devices, machine
from balancer.planning.asked_devices import devices_asked
from balancer.runtime.devices import Device, device_names, list_devices, usable_cores
from balancer.runtime.probe import probed

FAKE = Path(__file__).parent / "fake_edgetpu"


def _write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _pci(root: Path, number: int, temp: str = "42350\n") -> Path:
    _write(root / f"sys/class/apex/apex_{number}/temp", temp)
    return _write(root / f"dev/apex_{number}")


def _usb(root: Path, bus: int, number: int, ids: tuple[str, str]) -> Path:
    folder = root / f"sys/bus/usb/devices/{bus}-{number}"
    for name, text in (("idVendor", ids[0]), ("idProduct", ids[1]), ("busnum", str(bus)), ("devnum", str(number))):
        _write(folder / name, text + "\n")
    return _write(root / f"dev/bus/usb/{bus:03}/{number:03}")


def test_devices_are_listed_with_their_paths(tmp_path: Path) -> None:
    for number in (0, 1, 10):
        _pci(tmp_path, number)
    _usb(tmp_path, 2, 3, ("18d1", "9302"))
    _usb(tmp_path, 2, 4, ("046d", "c52b"))
    _usb(tmp_path, 2, 5, ("1a6e", "089a"))
    found = list_devices(tmp_path)
    assert [d.name for d in found] == ["pci:0", "pci:1", "pci:2", "usb:0", "usb:1"]
    assert [Path(d.path).name for d in found] == ["apex_0", "apex_1", "apex_10", "003", "005"]
    assert found[0].celsius == 42.35
    assert [d.problem for d in found] == [None, None, None, None, "not yet initialised"]
    assert device_names(None, 5, tmp_path) == [d.name for d in found]


def test_what_is_wrong_has_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = _pci(tmp_path, 0)
    _write(tmp_path / "sys/class/apex/apex_1/temp", "40000")
    _pci(tmp_path, 2, "-88000")
    _pci(tmp_path, 3, "not a number")
    closed_usb = _usb(tmp_path, 1, 7, ("18d1", "9302"))
    closed.chmod(0)
    closed_usb.chmod(0)
    monkeypatch.setattr("os.access", lambda path, mode: bool(Path(path).stat().st_mode & stat.S_IRUSR))
    found = {d.name: d for d in list_devices(tmp_path)}
    assert "no permission" in str(found["pci:0"].problem)
    assert "apex" in str(found["pci:0"].remedy)
    assert "is not there" in str(found["pci:1"].problem)
    assert "link is down" in str(found["pci:2"].problem)
    assert found["pci:3"].problem is None
    assert "plugdev" in str(found["usb:0"].remedy)
    assert all(d.remedy for d in found.values() if d.problem)
    with pytest.raises(DeviceError, match="2 Edge TPUs are needed, 1 can be used"):
        device_names(None, 2, tmp_path)


def test_no_devices_at_all(tmp_path: Path) -> None:
    assert list_devices(tmp_path) == []
    with pytest.raises(DeviceError, match="or try --devices sim"):
        device_names(None, 1, tmp_path)


@pytest.mark.parametrize(
    ("wanted", "count", "names"),
    [
        ("sim", 3, ["sim"] * 3), ("cpu", 1, ["cpu"]), ("usb", 2, ["usb:0", "usb:1"]), ("pci", 2, ["pci:0", "pci:1"]),
        (":0", 1, [":0"]), ("usb:1, pci:0", 2, ["usb:1", "pci:0"]), (["pci:3", "cpu"], 2, ["pci:3", "cpu"]),
        ("pci:0,pci:1,pci:2", 2, ["pci:0", "pci:1"]),
    ],
)  # fmt: skip
def test_names(wanted: Any, count: int, names: list[str]) -> None:
    assert device_names(wanted, count) == names


@pytest.mark.parametrize(
    ("wanted", "count", "says"),
    [
        ("tpu", 1, "not the name"), ("usb:x", 1, "not the name"), ("", 1, "not the name"), ("usb:0,usb:0", 2, "named twice"),
        ("usb:0", 2, "2 devices are needed, 1 are named"), ("pci:12345", 1, "not the name"),
    ],
)  # fmt: skip
def test_names_that_are_none(wanted: str, count: int, says: str) -> None:
    with pytest.raises(DeviceError, match=says):
        device_names(wanted, count)


def test_googles_pycoral_is_asked_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pci(tmp_path, 0)
    package = _write(tmp_path / "site/pycoral/__init__.py").parent
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert [d.name for d in list_devices(tmp_path)] == ["pci:0"]
    _write(package / "utils/__init__.py")
    said = [{"type": "pci", "path": str(tmp_path / "dev/apex_0")}, {"type": "usb", "path": "/sys/bus/usb/devices/4-1"}]
    _write(package / "utils/edgetpu.py", f"def list_edge_tpus():\n    return {said!r}\n")
    for name in [m for m in sys.modules if m.split(".")[0] == "pycoral"]:
        sys.modules.pop(name)
    assert [(d.name, d.path) for d in list_devices(tmp_path)] == [
        ("pci:0", str(tmp_path / "dev/apex_0")), ("usb:0", "/sys/bus/usb/devices/4-1")
    ]  # fmt: skip
    for name in [m for m in sys.modules if m.split(".")[0] == "pycoral"]:
        sys.modules.pop(name)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """Makes what child processes meet."""

    def says(**truth: Any) -> None:
        monkeypatch.setenv("FAKE_EDGETPU", str(_write(tmp_path / "truth.json", json.dumps(truth))))
        path = os.pathsep.join([str(FAKE), str(Path(__file__).parents[1])])
        monkeypatch.setenv("PYTHONPATH", path)

    return types.SimpleNamespace(says=says)


@pytest.mark.parametrize(
    ("truth", "problem"),
    [
        ({"devices": ["pci:0"]}, None),
        ({"library": False}, "cannot be loaded"),
        ({"devices": []}, "another program has it"),
        ({"abort": "load"}, r"SIGABRT; libedgetpu of unknown version, ai-edge-litert \d"),
    ],
    ids=["works", "missing library", "busy", "abort"],
)
def test_opening_is_tried_in_a_process_of_its_own(
    truth: dict[str, Any], problem: str | None, fake: types.SimpleNamespace, tmp_path: Path
) -> None:
    fake.says(**truth)
    _pci(tmp_path, 0)
    (device,) = list_devices(tmp_path)
    found = probed(device)
    if problem is None:
        assert (found.problem, found.remedy) == (None, None)
        return
    assert found.problem is not None
    assert re.search(problem, found.problem)
    assert found.remedy


def test_the_command_where_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    if list_devices():  # a machine with Edge TPUs says more
        return
    assert main(["devices"]) == 0
    out = capsys.readouterr().out
    assert "no Edge TPU was found" in out
    assert re.fullmatch(r"to plan for these: -n cpu=\d+", out.splitlines()[-1])
    assert main(["devices", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["devices"] == []
    assert found["cores"] == usable_cores()
    assert list(found["kinds"]) == ["cpu"]


def test_what_this_machine_has_is_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With each USB link's speed read, and without devices that cannot be used."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for number in range(2):
        _pci(tmp_path, number)
    _write(tmp_path / "sys/class/apex/apex_2/temp", "40000")
    for number, speed in enumerate(("480", "5000", "480", "a speed")):
        _usb(tmp_path, 2, number, ("18d1", "9302"))
        _write(tmp_path / f"sys/bus/usb/devices/2-{number}/speed", speed)
    listed = list_devices(tmp_path)
    assert [d.mbit_per_s for d in listed] == [None, None, None, 480, 5000, 480, None]
    for cores, stages in ((1, 1), (2, 1), (4, 3)):
        monkeypatch.setattr(machine, "usable_cores", lambda cores=cores: cores)
        assert machine.attached_counts(listed) == {"pcie": 2, "usb": 2, "usb2": 2, "cpu": stages}
    monkeypatch.setattr(asked_devices, "list_devices", lambda: listed)
    assert [count for _, count in devices_asked("auto").kinds] == [2, 2, 2, 3]


def test_links_and_cores_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    usb = Device(name="usb:0", type="usb", path="/dev/bus/usb/002/003", mbit_per_s=480)
    drawing_runs.devices([usb, Device(name="pci:0", type="pci", path="/dev/apex_0", celsius=42.35)], "works")
    drawing_runs.this_machine(machine.this_cpu().changed({"cores": 4, "threads": 2}), {"pcie": 1, "usb2": 1, "cpu": 1})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "usb:0: /dev/bus/usb/002/003, 480 Mbit/s: works"
    assert lines[1] == "pci:0: /dev/apex_0, 42.4 C: works"
    assert lines[2].startswith("cpu: 4 cores, 2 for each stage")
    assert lines[3] == "to plan for these: -n pcie=1,usb2=1,cpu=1"
