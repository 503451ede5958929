"""A plan's directory: written, compiled, verified. Knows neither solver nor cost model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from balancer.directory.compiling import compile_plan
    from balancer.directory.saving import save
    from balancer.directory.verifying import verify

_HOME = {"compile_plan": "compiling", "save": "saving", "verify": "verifying"}

__all__ = ["compile_plan", "save", "verify"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
