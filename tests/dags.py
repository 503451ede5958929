"""Random problems on small DAGs, with costs that neither grow nor shrink with the segment, and all their plans."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache, reduce
from itertools import combinations_with_replacement
from operator import or_
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from balancer.solve import (
    Cost,
    Handoff,
    Kept,
    Kind,
    PipelineSpec,
    Problem,
    StageSpec,
    Structure,
    Transfer,
    Value,
    evaluate,
)
from tests.strategies import looped_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from balancer.ground.opsets import OpSet


def ops_of(ops: OpSet) -> list[int]:
    return [i for i in range(ops.bit_length()) if ops >> i & 1]


def structured_ns(structure: Structure, ops: OpSet) -> int | None:
    """The time of a segment by the words of `Structure`; None where it may not stand."""
    inside = ops_of(ops)
    over = sum(h.followers for h in structure.handoffs if ops >> h.op & 1 and ops & h.after)
    times = [structure.handed_ns if over >> i & 1 else structure.usual_ns or structure.op_ns for i in inside]
    own = [ns[i] for i, ns in zip(inside, times, strict=True)]
    if None in own or any(not over >> i & 1 for i in structure.host_only if i in inside):
        return None
    if structure.limit_bytes is not None and sum(structure.op_bytes[i] for i in inside) > structure.limit_bytes:
        return None
    time = structure.stage_ns + sum(ns for ns in own if ns is not None)
    for t in structure.transfers:
        read = [r for r in t.readers if r in inside]
        if t.producer in inside:
            if t.leaves or len(read) < len(t.readers):
                time += t.send_ns
        elif read:
            time += t.receive_ns
    room, spilled = structure.capacity_bytes, False
    for kept in structure.kept:
        if kept.op in inside:
            if kept.size_bytes <= room:
                room -= kept.size_bytes
            else:
                time, spilled = time + kept.spill_ns, True
    streaming = {*structure.streaming, *(i for i in structure.usually_streaming if not over >> i & 1)}
    return time + structure.spill_start_ns * (spilled or any(i in streaming for i in inside))


def cheapest_ns(structure: Structure, ops: OpSet) -> int | None:
    """The same with the best choice of parameters to keep, whatever their order."""
    best = structured_ns(structure, ops)
    if best is None:
        return None
    inside = [kept for kept in structure.kept if ops >> kept.op & 1]
    # What the rest takes, without and with a start of streaming for what spills.
    rest, started = (
        structured_ns(replace(structure, kept=kept, capacity_bytes=0), ops) for kept in ((), (Kept(inside[0].op, 1, 0),))
    ) if inside else (best, best)  # fmt: skip
    assert rest is not None
    assert started is not None
    for choice in range(1 << len(inside)):
        kept = [k for j, k in enumerate(inside) if choice >> j & 1]
        if sum(k.size_bytes for k in kept) <= structure.capacity_bytes:
            spills = [k.spill_ns for k in inside if k not in kept]
            best = min(best, (started if spills else rest) + sum(spills))
    return best


@st.composite
def graphs(draw: Callable[[Any], Any], most_ops: int) -> tuple[OpSet, ...]:
    """For each op what it reads from: earlier ops, each with some likelihood."""
    n = draw(st.integers(1, most_ops))
    return tuple(draw(st.integers(0, (1 << i) - 1)) & draw(st.integers(0, (1 << i) - 1)) for i in range(n))


@st.composite
def handing_over(draw: Callable[[Any], Any], before: tuple[OpSet, ...]) -> tuple[Handoff, ...]:
    """At most one op that hands some of its descendants over, in the company of some of its ancestors."""
    n, above = len(before), list[int]()
    for reads in before:
        above.append(reads | union(above[i] for i in ops_of(reads)))
    op = draw(st.integers(0, n - 1))
    below = sum(1 << i for i in range(n) if above[i] >> op & 1)
    after, followers = (draw(st.integers(0, (1 << n) - 1)) & ops for ops in (above[op], below))
    return (Handoff(op, after, followers),) if after and followers else ()


def union(sets: Iterable[OpSet]) -> OpSet:
    return reduce(or_, sets, 0)


@st.composite
def structures(draw: Callable[[Any], Any], before: tuple[OpSet, ...], *, relaxed: bool = False) -> Structure:
    """Tensors along the arcs, one from outside for each source, some that leave; caches that bind."""
    n = len(before)
    few = st.integers(0, 9)
    readers = [tuple(r for r in range(n) if before[r] >> i & 1) for i in range(n)]
    transfers = [Transfer(i, readers[i], not readers[i] or draw(st.booleans()), draw(few), draw(few)) for i in range(n)]
    transfers += [Transfer(None, (i,), False, draw(few), 0) for i in range(n) if not before[i]]
    held = draw(st.permutations([i for i in range(n) if draw(st.booleans())]))
    usual, handed = (tuple(draw(st.integers(0, 20)) for _ in range(n)) for _ in range(2))
    handoffs = draw(handing_over(before)) if relaxed and draw(st.booleans()) else ()
    followers = sum(handoff.followers for handoff in handoffs)
    streaming = [i for i in range(n) if draw(st.integers(0, 3)) == 0]
    host_only = [i for i in ops_of(followers) if draw(st.integers(0, 3)) == 0]
    least = {i: handed[i] if i in host_only else min(usual[i], handed[i]) for i in ops_of(followers)}
    return Structure(
        stage_ns=draw(st.integers(0, 5)),
        op_ns=tuple(least.get(i, usual[i]) for i in range(n)),
        handoffs=handoffs,
        usual_ns=usual if handoffs else (),
        handed_ns=handed if handoffs else (),
        transfers=tuple(transfers),
        kept=tuple(Kept(i, draw(st.integers(1, 6)), draw(st.integers(0, 15))) for i in held),
        capacity_bytes=draw(st.integers(0, 14)),
        spill_start_ns=draw(st.integers(0, 4)),
        streaming=tuple(i for i in streaming if not followers >> i & 1),
        usually_streaming=tuple(i for i in streaming if followers >> i & 1),
        host_only=tuple(host_only),
        relaxed=relaxed,
    )


@st.composite
def dag_problems(
    draw: Callable[[Any], Any], most_ops: int = 7, most_devices: int = 3, kinds: int = 1, *, structured: bool = False
) -> Problem:
    """Random costs; in half of them, or in all, above a structure, which then serves for bounds. The whole may always stand."""
    before = draw(graphs(most_ops))
    seed = draw(st.integers(0, 1 << 16))
    times = draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    refusing = draw(st.sampled_from([0.0, 0.0, 0.3]))
    names = [f"kind{k}" for k in range(kinds)]
    known = (
        {name: draw(structures(before, relaxed=True)) for name in names} if structured or draw(st.booleans()) else {}
    )
    groups = draw(st.lists(st.integers(0, (1 << len(before)) - 1), max_size=1)) if draw(st.booleans()) else []
    whole = (1 << len(before)) - 1

    @cache
    def exact(ops: OpSet, kind: Kind) -> Cost | None:
        chance = random.Random(f"{seed} {ops} {kind}")
        if ops != whole and (chance.random() < refusing or any(0 < (ops & g) < g for g in groups)):
            return None
        base = cheapest_ns(known[kind], ops) if known else 1
        return Cost(max(1, base or 0) + chance.choice(times) // (2 if known else 1), chance.randint(0, 2))

    return Problem(
        before=before,
        devices=tuple((name, draw(st.integers(1, most_devices))) for name in names),
        exact=exact,
        lower=lambda ops, kind: 0,
        batch=looped_batch(exact),
        together=tuple(groups),
        structures=known,
        host_ns=draw(st.sampled_from([0, 0, 1, 3, 9])),
        handover_ns=draw(st.sampled_from([0, 2])),
    )


def kept_apart(problem: Problem, op: int, after: OpSet) -> Problem:
    """The problem in which an op must not share a segment with some of its ancestors; its structure says so."""
    ((kind, _),) = problem.devices
    above = list[int]()
    for reads in problem.before:
        above.append(reads | union(above[i] for i in ops_of(reads)))
    op %= problem.n_ops
    after &= above[op]
    if not after:
        return problem

    def exact(ops: OpSet, kind: Kind) -> Cost | None:
        return None if ops >> op & 1 and ops & after else problem.exact(ops, kind)

    structure = replace(problem.structures[kind], apart=((op, after),))
    return replace(problem, exact=exact, batch=looped_batch(exact), structures={kind: structure})


def chains(before: tuple[OpSet, ...], most: int) -> Iterator[list[OpSet]]:
    """Every partition into at most so many segments in which no op reads from a later one."""
    whole = (1 << len(before)) - 1
    downsets = [s for s in range(whole + 1) if all(not before[i] & ~s for i in ops_of(s))]

    def extend(done: OpSet, left: int) -> Iterator[list[OpSet]]:
        if done == whole:
            yield []
        elif left:
            for s in downsets:
                if s != done and not done & ~s:
                    for rest in extend(s, left - 1):
                        yield [s & ~done, *rest]

    yield from extend(0, most)


def all_pipelines(problem: Problem, most_replicas: int = 1) -> list[PipelineSpec]:
    """Every partition with every choice of kinds and replicas that the devices suffice for."""
    counts = dict(problem.devices)
    found = []

    def assign(sets: list[OpSet], stages: list[StageSpec]) -> None:
        if len(stages) == len(sets):
            found.append(PipelineSpec(tuple(stages)))
            return
        ops = sets[len(stages)]
        for kind, count in counts.items():
            free = count - sum(s.replicas for s in stages if s.kind == kind)
            if problem.exact(ops, kind) is not None:
                for r in range(1, min(free, most_replicas) + 1):
                    assign(sets, [*stages, StageSpec(ops, kind, r)])

    for sets in chains(problem.before, sum(counts.values())):
        assign(sets, [])
    return found


def best_value(problem: Problem, most_pipelines: int, most_replicas: int) -> Value | None:
    """What the best of all plans is worth."""
    devices = sum(count for _, count in problem.devices)
    pipelines = all_pipelines(problem, most_replicas)
    best = None
    for count in range(1, most_pipelines + 1):
        for plan in combinations_with_replacement(pipelines, count):
            if sum(p.devices for p in plan) <= devices:
                value = evaluate(problem, plan)
                if value is not None and (best is None or value < best):
                    best = value
    return best
