"""Finds the installed TFLite runtime, and opens interpreters: the only place that does so.

On the CPU there are two sets of kernels. The builtin ones, without default delegates and on one thread, are those that
bit-exactness is proven on. Those of the default delegates (XNNPACK) are several times as fast. The sets round differently in
places, so two runs can only be compared bit for bit where both use the same set.
"""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from balancer.errors import BalancerError, DependencyError, InterpreterError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MODULES = {"ai-edge-litert": "ai_edge_litert.interpreter", "tflite-runtime": "tflite_runtime.interpreter"}
_INSTALL = {"ai-edge-litert": "ai-edge-litert", "tflite-runtime": "tflite-runtime==2.14.0 'numpy<2'"}
PACKAGES = tuple(_MODULES)
CHOICE = "BALANCER_INTERPRETER"
EDGETPU_LIBRARY = "libedgetpu.so.1"
_Array = NDArray[Any]  # of any element type and shape: a model decides


def runtime() -> str:
    """The package that interpreters come from: the one that the environment variable BALANCER_INTERPRETER names; without
    it ai-edge-litert, else tflite-runtime.

    Raises DependencyError where that package, or without a choice both of them, is not installed.
    """
    chosen = os.environ.get(CHOICE)
    if chosen and chosen not in PACKAGES:
        raise DependencyError(f"{CHOICE} names an unknown interpreter", chosen, f"choose from {', '.join(PACKAGES)}")
    for package in (chosen,) if chosen else PACKAGES:
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
        return package
    wanted = chosen or "ai-edge-litert"
    raise DependencyError("this TFLite interpreter is not installed", wanted, f"pip install {_INSTALL[wanted]}")


@dataclass(frozen=True, slots=True)
class Kernels:
    """What computes a model's ops on the CPU. delegated: the default delegates, as far as they take the ops. threads: that
    compute one op together.
    """

    delegated: bool
    threads: int = 1

    @property
    def label(self) -> str:
        """In words, for results to print."""
        kind = "default delegates (XNNPACK)" if self.delegated else "builtin kernels without delegates"
        return f"{kind}, {'one thread' if self.threads == 1 else f'{self.threads} threads'}"


PROVEN = Kernels(delegated=False)  # the set on which bit-exactness is proven


def runtime_label(used: Sequence[Kernels] = (PROVEN,)) -> str:
    """Name and version of the runtime and the kernels that were used, for results to print. Raises DependencyError like
    `runtime`.
    """
    package = runtime()
    return f"{package} {metadata.version(package)}, {'; '.join(kernels.label for kernels in used)}"


class Interpreter:
    """One model on the CPU. Inputs and outputs are in the order of the model's file."""

    def __init__(self, raw: Any, delegate: Any = None) -> None:
        """raw: the runtime's interpreter, tensors allocated. delegate: the runtime's own, which must outlive `raw`."""
        self._raw = raw
        self._delegate = delegate
        self._inputs = [d["index"] for d in raw.get_input_details()]
        self._outputs = [d["index"] for d in raw.get_output_details()]
        self.input_names = [d["name"] for d in raw.get_input_details()]
        self.output_names = [d["name"] for d in raw.get_output_details()]

    @property
    def tensor_indices(self) -> dict[str, int]:
        """Tensor name -> index in the model's file."""
        return {d["name"]: d["index"] for d in self._raw.get_tensor_details()}

    def run(self, values: Sequence[_Array]) -> None:
        """One inference. Variable tensors (state) are reset first. values: the inputs, in the file's order.

        Raises InterpreterError where the runtime refuses the values or fails.
        """
        try:
            self._raw.reset_all_variables()
        except (ValueError, RuntimeError) as error:
            raise _refused(error) from error
        self.run_next(values)

    def run_next(self, values: Sequence[_Array]) -> None:
        """One inference, with variable tensors as the last one left them. Raises InterpreterError like `run`."""
        try:
            for index, value in zip(self._inputs, values, strict=True):
                self._raw.set_tensor(index, value)
            self._raw.invoke()
        except (ValueError, RuntimeError) as error:
            raise _refused(error) from error

    def outputs(self) -> list[_Array]:
        """Copies of the outputs of the last run."""
        return [self._raw.get_tensor(index) for index in self._outputs]

    def close(self) -> None:
        """Free the memory and the device."""
        # In this order: the driver crashes where the delegate is freed before the interpreter that uses it.
        self._raw = None
        self._delegate = None

    def tensor(self, index: int) -> _Array:
        """A copy of any tensor of the last run, for an interpreter of `open_keeping_all`."""
        value: _Array = self._raw.get_tensor(index)
        return value


