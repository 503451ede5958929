"""Lower bounds on the period of pipelines on devices of several kinds, from the structures of the costs.

A pipeline with n[k] devices of kind k and period T has at most n[k] * T ns of work on them, and keeps at most the capacity of
its stages there. With prices on both, p[k] for each ns and q[k] for each byte, all at least 0,

    the sum over ops of the least over k of  p[k] * ns of the op on kind k + min(p[k] * ns to spill it, q[k] * its bytes)
    + the sum over k of the least over stages s[k] of  s[k] * (p[k] * ns to start a stage - q[k] * capacity)
    <=  T * the sum over k of  p[k] * n[k]

since each op stands on some kind, where it is kept or spills, and there are 1 to n[k] stages. This is the dual of the linear
program that divides each op among the kinds, and what it keeps, in any parts. Any prices give a bound, so their rounding
does no harm; those of the program's optimum give the best one. Prices for some devices serve for others of the same kinds too,
and for the part of a pipeline before or after a cut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balancer.ground.arrays import BoolArray, FloatArray, IndexArray
    from balancer.ground.downsets import DownSets
    from balancer.solve.problem import Problem
    from balancer.solve.sizes import Counts
    from balancer.solve.structure import Structure

_ROUNDING = 1e-9  # far above the rounding of the sums
_SCALE = 1 << 20  # of the whole numbers that stand for priced times


@dataclass(frozen=True)
class Prices:
    """Prices by kind: of an ns on its devices, and of a byte that is kept there. Kinds without devices have none.

    time: some are above 0; they sum to 1.
    """

    time: FloatArray
    room: FloatArray
    kinds: BoolArray


class _TransferKey(NamedTuple):
    """A tensor that may cross cuts: as in `Transfer`."""

    producer: int | None
    readers: frozenset[int]
    leaves: bool


@dataclass(frozen=True)
class KindTerms:
    """What the ops take on each kind, as columns.

    work_ns: [kind, op] in any stage, with the outputs of the model that the op makes, and the inputs of the model that it
    alone reads; infinite where it cannot run. kept_op, kept_bytes, spill_ns: [kept] of each kind, for what may be kept.
    """

    structures: tuple[Structure, ...]

    @property
    def n_ops(self) -> int:
        return len(self.structures[0].op_ns)

    @cached_property
    def work_ns(self) -> FloatArray:
        work = np.zeros((len(self.structures), self.n_ops))
        for row, structure in zip(work, self.structures, strict=True):
            row[:] = [math.inf if ns is None else ns for ns in structure.op_ns]
            for transfer in structure.transfers:
                if transfer.producer is not None:
                    row[transfer.producer] += transfer.send_ns * transfer.leaves
                elif len(set(transfer.readers)) == 1:
                    row[transfer.readers[0]] += transfer.receive_ns
        return work

    @cached_property
    def tensors(self) -> dict[_TransferKey, FloatArray]:
        """[kind, (send, receive)] for each tensor that is read, in ns."""
        found: dict[_TransferKey, FloatArray] = {}
        for k, structure in enumerate(self.structures):
            for t in structure.transfers:
                if t.readers:
                    tensor = _TransferKey(t.producer, frozenset(t.readers), t.leaves)
                    of_kinds = found.setdefault(tensor, np.zeros((len(self.structures), 2)))
                    of_kinds[k] += t.send_ns, t.receive_ns
        return found

    @cached_property
    def kept(self) -> list[tuple[IndexArray, FloatArray, FloatArray]]:
        """For each kind the op, the bytes, and the ns to spill them, of what may be kept."""
        return [
            (
                np.array([k.op for k in structure.kept], np.intp),
                np.array([k.size_bytes for k in structure.kept], float),
                np.array([k.spill_ns for k in structure.kept], float),
            )
            for structure in self.structures
        ]

    @cached_property
    def start_ns(self) -> FloatArray:
        return np.array([structure.stage_ns for structure in self.structures], float)

    @cached_property
    def capacity_bytes(self) -> FloatArray:
        return np.array([structure.capacity_bytes for structure in self.structures], float)

    def priced(self, prices: Prices) -> FloatArray:
        """[op]: the least that each op costs at these prices, wherever it stands."""
        worth = np.full(self.n_ops, np.inf)
        for k in np.nonzero(prices.kinds)[0].tolist():
            own = np.where(np.isinf(self.work_ns[k]), np.inf, prices.time[k] * np.nan_to_num(self.work_ns[k], posinf=0))
            op, size, spill = self.kept[k]
            np.add.at(own, op, np.minimum(prices.time[k] * spill, prices.room[k] * size))
            worth = np.minimum(worth, own)
        return worth

    def best_prices(self, vectors: Sequence[Counts]) -> list[Prices]:
        """For these devices the prices of the linear program's optimum, where there is one; each set of prices once."""
        program = _Program(self)
        found: dict[tuple[bytes, bytes, bytes], Prices] = {}
        for devices in vectors:
            prices = program.prices(devices)
            if prices is not None:
                found.setdefault((prices.time.tobytes(), prices.room.tobytes(), prices.kinds.tobytes()), prices)
        return list(found.values())


