"""The main job: model + hardware + N -> plan, and what a plan is good for. The only room that brings the others
together.
"""

from balancer.balancing.compiling import compile_plan
from balancer.balancing.planning import balance, compare
from balancer.balancing.predicting import predict
from balancer.balancing.saving import save
from balancer.balancing.sizing import size
from balancer.balancing.verifying import verify

__all__ = ["balance", "compare", "compile_plan", "predict", "save", "size", "verify"]
