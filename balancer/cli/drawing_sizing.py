"""The table of `size`: rates on 1, 2, 3 ... devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.cli.drawing import Listing, milliseconds, rough, size
from balancer.cli.drawing_energy import energy_line, millijoules
from balancer.ground.opsets import op_ranges
from balancer.ground.wording import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from balancer.planning.sizing import SizeRow, Sizing


def sizing(result: Sizing, asked: Sequence[str], *, by_energy: bool = False) -> None:
    """Print the rates on 1, 2, 3 ... devices, and how many are worth having.

    asked: the targets in words. by_energy: only the numbers that meet them, the least energy first.
    """
    energy = any(row.energy for row in result.rows)
    beside = f" with {result.others}" if result.others else ""
    table = Listing(
        f"the fastest plans found{beside}, predicted",
        (result.kind or "TPUs", "used", "per s", "latency ms", "overflow", *["mJ"] * energy),
    )
    rows = {row.n_tpus: row for row in result.rows}
    for row in [rows[n] for n in result.by_energy] if by_energy else result.rows:
        if row.throughput_per_s is None or row.latency_ns is None or row.overflow_bytes is None:
            table.row(str(row.n_tpus), "", "none found", "", "", *[""] * energy)
            continue
        rate, latency = f"{row.throughput_per_s:.1f}", milliseconds(row.latency_ns)
        estimate = [millijoules(row.energy.mj) if row.energy else ""] * energy
        table.row(str(row.n_tpus), str(row.tpus_used), rate, latency, size(row.overflow_bytes), *estimate)
    table.print()
    rough(result.rough)
    _say_energy(result, asked)
    most = result.rows[-1].n_tpus
    print(f"a plan without overflow exists: {_from(result, result.fits_at_n)}")
    fits = result.fits_at_n or most + 1
    streaming = op_ranges(row.n_tpus for row in result.rows if row.n_tpus >= fits and row.overflow_bytes)
    if streaming:
        print(f"but the fastest one has some:   on {streaming} {result.kind or 'TPUs'}")
    knee = _from(result, result.knee_n) + (f", up to {most}" if result.knee_n else "")
    print(f"another {result.kind or 'TPU'} adds less than 5 %: {knee}")
    if asked:
        print(f"{' at '.join(asked)}: {_from(result, result.target_n)}")
    if by_energy:
        print(f"least energy: {_least_energy(result, rows)}")


def _say_energy(result: Sizing, asked: Sequence[str]) -> None:
    """What the column of energy means, or why there is none."""
    if result.without_power_data:
        print(energy_line(None, result.without_power_data))
        return
    at = f" at {asked[0]}" if asked and asked[0].endswith("/s") else ""
    print(f"mJ: an estimate for one inference{at}, with all devices powered")
    silent = next((row.energy.without_idle for row in result.rows if row.energy), ())
    if silent:
        print(f"    without what {' and '.join(silent)} draws while it waits: no data")


def _least_energy(result: Sizing, rows: Mapping[int, SizeRow]) -> str:
    if not result.by_energy:
        return "nothing reaches what was asked for"
    row = rows[result.by_energy[0]]
    if row.energy is None:
        return ""  # pragma: no cover - numbers are ranked by their energy
    least, most = millijoules(row.energy.least_mj), millijoules(row.energy.most_mj)
    return f"{_count(result, row.n_tpus)}, {millijoules(row.energy.mj)} mJ, an estimate ({least} to {most})"


def _from(result: Sizing, n: int | None) -> str:
    return f"from {_count(result, n)} on" if n else f"nowhere up to {_count(result, result.rows[-1].n_tpus)}"


def _count(result: Sizing, n: int) -> str:
    """A number of devices of the swept kind in words."""
    return f"{result.kind}={n}" if result.kind else counted(n, "TPU")