@dataclass(frozen=True)
class _PriceTable:
    """Several prices at once, as in `Prices`: [price, kind]. start: what a stage's start costs, less what the stage keeps."""

    time: FloatArray
    kinds: BoolArray
    start: FloatArray

    def serving(self, devices: Counts) -> IndexArray:
        """The prices that give a bound for these devices: all their kinds have prices, and some ns has one."""
        counts = np.array(devices)
        return np.nonzero((self.kinds | (counts == 0)).all(axis=1) & (self.time @ counts > 0))[0]

    def started(self, devices: Counts) -> FloatArray:
        """[price]: the least that the starts of stages cost, less what the stages keep. There are 1 to n on n devices."""
        counts = np.array(devices)
        started: FloatArray = np.where(counts, np.minimum(self.start, self.start * counts), 0).sum(axis=1)
        return started


def _table(terms: KindTerms, prices: Sequence[Prices]) -> _PriceTable:
    shape = (len(prices), len(terms.structures))
    time, room = (np.array([getattr(p, name) for p in prices], float).reshape(shape) for name in ("time", "room"))
    kinds = np.array([p.kinds for p in prices], bool).reshape(shape)
    return _PriceTable(time, kinds, time * terms.start_ns - room * terms.capacity_bytes)


@dataclass(frozen=True)
class PricedBounds:
    """Lower bounds at several prices. worth: for each price, that of all ops."""

    terms: KindTerms
    prices: tuple[Prices, ...]

    @cached_property
    def _worth(self) -> FloatArray:
        return np.array([float(self.terms.priced(prices).sum()) for prices in self.prices])

    @cached_property
    def _prices(self) -> _PriceTable:
        return _table(self.terms, self.prices)

    def period_ns(self, devices: Counts) -> float:
        """No pipeline on exactly these devices has a shorter period; infinite where there is none."""
        here = self._prices.serving(devices)
        priced = (self._worth + self._prices.started(devices))[here] / (self._prices.time[here] @ np.array(devices))
        return float(priced.max(initial=0)) * (1 - _ROUNDING)

    def alone_ns(self, devices: Counts, most_replicas: int) -> float:
        """The op that takes longest stands somewhere, on at most most_replicas devices of one kind."""
        here = [k for k, count in enumerate(devices) if count]
        replicas = np.minimum([devices[k] for k in here], most_replicas)
        return float((self.terms.work_ns[here] / replicas[:, None]).min(axis=0).max(initial=0)) * (1 - _ROUNDING)


def priced_bounds(problem: Problem) -> PricedBounds | None:
    """The bounds for a problem's devices at the best prices for any of them; None where there is one kind of device, or the
    structure of some kind's cost is not known.
    """
    kinds = [kind for kind, _ in problem.devices]
    if len(kinds) == 1 or any(kind not in problem.structures for kind in kinds):
        return None
    terms = KindTerms(tuple(problem.structures[kind] for kind in kinds))
    mixed = [counts for counts in product(*(range(n + 1) for _, n in problem.devices)) if sum(map(bool, counts)) > 1]
    return PricedBounds(terms, tuple(terms.best_prices(mixed)))


@dataclass(frozen=True)
class PricedCuts:
    """The same bounds for the parts of pipelines before and after cuts.

    before, after: [price, set] what the ops of the set, and all others, cost at least.
    """

    table: _PriceTable
    before: FloatArray
    after: FloatArray

    def before_fits(self, devices: Counts, period_ns: float) -> BoolArray:
        """For each cut, whether these devices may be enough for the ops before it."""
        return self._fits(self.before, devices, period_ns)

    def after_fits(self, devices: Counts, period_ns: float) -> BoolArray:
        """For each cut, whether these devices may be enough for the ops after it."""
        return self._fits(self.after, devices, period_ns)

    def _fits(self, worth: FloatArray, devices: Counts, period_ns: float) -> BoolArray:
        table = self.table
        here = table.serving(devices)
        room = (period_ns * (table.time @ np.array(devices)) - table.started(devices))[here]
        fits: BoolArray = (worth[here] <= room[:, None] * (1 + _ROUNDING) + _ROUNDING).all(axis=0)
        return fits


