"""Opens one Edge TPU in a process of its own, which may die of it: `python -m balancer.runtime.probe NAME`."""

from __future__ import annotations

import ctypes
import json
import signal
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

from balancer.errors import BalancerError
from balancer.interpreter import EDGETPU_LIBRARY, load_delegate, runtime
from balancer.processes.children import Child, python_command, python_environment

if TYPE_CHECKING:
    from balancer.runtime.devices import Device

SECONDS = 30
_NEWER = "install libedgetpu built for TensorFlow 2.13 or newer (github.com/feranick/libedgetpu)"


def probed(device: Device, seconds: float = SECONDS) -> Device:
    """The device with what opening it showed."""
    command = python_command("balancer.runtime.probe", device.name)
    pipe, env = subprocess.PIPE, python_environment()
    with Child(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=subprocess.DEVNULL, env=env) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            what = f"does not answer within {seconds:.0f} s"
            return replace(device, problem=what, remedy="unplug it, or switch the machine off and on")
        finally:
            process.kill()  # before it is waited for
    said = _last_json(output.decode("utf-8", "replace"))
    if said.get("opened"):
        return replace(device, problem=None, remedy=None)
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        versions = f"libedgetpu {said.get('library', 'of unknown version')}, {said.get('runtime', 'no interpreter')}"
        return replace(device, problem=f"the driver ended the process ({name}; {versions})", remedy=_NEWER)
    return replace(
        device, problem=said.get("problem", "cannot be opened"), remedy=said.get("remedy", "see the system log")
    )


def _last_json(output: str) -> dict[str, Any]:
    for line in reversed(output.splitlines()):
        if line.startswith("{"):
            found = json.loads(line)
            return found if isinstance(found, dict) else {}
    return {}


def _library_version() -> str:
    """As the library itself says: its C function `edgetpu_version`."""
    try:
        library = ctypes.CDLL(EDGETPU_LIBRARY)
        library.edgetpu_version.restype = ctypes.c_char_p
        return str(library.edgetpu_version().decode("ascii", "replace"))
    except (OSError, AttributeError):
        return "of unknown version"


def main(name: str) -> dict[str, Any]:
    """What can be said of opening the device; the caller prints it. The versions go out first: opening may be the end."""
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
