"""Dividing devices among pipelines: against all multisets, with and without a host in common."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations_with_replacement, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.ground.rates import objective_ns, plan_rate
from balancer.ground.units import NS_PER_S
from balancer.solve.allocation import Candidate, Supply, TieValues, allocate
from balancer.solve.baselines import equal_op_counts, parameter_count
from balancer.solve.problem import Value

CANDIDATES = st.lists(
    st.builds(
        Candidate,
        devices=st.tuples(st.integers(1, 4)),
        # Long against the host's work and equal now and then, so that neither rounding nor the host hides what is chosen.
        rate=st.sampled_from([7, 40, 40, 97, 130, 400]).map(lambda t: Fraction(NS_PER_S, t)),
        work=st.tuples(st.sampled_from([0, 0, 5, 20, 60])),
        find_ties=st.builds(TieValues, st.integers(0, 3), st.integers(1, 20)).map(lambda ties: lambda: ties),
    ),
    min_size=1,
    max_size=4,
)


def _value(chosen: tuple[Candidate, ...]) -> Value:
    rate = plan_rate([c.rate for c in chosen], [c.work for c in chosen])
    streamed, latency = sum(c.ties.streamed_bytes for c in chosen), max(c.ties.latency_ns for c in chosen)
    return Value(objective_ns(rate), sum(sum(c.devices) for c in chosen), 0, streamed, latency)


def _brute_force(candidates: list[Candidate], devices: int, most: int) -> Value:
    plans = (p for count in range(1, most + 1) for p in combinations_with_replacement(candidates, count))
    return min(_value(p) for p in plans if sum(sum(c.devices) for c in p) <= devices)


@settings(max_examples=5 * settings().max_examples)
@given(CANDIDATES, st.integers(1, 7), st.none() | st.integers(1, 3))
def test_the_choice_is_the_best_of_all_multisets_in_every_tie(
    candidates: list[Candidate], devices: int, most: int | None
) -> None:
    if all(sum(c.devices) > devices for c in candidates):
        with pytest.raises(ValueError, match="no candidate"):
            allocate(candidates, Supply((devices,)), most)
        return
    allocated = allocate(candidates, Supply((devices,)), most)
    best = _brute_force(candidates, devices, min(devices, most or devices))
    assert _value(tuple(candidates[k] for k in allocated.chosen)) == best
    assert allocated.bound_ns <= best.objective_ns


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.integers(1, 8))
def test_the_parameter_count_rule_cuts_before_crossing_and_leaves_no_segment_empty(
    sizes: list[int], segments: int
) -> None:
    cuts = parameter_count(sizes, segments)
    edges = [0, *cuts, len(sizes)]
    assert len(cuts) == min(segments, len(sizes)) - 1
    assert all(a < b for a, b in pairwise(edges))
    limit = sum(sizes) // segments + 1
    *before_last, _ = pairwise(edges)
    for a, b in before_last:
        assert b - a == 1 or sum(sizes[a:b]) <= limit


@pytest.mark.parametrize(("segments", "layers"), [(2, (2, 3)), (3, (2, 1, 2)), (4, (1, 1, 1, 2))])
def test_five_convolutions_are_cut_as_the_compiler_cut_them(segments: int, layers: tuple[int, ...]) -> None:
    """Published for f = 32 to 702: the first layer, 3 -> f, is small."""
    for filters in (32, 100, 332, 702):
        sizes = [9 * 3 * filters + 4 * filters] + [9 * filters * filters + 4 * filters] * 4
        edges = [0, *parameter_count(sizes, segments), 5]
        assert tuple(b - a for a, b in pairwise(edges)) == layers


def test_a_segment_takes_one_byte_more_than_its_share() -> None:
    """libcoral's limit is total // segments + 1: here 5 // 2 + 1 = 3, which the first two ops meet."""
    assert parameter_count([2, 1, 1, 1], 2) == (2,)


@given(st.integers(1, 100), st.integers(1, 20))
def test_equal_op_counts_differ_by_at_most_one(n_ops: int, segments: int) -> None:
    edges = [0, *equal_op_counts(n_ops, min(segments, n_ops)), n_ops]
    counts = [b - a for a, b in pairwise(edges)]
    assert max(counts) - min(counts) <= 1
    assert min(counts) >= 1
