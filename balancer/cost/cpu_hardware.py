"""The host's CPU as a kind of device: how long the TFLite interpreter takes for ops of each class."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, NamedTuple

from balancer.cost.constant_groups import Chip, Host, Link, Power
from balancer.cost.hardware_kind import HardwareKind


class OpRate(NamedTuple):
    """How long ops of one class take: for 10^9 multiply-accumulates, for each MiB, and for each row (see `cpu_work`)."""

    ns_per_gmac: int
    ns_per_mib: int
    row_ps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuOps:
    """How long the kernels of each class of ops take for their work, see `cpu_work`.

    lanes          so many channels a kernel computes at a time: the number of channels is rounded up to a multiple
    op_ns          ns to start one op of any class
    parameters_*   ns to bring the parameters of any class from memory: they are more than a core's cache holds
    *_ns_per_gmac  ns for 10^9 multiply-accumulates
    *_ns_per_mib   ns for each MiB that the class counts
    *_row_ps       picoseconds for each row
    """

    lanes: int
    op_ns: int
    parameters_ns_per_mib: int
    convolution_ns_per_gmac: int
    convolution_ns_per_mib: int
    convolution_row_ps: int
    depthwise_ns_per_gmac: int
    depthwise_ns_per_mib: int
    depthwise_row_ps: int
    wide_depthwise_ns_per_gmac: int
    dense_ns_per_gmac: int
    elementwise_ns_per_mib: int
    broadcast_ns_per_mib: int
    broadcast_row_ps: int
    scalar_ns_per_gmac: int
    scalar_ns_per_mib: int
    softmax_ns_per_mib: int
    max_pooling_ns_per_mib: int
    max_pooling_row_ps: int
    average_pooling_ns_per_mib: int
    average_pooling_row_ps: int
    reduction_ns_per_mib: int
    resize_ns_per_mib: int
    padding_ns_per_mib: int
    padding_row_ps: int
    copying_ns_per_mib: int
    copying_row_ps: int

    def rate(self, op_class: str) -> OpRate:
        """The constants of one class of `cpu_work.OP_CLASSES`; 0 for what the class does not count."""
        return OpRate(*(getattr(self, f"{op_class}_{field}", 0) for field in OpRate._fields))


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """How segments run on the CPU.

    threads               that one stage computes with
    cores                 that the machine has
    invoke_ns             ns to invoke a segment, whatever it holds
    boundary_ns_per_mib   ns to copy a boundary tensor into a segment or out of it, for each MiB
    """

    threads: int
    cores: int
    invoke_ns: int
    boundary_ns_per_mib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuHardware(HardwareKind):
    """The host's CPU, as a device that runs segments through the TFLite interpreter.

    A device of this kind is `threads` threads. `cores` of the machine divided by them is the most there can be.
    """

    DEVICE: ClassVar = "cpu"
    GROUPS: ClassVar = {"ops": CpuOps, "running": Running, "host": Host, "power": Power}
    # Kernels that go value by value may take more than 10 ns for a multiply-accumulate.
    LIMITS: ClassVar = {
        "threads": (1, 256), "cores": (1, 4096), "lanes": (1, 64), "wide_depthwise_ns_per_gmac": (0, 10**12),
        "scalar_ns_per_gmac": (0, 10**12),
    }  # fmt: skip

    ops: CpuOps
    running: Running
    host: Host
    power: Power

    @property
    def chip(self) -> Chip:
        """The Edge TPU of a CPU: none. Its memory holds nothing."""
        return Chip(**dict.fromkeys((f.name for f in fields(Chip)), 0))

    @property
    def link(self) -> Link:
        """What boundary tensors cross: a copy in the host's memory."""
        nothing = dict.fromkeys((f.name for f in fields(Link)), 0)
        copying = self.running.boundary_ns_per_mib
        own = {"invoke_ns": self.running.invoke_ns, "input_ns_per_mib": copying, "output_ns_per_mib": copying}
        return Link(**nothing | own)

    @property
    def most_devices(self) -> int:
        """How many stages the machine's cores can run at a time."""
        return max(1, self.running.cores // self.running.threads)
