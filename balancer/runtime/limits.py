"""Guards before a plan runs: the limits of driver and machine, and other devices than it was made for."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from balancer.runtime.provenance import costed_for_others
from balancer.tflite.package import is_compiled, read_package

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from balancer.interpreter import Kernels
    from balancer.opened import OpenedPlan
    from balancer.plan import Plan

_LOG = logging.getLogger(__name__)
# gasket: 8192 page-table entries a chip, 6144 of them for pages of 4 KiB; what fails says "entry 6144 is not free".
SIMPLE_ENTRIES = 6144
_PAGE_BYTES = 4096


def mapping_entries(compiled: bytes, name: str) -> int:
    """Entries of the PCIe driver's page table that a compiled file needs, roughly: one for each page of instructions,
    of streamed parameters, and of tensors in and out.
    """
    if not is_compiled(compiled, name):
        return 0
    package = read_package(compiled, name=name, where=name)
    tensors = [layer.size_bytes for layer in (*package.inputs, *package.outputs)]
    return sum(-(-size // _PAGE_BYTES) for size in (package.instruction_bytes, package.streamed_bytes, *tensors))


def warn_of_mappings(opened: OpenedPlan, devices: Sequence[str]) -> None:
    """Log a warning for each segment that comes near the limit of a PCIe device."""
    plan = opened.plan
    for pipeline in plan.pipelines:
        for stage in pipeline.stages:
            segment = plan.segment(stage.segment)
            on_pci = any(devices[t].startswith(("pci", ":")) for t in plan.positions(stage))
            if not on_pci or not segment.reported:
                continue
            entries = mapping_entries(opened.compiled_file(segment), segment.name)
            if entries > SIMPLE_ENTRIES * 9 // 10:
                _LOG.warning(
                    "%s needs about %d of the PCIe driver's %d page-table entries; where it fails with 'is not free', "
                    "cut it further", segment.name, entries, SIMPLE_ENTRIES,
                )  # fmt: skip


def cores_note(kernels: Iterable[Kernels], cores: int) -> str | None:
    """A sentence about stages on the CPU that compute with more threads than there are cores; else None.

    kernels: of each device that computes on the CPU.
    """
    threads = sum(each.threads for each in kernels)
    if threads <= cores:
        return None
    return f"stages on the CPU compute with {threads} threads on {cores} of its cores, and wait for each other"


def warn_of_other_kinds(plan: Plan, devices: Sequence[str]) -> None:
    """Log a warning where the plan's times are predicted for another kind of device. devices: by TPU."""
    if said := costed_for_others(plan, devices):
        _LOG.warning("%s", said)
