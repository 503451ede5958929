"""An independent judge of solutions: shares no code with the solvers, only the definitions of the design."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from balancer.solve import Problem, Solution


def check(problem: Problem, solution: Solution) -> None:
    """Each pipeline holds each op once, no op reads from a later segment, devices suffice, the objective and bound
    are honest.
    """
    kind, available = problem.devices[0]
    used, offers = 0, []
    for pipeline in solution.pipelines:
        seen = 0
        slowest = Fraction(0)
        for stage in pipeline.stages:
            assert stage.kind == kind
            assert stage.replicas >= 1
            assert stage.ops
            assert not stage.ops & seen, "an op stands twice"
            seen |= stage.ops
            for op in range(problem.n_ops):
                if stage.ops >> op & 1:
                    assert not problem.before[op] & ~seen, f"op {op} reads from a later segment"
            cost = problem.exact(stage.ops, kind)
            assert cost is not None, "a segment stands where it may not"
            assert problem.lower(stage.ops, kind) <= cost.time_ns
            slowest = max(slowest, Fraction(cost.time_ns, stage.replicas))
            used += stage.replicas
        assert seen == (1 << problem.n_ops) - 1, "an op is missing"
        offers.append((problem.host_ns * len(pipeline.stages), Fraction(10**9) / slowest))
    assert used <= available
    assert used == solution.value.devices
    # One host: the pipelines that cost it least run first, the others in the time that is left.
    time, rate = Fraction(10**9), Fraction(0)
    for host_ns, most in sorted(offers):
        served = most if host_ns * most <= time else time / host_ns
        time, rate = time - served * host_ns, rate + served
    nearest = -(-(10**9) * rate.denominator // rate.numerator)
    assert solution.value.objective_ns == nearest
    assert 0 <= solution.bound_ns <= nearest
    assert solution.status == ("optimal" if solution.bound_ns == nearest else "feasible")
