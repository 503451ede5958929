"""Making a plan: model, hardware and N in, a plan out, beside other ways to use the same TPUs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from balancer.planning.balancing import balance, compare
    from balancer.planning.predicting import predict
    from balancer.planning.sizing import size

_HOME = {"balance": "balancing", "compare": "balancing", "predict": "predicting", "size": "sizing"}

__all__ = ["balance", "compare", "predict", "size"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
