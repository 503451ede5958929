"""Which device runs which stage of a plan.

Stages on Edge TPUs get the devices that a user names, or those of this machine that fit their kinds. Stages on the CPU need
no name: they really run on this machine's CPU, beside devices and beside simulated TPUs alike. One name is for all stages of
a plan, whatever their kinds: `cpu` computes each with the kernels that bit-exactness is proven on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from balancer.errors import PlanError
from balancer.interpreter import PROVEN, Kernels
from balancer.plan import CPU, EDGE_TPU
from balancer.runtime.devices import device_names, own_devices

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from balancer.plan import Plan, PlanDevices

_MOST_THREADS = 256


@dataclass(frozen=True, slots=True)
class Assigned:
    """What runs a plan. names: of a device for each position (`Plan.positions`). proven: whether stages on the CPU compute
    with the kernels that bit-exactness is proven on.
    """

    names: tuple[str, ...]
    proven: bool = False


AnyDevices: TypeAlias = "str | Sequence[str] | Assigned | None"


def assigned_devices(plan: Plan, wanted: AnyDevices, root: str | Path = "/") -> Assigned:
    """The devices of a plan's stages.

    wanted: "cpu" for all stages; names for the stages on Edge TPUs, as `device_names` takes them; None for the
    Edge TPUs of this machine, each kind with its own; or what an earlier call returned. root: of the file system.

    Raises DeviceError where a name is unknown or given twice, or where there are too few.
    """
    if isinstance(wanted, Assigned):
        return wanted
    kinds = _kinds(plan)
    if (wanted.strip() if isinstance(wanted, str) else wanted) in (CPU, [CPU], (CPU,)):
        return Assigned((CPU,) * len(kinds), proven=True)
    compiled = [kind for kind in kinds if plan.devices_of(kind).device == EDGE_TPU]
    names = iter(own_devices(compiled, root) if wanted is None else device_names(wanted, len(compiled), root))
    return Assigned(tuple(next(names) if plan.devices_of(kind).device == EDGE_TPU else CPU for kind in kinds))


def no_devices(plan: Plan) -> Assigned:
    """The device "none", which does no work, for each stage: only the pipeline's own work is left to measure."""
    return Assigned(("none",) * len(_kinds(plan)))


def edge_tpus(plan: Plan) -> int:
    """How many Edge TPUs the plan uses."""
    return sum(plan.devices_of(kind).device == EDGE_TPU for kind in _kinds(plan))


def _kinds(plan: Plan) -> list[str]:
    """The kind of device at each position."""
    return [kind for kind, count in plan.used_counts.items() for _ in range(count)]


def kernels_on(devices: PlanDevices, *, proven: bool) -> Kernels:
    """What computes a stage of this kind where it runs on this machine's CPU. proven: see `Assigned`.

    Stages of Edge TPUs always have the proven kernels there: they stand in for another device, and are for comparing.
    Raises PlanError where the plan gives a number of threads that cannot be.
    """
    if proven or devices.device != CPU:
        return PROVEN
    threads = devices.constants.get("threads", 1)
    if not 1 <= threads <= _MOST_THREADS:
        raise PlanError(f"a stage cannot have {threads} threads", f"the kind {devices.kind}", "solve again")
    return Kernels(delegated=True, threads=threads)
