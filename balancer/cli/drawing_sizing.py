"""The table of `size`: rates on 1, 2, 3 ... devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.cli.drawing import Listing, milliseconds, size
from balancer.ground.opsets import op_ranges
from balancer.ground.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.planning.sizing import Sizing


def sizing(result: Sizing, asked: Sequence[str]) -> None:
    """Print the rates on 1, 2, 3 ... TPUs, and how many TPUs are worth having. asked: the targets in words."""
    table = Listing("the fastest plans found, predicted", ("TPUs", "used", "per s", "latency ms", "overflow"))
    for row in result.rows:
        if row.throughput_per_s is None or row.latency_ns is None or row.overflow_bytes is None:
            table.row(str(row.n_tpus), "", "none found", "", "")
            continue
        rate, latency = f"{row.throughput_per_s:.1f}", milliseconds(row.latency_ns)
        table.row(str(row.n_tpus), str(row.tpus_used), rate, latency, size(row.overflow_bytes))
    table.print()
    most = result.rows[-1].n_tpus
    print(f"a plan without overflow exists: {_from(result.fits_at_n, most)}")
    fits = result.fits_at_n or most + 1
    streaming = op_ranges(row.n_tpus for row in result.rows if row.n_tpus >= fits and row.overflow_bytes)
    if streaming:
        print(f"but the fastest one has some:   on {streaming} TPUs")
    knee = f"from {counted(result.knee_n, 'TPU')} on, up to {most}" if result.knee_n else _from(None, most)
    print(f"another TPU adds less than 5 %: {knee}")
    if asked:
        print(f"{' at '.join(asked)}: {_from(result.target_n, most)}")


def _from(n: int | None, most: int) -> str:
    return f"from {counted(n, 'TPU')} on" if n else f"nowhere up to {counted(most, 'TPU')}"
