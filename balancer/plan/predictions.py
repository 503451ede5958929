"""What is predicted of a plan and of its pipelines, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelinePrediction:
    """Predicted performance of one pipeline, as if it ran alone.

    throughput_per_s: inferences per second that its stages allow. latency_ns: of one input alone. host_ns: the host's
    work for one inference. bottleneck: name of the segment whose stage sets the rate.
    """

    throughput_per_s: float
    latency_ns: int
    host_ns: int
    bottleneck: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedUse:
    """How busy something is that devices share, such as a bus or the host's cores.

    name: of the resource. share: of what it can do in a second; 1 where it sets the rate of the plan.
    """

    name: str
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyPrediction:
    """An estimate of the energy that one inference takes, in millijoules.

    mj, least_mj, most_mj: the estimate, and its range. without_idle: the kinds of which no power is known while they wait:
    what they draw then is not in it.
    """

    mj: float
    least_mj: float
    most_mj: float
    without_idle: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanPrediction:
    """Predicted performance of the whole plan.

    throughput_per_s: inferences per second of all pipelines under one host. latency_ns: of one input alone in the slowest
    pipeline. host_ns: the host's work for one inference, averaged over the pipelines by their rates. first_inference_ns:
    latency of the first input, which also waits for cached parameters to be loaded. tpus_used: at most the plan's n_tpus.
    shared: of what else the devices share, as far as it can limit plans. energy: null where a kind has no power data.
    Plans of older versions have neither.
    """

    throughput_per_s: float
    latency_ns: int
    host_ns: int
    first_inference_ns: int
    tpus_used: int
    shared: tuple[SharedUse, ...] = ()
    energy: EnergyPrediction | None = None
