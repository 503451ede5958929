"""Opens one Edge TPU in a process of its own, which the driver may crash: `python -m balancer.runtime.probe NAME`."""

from __future__ import annotations

import ctypes
import json
import signal
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from typing import Any

from balancer.errors import BalancerError
from balancer.interpreter import EDGETPU_LIBRARY, load_delegate, runtime
from balancer.processes.children import Child, python_command, python_environment
from balancer.runtime.devices import Device, DeviceState

SECONDS = 30  # firmware and a first load take a few
_NEWER = "install libedgetpu built for TensorFlow 2.13 or newer (github.com/feranick/libedgetpu)"


def probed(device: Device, seconds: float = SECONDS) -> Device:
    """The device with the state that opening it showed. seconds: after which it is given up."""
    command = python_command("balancer.runtime.probe", device.name)
    pipe, env = subprocess.PIPE, python_environment()
    with Child(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=subprocess.DEVNULL, env=env) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            what, remedy = f"does not answer within {seconds:.0f} s", "unplug it, or switch the machine off and on"
            return replace(device, state=DeviceState.NO_ANSWER, problem=what, remedy=remedy)
        finally:
            process.kill()  # leaving the block waits for the process, which may hang
    said = _last_json(output.decode("utf-8", "replace"))
    if said.get("opened"):
        return replace(device, state=DeviceState.READY, problem=None, remedy=None)
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        versions = f"libedgetpu {said.get('library', 'of unknown version')}, {said.get('runtime', 'no interpreter')}"
        what = f"the driver ended the process ({name}; {versions})"
        return replace(device, state=DeviceState.DRIVER_CRASHED, problem=what, remedy=_NEWER)
    what, remedy = said.get("problem", "cannot be opened"), said.get("remedy", "see the system log")
    return replace(device, state=DeviceState.REFUSED, problem=what, remedy=remedy)


def _last_json(output: str) -> dict[str, Any]:
    """The last line that is a JSON object; empty where there is none.

    >>> _last_json('{"a": 1}\\n{"a": 2}\\na message of the driver\\n')
    {'a': 2}
    """
    for line in reversed(output.splitlines()):
        if line.startswith("{"):
            found = json.loads(line)
            return found if isinstance(found, dict) else {}
    return {}


def _library_version() -> str:  # pragma: no cover - called in the child process
    """What the library's C function `edgetpu_version` returns."""
    try:
        library = ctypes.CDLL(EDGETPU_LIBRARY)
        library.edgetpu_version.restype = ctypes.c_char_p
        return str(library.edgetpu_version().decode("ascii", "replace"))
    except (OSError, AttributeError):
        return "of unknown version"


def main(name: str) -> dict[str, Any]:  # pragma: no cover - called in the child process
    """What opening the device shows, for the caller to print. Prints the versions first: opening may end the process."""
    said: dict[str, Any] = {"library": _library_version()}
    try:
        package = runtime()
        said["runtime"] = f"{package} {metadata.version(package)}"
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()
        load_delegate(name)
    except BalancerError as error:
        what, where, remedy = (str(part) for part in error.args)
        return said | {"opened": False, "problem": f"{where}: {what}", "remedy": remedy}
    return said | {"opened": True}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1])) + "\n")
