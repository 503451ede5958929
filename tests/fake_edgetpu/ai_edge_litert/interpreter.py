"""Edge TPUs as the environment variable FAKE_EDGETPU describes them (a JSON file); of a compiled
file they run the source that stands behind it, on the CPU.

library: false where it is missing. devices: those that there are. refusals: so many opens fail first. abort: "load" or
"invoke" ends the process as the driver does; "invoke" on every `every`-th inference. hang: "load" never comes back
from the driver, with the interpreter's lock held.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import ai_edge_litert


def _real_interpreter() -> Any:
    """The module of this name in the installed package, which this one stands in front of."""
    file = next(f for folder in ai_edge_litert.__path__[1:] if (f := Path(folder) / "interpreter.py").is_file())
    spec = importlib.util.spec_from_file_location("ai_edge_litert._real_interpreter", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


_real = _real_interpreter()
OpResolverType = _real.OpResolverType


def _truth() -> dict[str, Any]:
    truth: dict[str, Any] = json.loads(Path(os.environ["FAKE_EDGETPU"]).read_text())
    return truth


class _Delegate:
    pass


def load_delegate(library: str, options: dict[str, str]) -> _Delegate:
    truth = _truth()
    if not truth.get("library", True):
        raise OSError(f"{library}: cannot open shared object file: No such file or directory")
    if truth.get("abort") == "load":
        sys.stderr.write("F driver/usb/usb_driver.cc:857] transfer on tag 1 failed. Abort. Deadline exceeded\n")
        sys.stderr.flush()
        os.abort()
    if truth.get("hang") == "load":
        ctypes.PyDLL(None).sleep(3600)
    counter = Path(os.environ["FAKE_EDGETPU"]).with_suffix(f".{options['device'].replace(':', '_')}")
    opened = int(counter.read_text()) if counter.exists() else 0
    counter.write_text(str(opened + 1))
    if opened < truth.get("refusals", 0) or options["device"] not in truth.get("devices", []):
        raise ValueError(f"Failed to load delegate from {library}")
    return _Delegate()


class Interpreter(_real.Interpreter):  # type: ignore[misc, name-defined]
    def __init__(self, *, experimental_delegates: Any = None, **options: Any) -> None:
        self.on_tpu = bool(experimental_delegates)
        if self.on_tpu:
            options["experimental_op_resolver_type"] = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
            compiled = options["model_content"]
            options["model_content"] = compiled[-8 - int.from_bytes(compiled[-8:], "little") : -8]
        super().__init__(**options)
        self.count = 0

    def invoke(self) -> None:
        self.count += 1
        truth = _truth() if self.on_tpu else {}
        if truth.get("abort") == "invoke" and self.count % truth.get("every", 1) == 0:
            os.abort()
        super().invoke()