def priced_cuts(terms: KindTerms, prices: Sequence[Prices], sets: DownSets) -> PricedCuts:
    """The bounds of all these down-sets, of which the last holds all ops. Prices at which some op has no cost are left out."""
    kept = tuple(p for p in prices if np.isfinite(terms.priced(p)).all())
    before, after = np.zeros((2, len(kept), len(sets)))
    for k, own in enumerate(kept):
        weights = np.floor(terms.priced(own) * _SCALE).astype(np.int64)
        before[k] = sets.total(weights.tolist()) / _SCALE
        after[k] = before[k, -1] - before[k]
    for tensor, of_kinds in terms.tensors.items():
        readers = sum(1 << r for r in tensor.readers)
        send, receive = (np.array([(p.time * ns)[p.kinds].min() for p in kept]) for ns in of_kinds.T)
        if tensor.producer is None:
            if len(tensor.readers) > 1:
                before += receive[:, None] * sets.holds_any(readers)
                after += receive[:, None] * ~sets.holds_all(readers)
            continue
        crosses = sets.holds_any(1 << tensor.producer) & ~sets.holds_all(readers)
        if not tensor.leaves:
            before += send[:, None] * crosses
        after += receive[:, None] * crosses
    return PricedCuts(_table(terms, kept), before, after)


class _Program:
    """The linear program, whose devices may be changed: the shortest period at which the ops, divided in any parts, fit."""

    def __init__(self, terms: KindTerms) -> None:
        from ortools.linear_solver import pywraplp

        self.terms = terms
        self.solver = solver = pywraplp.Solver.CreateSolver("GLOP")
        inf, kinds = solver.infinity(), range(len(terms.structures))
        self.period = solver.NumVar(0, inf, "")
        self.shares = [[solver.NumVar(0, inf, "") for _ in range(terms.n_ops)] for _ in kinds]
        self.stages = [solver.NumVar(0, inf, "") for _ in kinds]
        self.time = [solver.Constraint(-inf, 0) for _ in kinds]
        self.room = [solver.Constraint(-inf, 0) for _ in kinds]
        for op in range(terms.n_ops):
            whole = solver.Constraint(1, 1)
            for k in kinds:
                whole.SetCoefficient(self.shares[k][op], 1)
        for k in kinds:
            for share, ns in zip(self.shares[k], terms.work_ns[k].tolist(), strict=True):
                self.time[k].SetCoefficient(share, 0 if math.isinf(ns) else ns)
            self.time[k].SetCoefficient(self.stages[k], float(terms.start_ns[k]))
            self.room[k].SetCoefficient(self.stages[k], -float(terms.capacity_bytes[k]))
            for op, size, spill in zip(*(column.tolist() for column in terms.kept[k]), strict=True):
                spilled, most = solver.NumVar(0, inf, ""), solver.Constraint(-inf, 0)
                most.SetCoefficient(spilled, 1)
                most.SetCoefficient(self.shares[k][op], -1)
                self.time[k].SetCoefficient(spilled, spill)
                self.room[k].SetCoefficient(spilled, -size)
                self.room[k].SetCoefficient(self.shares[k][op], size)
        solver.Minimize(self.period)

    def prices(self, devices: Counts) -> Prices | None:
        """The prices at the optimum for these devices; None where there is none."""
        for k, count in enumerate(devices):
            self.time[k].SetCoefficient(self.period, -count)
            self.stages[k].SetBounds(min(1, count), count)
            for share, ns in zip(self.shares[k], self.terms.work_ns[k].tolist(), strict=True):
                share.SetUb(0 if math.isinf(ns) or not count else 1)
        if self.solver.Solve() != self.solver.OPTIMAL:
            return None
        kinds = np.array(devices) > 0
        time, room = (
            np.where(kinds, np.maximum(0, [-row.dual_value() for row in rows]), 0) for rows in (self.time, self.room)
        )
        total = float(time.sum())
        return Prices(time / total, room / total, kinds) if total > 0 else None
