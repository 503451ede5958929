"""The constants of kinds of devices, in groups. A name says the unit."""

from __future__ import annotations

from dataclasses import dataclass

FULL_CLOCK_MHZ = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """The Edge TPU itself.

    Computing, see `timing`. Times hold at 500 MHz, the clock of the runtime's `max` build. Constants with a default here were
    added later: files without them mean what they meant.
    clock_mhz             the chip's clock: 500 with the runtime's `max` build, 250 with `std`
    mac_ns_per_gmac       ns for 10^9 multiply-accumulates, counted as the array pads them
    dense_ns_per_mib      ns to pass the cached parameters of dense ops through the array, for each MiB
    written_ns_per_mib    ns of other ops than convolutions and dense ops for each MiB that they write
    moved_permille        thousandths of it that an op takes which reads one activation only (see `elementwise`)
    written_channels      channels of an output are written so many at a time: their number is rounded up to a multiple
    op_ns                 ns to start one op, besides sending its instructions
    gather_ns             ns to collect the input of a convolution that lies spread over the tiles, once for each op
    gather_ns_per_mib     the same, for each MiB of that input
    gather_least_pixels   smaller inputs need no gathering
    narrow_bytes          memory for activations
    band_bytes            activations on which a convolution works at a time where they exceed narrow memory
    least_bands           the number of bands of such a convolution, at least

    Memory, see `capacity` and `caching`:
    wide_bytes_per_tile   of one tile, for parameters and scratch
    dense_tile_bytes      the part of it that dense ops may take
    """

    mac_ns_per_gmac: int
    dense_ns_per_mib: int
    written_ns_per_mib: int
    op_ns: int
    gather_ns: int
    gather_ns_per_mib: int
    gather_least_pixels: int
    narrow_bytes: int
    band_bytes: int
    least_bands: int
    wide_bytes_per_tile: int
    dense_tile_bytes: int
    clock_mhz: int = FULL_CLOCK_MHZ
    written_channels: int = 1
    moved_permille: int = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """The connection between the host and one Edge TPU.

    stream_ns_per_mib         ns to send parameters with each inference, for each MiB
    stream_start_ns           the same, once for each inference of a segment that streams anything
    load_ns_per_mib           ns to send parameters that stay on the chip, at the first inference, for each MiB
    load_ns                   the same, once for each segment
    invoke_ns                 ns to invoke a segment, whatever it holds
    instruction_ns_per_mib    ns to send the instructions of a segment with each inference, for each MiB
    input_ns_per_mib          ns to send a boundary tensor into a segment, for each MiB
    output_ns_per_mib         ns to fetch a boundary tensor out of a segment, for each MiB
    large_tensor_bytes        the bytes of a boundary tensor beyond this size take more time:
    large_input_ns_per_mib    ns on top of input_ns_per_mib, for each MiB beyond
    large_output_ns_per_mib   ns on top of output_ns_per_mib, for each MiB beyond
    bus_ns_per_mib            ns that the bus which all devices of the kind share is busy for each MiB in either direction; 0
                              where they share none, or where it never limits them
    """

    stream_ns_per_mib: int
    stream_start_ns: int
    load_ns_per_mib: int
    load_ns: int
    invoke_ns: int
    input_ns_per_mib: int
    output_ns_per_mib: int
    large_tensor_bytes: int
    large_input_ns_per_mib: int
    large_output_ns_per_mib: int
    instruction_ns_per_mib: int = 0
    bus_ns_per_mib: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The computer that the devices are attached to.

    handover_ns         ns to hand a result to the next stage; it adds to the latency and not to the period
    host_ns_per_stage   ns of work for each inference and stage; work for different stages does not overlap
    """

    handover_ns: int
    host_ns_per_stage: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scripts:
    """What the Python scripts of the published measurements add (see `feeding`). Zero for other hosts.

    thread_ns             ns of a Python thread and its queue, for each stage
    wake_ns               ns to wake a Python thread that slept through a long call
    upstream_permille_2   thousandths of the time in which a stage sends its output, by which the next stage is delayed:
    upstream_permille_3   in a pipeline of 2 stages, of 3 stages, and of
    upstream_permille_4   4 or more
    """

    thread_ns: int
    wake_ns: int
    upstream_permille_2: int
    upstream_permille_3: int
    upstream_permille_4: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """One thread of the host's CPU, for ops that the Edge TPU does not take.

    cpu_ns_per_gmac   ns for 10^9 multiply-accumulates
    cpu_ns_per_mib    ns to read or write activations, for each MiB
    cpu_op_ns         ns to start one op
    """

    cpu_ns_per_gmac: int
    cpu_ns_per_mib: int
    cpu_op_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """What one device of the kind draws, in milliwatts, as whole numbers; each with its error to either side.

    idle_mw         while it waits; 0 where there is no data: `busy_mw` is then what it draws more than while it waits
    idle_error_mw   how far that may be off
    busy_mw         while it computes, or is sent anything; 0 where there is no data
    busy_error_mw   how far that may be off

    The CPU's `idle_mw` is that of the whole machine, however many stages it runs; its `busy_mw` with one stage at work.
    Files of older versions have none of them. A meter's readings can be entered in a hardware file.
    """

    idle_mw: int = 0
    idle_error_mw: int = 0
    busy_mw: int = 0
    busy_error_mw: int = 0
