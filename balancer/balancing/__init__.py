"""The main job: model + hardware + N -> plan, and what a plan is good for. The only room that brings the others
together. Its parts are loaded when they are used: whoever runs or verifies a plan needs no cost model.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from balancer.balancing.compiling import compile_plan
    from balancer.balancing.planning import balance, compare
    from balancer.balancing.predicting import predict
    from balancer.balancing.saving import save
    from balancer.balancing.sizing import size
    from balancer.balancing.tuning import tune
    from balancer.balancing.verifying import verify

_HOME = {
    "balance": "planning", "compare": "planning", "compile_plan": "compiling", "predict": "predicting", "save": "saving",
    "size": "sizing", "tune": "tuning", "verify": "verifying",
}  # fmt: skip

__all__ = ["balance", "compare", "compile_plan", "predict", "save", "size", "tune", "verify"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'balancer.balancing' has no attribute '{name}'")
    return getattr(import_module(f"balancer.balancing.{_HOME[name]}"), name)
