"""Split a full-integer TFLite model over N Coral Edge TPUs so that its pipeline is as fast as they allow."""

from balancer.balancing import balance, compare, predict, save, verify
from balancer.cost.hardware import Hardware, load_hardware
from balancer.errors import BalancerError, InfeasibleError, ModelError, PlanError
from balancer.graph import Graph
from balancer.plan import Plan, load_plan
from balancer.solve import Problem, Solution
from balancer.tflite.read import load_graph
from balancer.version import VERSION as __version__

__all__ = [
    "BalancerError", "Graph", "Hardware", "InfeasibleError", "ModelError", "Plan", "PlanError", "Problem", "Solution",
    "__version__", "balance", "compare", "load_graph", "load_hardware", "load_plan", "predict", "save", "verify",
]  # fmt: skip
