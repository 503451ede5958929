"""The host's CPU as a kind of device: how long the TFLite interpreter takes for ops of each class."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, NamedTuple

from balancer.cost.constant_groups import Chip, Host, Link, Power
from balancer.cost.hardware_kind import HardwareKind

# The class of each type of op. Any other type is in the class `other`.
_CLASS_OF = {
    "CONV_2D": "convolution", "TRANSPOSE_CONV": "convolution", "DEPTHWISE_CONV_2D": "depthwise",
    "FULLY_CONNECTED": "dense", "BATCH_MATMUL": "dense", "AVERAGE_POOL_2D": "pooling", "MAX_POOL_2D": "pooling",
    "MEAN": "pooling", "SUM": "pooling", "REDUCE_MAX": "pooling", "RESIZE_BILINEAR": "resize",
    "RESIZE_NEAREST_NEIGHBOR": "resize",
    **dict.fromkeys(
        (
            "ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "RELU", "RELU6", "RELU_N1_TO_1", "LOGISTIC", "TANH",
            "HARD_SWISH", "LEAKY_RELU", "PRELU", "QUANTIZE", "DEQUANTIZE", "SQUARED_DIFFERENCE", "RSQRT", "EXP", "ABS",
        ),
        "elementwise",
    ),
}  # fmt: skip
OP_CLASSES = ("convolution", "depthwise", "dense", "elementwise", "pooling", "resize", "other")


def op_class(op_type: str) -> str:
    """The class of a type of op, one of `OP_CLASSES`.

    >>> op_class("CONV_2D"), op_class("ADD"), op_class("TRANSPOSE")
    ('convolution', 'elementwise', 'other')
    """
    return _CLASS_OF.get(op_type, "other")


class OpRate(NamedTuple):
    """How long ops of one class take: for 10^9 multiply-accumulates, for each MiB read or written, and to start one."""

    ns_per_gmac: int
    ns_per_mib: int
    op_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuOps:
    """For each class of ops: ns for 10^9 multiply-accumulates, for each MiB that an op reads or writes, and to start one op."""

    convolution_ns_per_gmac: int
    convolution_ns_per_mib: int
    convolution_op_ns: int
    depthwise_ns_per_gmac: int
    depthwise_ns_per_mib: int
    depthwise_op_ns: int
    dense_ns_per_gmac: int
    dense_ns_per_mib: int
    dense_op_ns: int
    elementwise_ns_per_gmac: int
    elementwise_ns_per_mib: int
    elementwise_op_ns: int
    pooling_ns_per_gmac: int
    pooling_ns_per_mib: int
    pooling_op_ns: int
    resize_ns_per_gmac: int
    resize_ns_per_mib: int
    resize_op_ns: int
    other_ns_per_gmac: int
    other_ns_per_mib: int
    other_op_ns: int

    def rate(self, op_class: str) -> OpRate:
        """The constants of one class of `OP_CLASSES`."""
        return OpRate(*(getattr(self, f"{op_class}_{field}") for field in OpRate._fields))


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
    LIMITS: ClassVar = {"threads": (1, 256), "cores": (1, 4096)}

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
