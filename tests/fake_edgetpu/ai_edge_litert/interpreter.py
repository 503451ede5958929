"""Edge TPUs as the environment variable FAKE_EDGETPU describes them (a JSON file); of a compiled
file they run the source that stands behind it, on the CPU.

library: false where it is missing. devices: those that there are. refusals: so many opens fail first. abort: "load" or
"invoke" ends the process as the driver does; "invoke" on every `every`-th inference. hang: "load" never comes back
from the driver, with the interpreter's lock held.
"""

import ctypes
import importlib.util
import json
import os
import sys
from pathlib import Path

import ai_edge_litert

for _folder in ai_edge_litert.__path__[1:]:
    _file = Path(_folder) / "interpreter.py"
    if _file.is_file():
        _spec = importlib.util.spec_from_file_location("ai_edge_litert._real_interpreter", _file)
        _real = importlib.util.module_from_spec(_spec)
        sys.modules[_spec.name] = _real
        _spec.loader.exec_module(_real)
        break

OpResolverType = _real.OpResolverType


def _truth():
    return json.loads(Path(os.environ["FAKE_EDGETPU"]).read_text())


class _Delegate:
    pass


def load_delegate(library, options=None):
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


class Interpreter(_real.Interpreter):
    def __init__(self, *, experimental_delegates=None, **options):
        self.on_tpu = bool(experimental_delegates)
        if self.on_tpu:
            options["experimental_op_resolver_type"] = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
            compiled = options["model_content"]
            options["model_content"] = compiled[-8 - int.from_bytes(compiled[-8:], "little") : -8]
        super().__init__(**options)
        self.count = 0

    def invoke(self):
        self.count += 1
        truth = _truth() if self.on_tpu else {}
        if truth.get("abort") == "invoke" and self.count % truth.get("every", 1) == 0:
            os.abort()
        super().invoke()