def open_interpreter(model: bytes, kernels: Kernels = PROVEN) -> Interpreter:
    """An interpreter on the CPU, ready to run. Raises InterpreterError where the runtime refuses the model."""
    return _open(model, kernels)


def open_keeping_all(model: bytes) -> Interpreter:
    """Like `open_interpreter`; every tensor of a run stays readable, as no memory is reused."""
    return _open(model, PROVEN, experimental_preserve_all_tensors=True)


def load_delegate(device: str) -> Any:  # pragma: no cover - called in child processes alone
    """libedgetpu's delegate for a device, by libedgetpu's name (":0", "usb:1", "pci:0").

    A driver that fails badly ends the whole process, so call this in a process that may die. Raises DependencyError where
    the library cannot be loaded, InterpreterError where the device is refused.
    """
    module = _module()
    with _without_noise():
        try:
            return module.load_delegate(EDGETPU_LIBRARY, {"device": device})
        except OSError as error:
            what = f"the Edge TPU runtime cannot be loaded ({error})"
            remedy = "install libedgetpu1-std, built for TensorFlow 2.13 or newer"
            refusal: BalancerError = DependencyError(what, EDGETPU_LIBRARY, remedy)
        except ValueError as error:
            # libedgetpu has one message for all of these: no device, no answer, held by another process, wrong name.
            what = f"{error} (not there, or another program has it)"
            refusal = InterpreterError(what, device, "end the program that has it, or see `balancer devices`")
    raise refusal


@contextmanager
def _without_noise() -> Iterator[None]:  # pragma: no cover - called in child processes alone
    """Both runtimes print a traceback on stderr when a delegate whose constructor failed is collected. It is hidden."""
    old, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = old


def open_on_tpu(model: bytes, device: str) -> Interpreter:  # pragma: no cover - called in child processes alone
    """An interpreter of a compiled model on an Edge TPU. Raises as `load_delegate`, whose warning holds here too."""
    delegate = load_delegate(device)
    try:
        raw = _module().Interpreter(model_content=model, experimental_delegates=[delegate], num_threads=1)
        raw.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise _refused(error) from error
    return Interpreter(raw, delegate)


def _open(model: bytes, kernels: Kernels, **options: bool) -> Interpreter:
    module = _module()
    types = module.OpResolverType
    chosen = types.BUILTIN if kernels.delegated else types.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        raw = module.Interpreter(
            model_content=model, experimental_op_resolver_type=chosen, num_threads=kernels.threads, **options
        )
        raw.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise _refused(error) from error
    return Interpreter(raw)


def _module() -> Any:
    package = runtime()
    if package == "tflite-runtime" and int(np.__version__.split(".")[0]) >= 2:
        # Its extension was built for numpy 1 and fails with a bare SystemError once an interpreter is made.
        raise DependencyError(
            f"tflite-runtime does not work with numpy {np.__version__}", "tflite-runtime", "pip install 'numpy<2'"
        )
    try:
        return importlib.import_module(_MODULES[package])
    except ImportError as error:
        raise DependencyError(f"cannot be imported ({error})", package, f"reinstall {package}") from error


def _refused(error: Exception) -> InterpreterError:
    return InterpreterError(str(error).strip() or type(error).__name__, runtime(), "see `balancer inspect` for the op")
