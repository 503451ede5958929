"""Many segments at once: what nested sets answer by rows equals what they answer by words; rounded rates decide nothing."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from balancer.cost.filling import MOST_CELLS, fillings
from balancer.cost.hardware import load_hardware
from balancer.cost.segment import SegmentCosts
from balancer.ground.downsets import DownSets, NestedSets, OpGroups
from balancer.ground.opsets import members
from balancer.solve.shared_rate import RateCurve
from balancer.tflite import synth
from balancer.tflite.read import read_graph
from tests import handmade

if TYPE_CHECKING:
    from collections.abc import Callable


@st.composite
def nested(draw: Callable[[Any], Any]) -> tuple[list[int], int]:
    """Cuts of an order of up to 90 ops, in parts of any size."""
    n = draw(st.integers(1, 90))
    order = draw(st.permutations(range(n)))
    ends = sorted(draw(st.sets(st.integers(1, n - 1), max_size=8))) if n > 1 else []
    return [sum(1 << i for i in order[:end]) for end in [0, *ends, n]], n


@given(nested(), st.data())
def test_nested_sets_answer_as_any_sets_do(cuts: tuple[list[int], int], data: st.DataObject) -> None:
    rows, n = cuts
    one, other = NestedSets.of(rows, n), DownSets.of(rows, n)
    ops = st.integers(0, n - 1)
    parts = data.draw(st.lists(st.lists(ops, min_size=1, max_size=4, unique=True), min_size=1, max_size=6))
    lengths = np.cumsum([0, *(len(part) for part in parts)])[:-1]
    groups = OpGroups(np.array([i for part in parts for i in part]), lengths)
    first = np.array(data.draw(st.lists(st.integers(0, 99), min_size=len(parts), max_size=len(parts))), np.int64)
    weights = np.array(data.draw(st.lists(st.integers(0, 99), min_size=n, max_size=n)), np.int64)
    chosen = np.arange(data.draw(st.integers(0, len(rows) - 1)), len(rows))
    for sets in (one, other):
        held = sets.members(chosen)
        assert [list(np.nonzero(row)[0]) for row in held] == [list(members(rows[k])) for k in chosen]
        found = sets.weigh(groups, first, first[::-1], chosen)
        for k, row in enumerate(chosen.tolist()):
            inside = [[rows[row] >> i & 1 for i in part] for part in parts]
            wanted = sum(int(a) * any(p) + int(b) * all(p) for a, b, p in zip(first, first[::-1], inside, strict=True))
            assert found[k] == wanted
        assert sets.largest(weights, chosen).tolist() == [
            max((int(weights[i]) for i in members(rows[k])), default=0) for k in chosen
        ]
        assert sets.total(weights.tolist()).tolist() == [sum(int(weights[i]) for i in members(row)) for row in rows]
    for part in parts:
        held_ops = sum(1 << i for i in part)
        assert one.holds_any(held_ops, chosen).tolist() == other.holds_any(held_ops, chosen).tolist()
        assert one.holds_all(held_ops, chosen).tolist() == other.holds_all(held_ops, chosen).tolist()


@given(st.integers(0, 1 << 18), st.booleans(), st.booleans())
def test_what_overflows_is_what_the_rule_says(capacity: int, part: bool, few_cells: bool) -> None:
    made = synth.fc(200, layers=6) if part else handmade.dag([("conv", k, k + 1) for k in range(9)], [1])
    costs = SegmentCosts(read_graph(made, name="made"), load_hardware("pcie"))
    cuts = [(1 << k) - 1 for k in range(len(costs.graph.ops) + 1)]
    sets = NestedSets.of(cuts, len(costs.graph.ops))
    filling = fillings(costs, sets, costs.mapped, most_cells=0 if few_cells else MOST_CELLS)
    inners, outers = np.triu_indices(len(cuts), 1)
    capacities = np.full(len(inners), capacity)
    overflow = filling.overflow(inners, outers, capacities, np.ones(len(inners), bool))
    for a, b, bytes_out in zip(inners, outers, overflow.overflow_bytes.tolist(), strict=True):
        ops = cuts[b] & ~cuts[a] & costs.mapped
        kept = costs.caching.cached(ops, capacity)
        assert bytes_out == sum(costs.op_terms[i].layout.streamed for i in members(ops & ~kept))


rates = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 7)), max_size=4)


@given(rates, rates)
def test_one_rate_curve_is_nowhere_below_another_where_it_is_not_at_its_corners(left: Any, right: Any) -> None:
    one, other = RateCurve(), RateCurve()
    for host, a, b in left:
        one = one.plus(Fraction(a, b), (host,))
    for host, a, b in right:
        other = other.plus(Fraction(a, b), (host,))
    assert one.is_nowhere_below(other) == all(one.at(time) >= rate for time, rate in other.corners)
