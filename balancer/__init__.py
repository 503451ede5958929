"""Split a full-integer TFLite model over N Coral Edge TPUs so that its pipeline is as fast as they allow.

The names below are the public API; whatever else a module holds may change. They are loaded when first used, so that a
machine that only runs plans needs neither the solver nor the cost model.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from balancer.version import VERSION as __version__

if TYPE_CHECKING:
    from balancer.compiler import CompilerOptions, find_compiler
    from balancer.cost.hardware import Hardware, load_hardware
    from balancer.directory.compiling import compile_plan
    from balancer.directory.saving import save
    from balancer.directory.verifying import verify
    from balancer.errors import (
        BalancerError,
        CompilerError,
        ConstraintError,
        DependencyError,
        DeviceError,
        HardwareError,
        InfeasibleError,
        InputError,
        InterpreterError,
        InvalidSolutionError,
        MeasurementError,
        ModelError,
        OutputError,
        PlanError,
        ProfileError,
        StageError,
    )
    from balancer.graph import Graph
    from balancer.inputs import InputSpec, Quantisation, random_items
    from balancer.loops.compiler_split import compare_compiled, default_split
    from balancer.loops.refining import refine
    from balancer.loops.sources import PipelineTimes, RecordedTimes, TrueCosts
    from balancer.loops.tuning import tune
    from balancer.opened import OpenedPlan, open_plan
    from balancer.plan import Plan, load_plan
    from balancer.planning.balancing import balance, compare
    from balancer.planning.options import Options
    from balancer.planning.predicting import predict
    from balancer.planning.sizing import size
    from balancer.runtime.images import image_files, load_image, load_pixels
    from balancer.runtime.options import RunOptions
    from balancer.runtime.pipeline import Pipeline
    from balancer.runtime.recipes import Simulation
    from balancer.runtime.simulated import Behaviour
    from balancer.solve import Constraints, Problem, Solution
    from balancer.tflite.read import load_graph
    from balancer.verification import Verification
    from balancer.workers import Failure

# Where each name is defined, by modules of this package.
_HOME = {
    "compiler": "CompilerOptions find_compiler",
    "cost.hardware": "Hardware load_hardware",
    "directory.compiling": "compile_plan",
    "directory.saving": "save",
    "directory.verifying": "verify",
    "errors": (
        "BalancerError CompilerError ConstraintError DependencyError DeviceError HardwareError InfeasibleError "
        "InputError InterpreterError InvalidSolutionError MeasurementError ModelError NotFoundError OutputError "
        "PlanError ProfileError StageError"
    ),
    "graph": "Graph",
    "inputs": "InputSpec Quantisation random_items",
    "loops.compiler_split": "compare_compiled default_split",
    "loops.refining": "refine",
    "loops.sources": "PipelineTimes RecordedTimes TrueCosts",
    "loops.tuning": "tune",
    "opened": "OpenedPlan open_plan",
    "plan": "Plan load_plan",
    "planning.balancing": "balance compare",
    "planning.options": "Options",
    "planning.predicting": "predict",
    "planning.sizing": "size",
    "runtime.images": "image_files load_image load_pixels",
    "runtime.options": "RunOptions",
    "runtime.pipeline": "Pipeline",
    "runtime.recipes": "Simulation",
    "runtime.simulated": "Behaviour",
    "solve": "Constraints Problem Solution",
    "tflite.read": "load_graph",
    "verification": "Verification",
    "workers": "Failure",
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names.split()}

__all__ = [
    "BalancerError", "Behaviour", "CompilerError", "CompilerOptions", "ConstraintError", "Constraints",
    "DependencyError", "DeviceError", "Failure", "Graph", "Hardware", "HardwareError", "InfeasibleError", "InputError",
    "InputSpec", "InterpreterError", "InvalidSolutionError", "MeasurementError", "ModelError", "NotFoundError", "OpenedPlan",
    "Options", "OutputError", "Pipeline", "PipelineTimes", "Plan", "PlanError", "Problem", "ProfileError", "Quantisation",
    "RecordedTimes", "RunOptions", "Simulation", "Solution", "StageError", "TrueCosts", "Verification", "__version__",
    "balance", "compare", "compare_compiled", "compile_plan", "default_split", "find_compiler", "image_files",
    "load_graph", "load_hardware", "load_image", "load_pixels", "load_plan", "open_plan", "predict", "random_items",
    "refine", "save", "size", "tune", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'balancer' has no attribute '{name}'")
    value = getattr(import_module(f"balancer.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
