"""Split a full-integer TFLite model over N Coral Edge TPUs so that its pipeline is as fast as they allow.

The names below are the public API; whatever else a module holds may change. They are loaded when first used, so that a
machine that only runs plans needs neither the solver nor the cost model.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from balancer.version import VERSION as __version__

if TYPE_CHECKING:
    from balancer.compiler import find_compiler
    from balancer.cost.hardware import Hardware, load_hardware
    from balancer.directory import compile_plan, save, verify
    from balancer.errors import BalancerError, InfeasibleError, ModelError, PlanError
    from balancer.graph import Graph
    from balancer.loops import tune
    from balancer.plan import Plan, load_plan
    from balancer.planning import balance, compare, predict, size
    from balancer.runtime.options import RunOptions
    from balancer.runtime.pipeline import Pipeline
    from balancer.solve import Constraints, Problem, Solution
    from balancer.tflite.read import load_graph

_HOME = {
    "BalancerError": "errors", "Constraints": "solve", "Graph": "graph", "Hardware": "cost.hardware",
    "InfeasibleError": "errors", "ModelError": "errors", "Pipeline": "runtime.pipeline", "Plan": "plan",
    "PlanError": "errors", "Problem": "solve", "RunOptions": "runtime.options", "Solution": "solve",
    "balance": "planning", "compare": "planning", "compile_plan": "directory", "find_compiler": "compiler",
    "load_graph": "tflite.read", "load_hardware": "cost.hardware", "load_plan": "plan", "predict": "planning",
    "save": "directory", "size": "planning", "tune": "loops", "verify": "directory",
}  # fmt: skip

__all__ = [
    "BalancerError", "Constraints", "Graph", "Hardware", "InfeasibleError", "ModelError", "Pipeline", "Plan",
    "PlanError", "Problem", "RunOptions", "Solution", "__version__", "balance", "compare", "compile_plan",
    "find_compiler", "load_graph", "load_hardware", "load_plan", "predict", "save", "size", "tune", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'balancer' has no attribute '{name}'")
    value = getattr(import_module(f"balancer.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
