"""Estimates of energy for plans and for ways to use devices: `ground.energy` with the power data of their kinds."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from balancer.cost.cpu_hardware import CpuHardware
from balancer.ground.energy import Drawn, energy
from balancer.ground.rates import pipeline_rate, shared_rates
from balancer.ground.units import NS_PER_S
from balancer.plan import EnergyPrediction
from balancer.solve.problem import capacities, shared_work, stage_costs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from balancer.cost.devices import Devices
    from balancer.solve import Kind, PipelineSpec, Problem

DECIMALS = 6  # of millijoules in files


class PipelineLoad(NamedTuple):
    """A pipeline in steady state. rate: inferences per second. busy_ns: for each stage its kind, and ns for one inference."""

    rate: Fraction
    busy_ns: tuple[tuple[Kind, int], ...]


def energy_of(
    devices: Devices, loads: Sequence[PipelineLoad], at_most_per_s: float | None = None
) -> EnergyPrediction | None:
    """The energy of one inference where these pipelines run on the devices; None where a kind has no data of its power.

    All devices are powered, whether a pipeline uses them or not. The stages on a CPU share one machine, which waits once.
    at_most_per_s: inputs come no faster than this; None where they come as fast as the pipelines take them.
    """
    rate = sum((load.rate for load in loads), Fraction(0))
    if not rate or without_power_data(devices):
        return None
    share = Fraction(1) if at_most_per_s is None else min(Fraction(1), Fraction(at_most_per_s) / rate)
    estimate = energy(_drawn(devices, loads, share), rate * share)
    mj, least_mj, most_mj = (round(float(value), DECIMALS) for value in estimate)
    silent = tuple(kind.name for kind, _ in devices.kinds if not kind.power.idle_mw)
    return EnergyPrediction(mj=mj, least_mj=least_mj, most_mj=most_mj, without_idle=silent)


def without_power_data(devices: Devices) -> tuple[str, ...]:
    """The kinds of which nobody knows what they draw while they work."""
    return tuple(kind.name for kind, _ in devices.kinds if not kind.power.busy_mw)


def loads_of(problem: Problem, pipelines: Sequence[PipelineSpec]) -> list[PipelineLoad]:
    """The loads of a plan's pipelines, from `exact`; none where a segment may not stand."""
    rates, work, busy = [], [], []
    for pipeline in pipelines:
        costs = stage_costs(problem, pipeline)
        if costs is None:
            return []
        rates.append(pipeline_rate([c.time_ns for c in costs], [s.replicas for s in pipeline.stages]))
        work.append(shared_work(problem, pipeline, costs))
        busy.append(tuple((s.kind, c.time_ns) for s, c in zip(pipeline.stages, costs, strict=True)))
    return [PipelineLoad(r, b) for r, b in zip(shared_rates(rates, work, capacities(problem)), busy, strict=True)]


def _drawn(devices: Devices, loads: Sequence[PipelineLoad], share: Fraction) -> Iterator[Drawn]:
    """What each kind draws. share: of the pipelines' rates, at which they run."""
    machines = 1
    for kind, count in devices.kinds:
        busy_ns = sum((load.rate * ns for load in loads for name, ns in load.busy_ns if name == kind.name), Fraction(0))
        powered = count
        if isinstance(kind, CpuHardware):
            powered, machines = machines, 0
        power = kind.power
        yield Drawn(
            powered, busy_ns * share / NS_PER_S, power.idle_mw, power.idle_error_mw, power.busy_mw, power.busy_error_mw
        )
