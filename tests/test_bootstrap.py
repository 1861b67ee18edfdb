"""The bootstrap: draws, numbers under draws, intervals, and the level for many of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from suite.metrics import bootstrap
from suite.metrics.bootstrap import Estimate, Percentile, constant, draw, estimate, level, replicates

VALUES = st.sampled_from([0.25, 1.0, 1.0, 2.5, 7.0, np.inf])


def numpys(values: NDArray[np.float64], q: float) -> float:
    """numpy's percentile, also between a value and infinity."""
    if not len(values):
        return np.nan
    low, high = (np.percentile(values, q, method=method) for method in ("lower", "higher"))
    return float(np.inf if np.isinf(high) and low < high else np.percentile(values, q) if low < high else low)


@given(st.data(), st.integers(1, 5), st.sampled_from([0, 1, 50, 90, 99, 100]))
def test_a_percentile_is_numpys_of_the_repeated_values(data: st.DataObject, blocks: int, q: float):
    rows = data.draw(st.lists(st.tuples(VALUES, st.integers(0, blocks - 1)), max_size=30))
    values, block = np.array([v for v, _ in rows], float), np.array([b for _, b in rows], int)
    counts = np.array(data.draw(st.lists(st.lists(st.integers(0, 3), min_size=blocks, max_size=blocks))), int)
    counts = counts.reshape(-1, blocks)
    found = Percentile(values, block, blocks, q)(counts)
    wanted = [numpys(np.repeat(values, row[block]) if len(block) else values, q) for row in counts]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_draws_hold_as_many_seeds_and_blocks_as_there_are():
    draws = draw((3, 10, 4), resamples=500)
    assert draws.places.shape == (500, 3)
    assert set(np.unique(draws.places)) == {0, 1, 2}
    for seed, blocks in enumerate((3, 10, 4)):
        assert draws.counts[seed].shape == (np.sum(draws.places == seed), blocks)
        assert (draws.counts[seed].sum(axis=1) == blocks).all()
        assert draws.counts[seed].min() == 0 < 1 < draws.counts[seed].max()
    again = draw.__wrapped__((3, 10, 4), resamples=500)
    assert (again.places == draws.places).all()


def test_a_replicate_is_the_mean_over_the_drawn_seeds():
    draws = draw((10, 10, 10))
    values = np.array([1.0, 10.0, 100.0])
    found = replicates(draws, [constant(value) for value in values])
    np.testing.assert_allclose(found, values[draws.places].mean(axis=1))


def test_a_share_counts_every_request_alike():
    statistic = bootstrap.ratio_of_sums(np.array([3.0, 1, 4]), np.array([6.0, 4, 4]), np.array([0, 0, 1]), 3)
    found = statistic(np.array([[1, 1, 1], [2, 0, 1], [0, 0, 3]]))
    np.testing.assert_allclose(found, [8 / 14, 8 / 20, np.nan])


def test_the_largest_leaves_aside_who_has_no_value():
    values = [np.array([1.0, np.nan, np.nan]), np.array([2.0, 5.0, np.nan])]
    statistic = bootstrap.largest([lambda counts, v=v: v for v in values])
    np.testing.assert_allclose(statistic(np.zeros((3, 1), int)), [2, 5, np.nan])


def test_the_error_of_a_mean_is_the_textbooks():
    values = np.random.default_rng(1).normal(size=12)
    found = estimate(values.mean(), replicates(draw((10,) * 12), [constant(v) for v in values]), 12)
    assert found.freedom == 11
    assert found.error == pytest.approx(values.std(ddof=1) / 12**0.5, rel=0.08)


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(2)
    draws = draw((10,) * 5)
    held = 0
    for _ in range(400):
        values = rng.normal(size=5)
        found = estimate(values.mean(), replicates(draws, [constant(v) for v in values]), 5)
        low, high = found.interval(0.1)
        held += low <= 0 <= high
    assert 340 <= held <= 380


def test_errors_are_drawn_towards_what_is_usual():
    rng = np.random.default_rng(3)
    errors = 0.02 * np.sqrt(rng.chisquare(2, 40) / 2)
    found = bootstrap.moderated([Estimate(0.1, error, 2) for error in errors], 40)
    assert all(one.value == 0.1 for one in found)
    assert np.ptp([one.error for one in found]) < np.ptp(errors) / 3, "all true errors are equal"
    assert np.mean([one.error for one in found]) == pytest.approx(0.02, rel=0.15)
    assert 6 < min(one.freedom for one in found) <= 80

    errors *= np.exp(rng.normal(0, 2, 40))
    apart = bootstrap.moderated([Estimate(0.1, error, 2) for error in errors], 40)
    assert max(one.freedom for one in apart) < 4, "true errors that differ much say little of each other"

    few = [Estimate(0.1, error, 2) for error in errors[: bootstrap.FEWEST - 1]]
    assert bootstrap.moderated(few, 5) == few
    assert bootstrap.moderated([*few, *few, Estimate(0, 0, 2)], 11)[-1] == Estimate(0, 0, 2)


def test_baselines_that_share_a_candidate_tell_of_its_spread_once():
    """Three seeds of a noisy candidate beside twelve steady baselines: one setting, so one group."""
    assert bootstrap.FEWEST <= 12
    rng = np.random.default_rng(5)
    draws = draw((1,) * 3)
    missed = 0
    for _ in range(200):
        noise = rng.normal(0, 1, 3)
        differences = [noise + rng.normal(0, 0.2, 3) for _ in range(12)]
        sampled = [replicates(draws, [constant(v) for v in one]) for one in differences]
        found = [estimate(one.mean(), r, 3) for one, r in zip(differences, sampled, strict=True)]
        bounds = [one.interval(0.05) for one in bootstrap.moderated(found, 1)]
        missed += sum(not low <= 0 <= high for low, high in bounds)
    assert missed <= 0.07 * 200 * 12


def test_of_the_differences_told_few_are_none():
    """Three seeds, 40 comparisons, half of them without a difference, true errors that differ twofold."""
    rng = np.random.default_rng(4)
    wrong, told, there = 0, 0, 0
    for _ in range(50):
        true = np.repeat([0.0, 0.3], 20)
        errors = 0.02 * np.exp(rng.normal(0, 0.7, 40))
        sampled = errors * np.sqrt(rng.chisquare(2, 40) / 2)
        found = bootstrap.moderated(
            [Estimate(*one, 2) for one in zip(rng.normal(true, errors), sampled, strict=True)], 40
        )
        alpha = level(found)
        seen = np.array([low > 0 or high < 0 for low, high in (one.interval(alpha) for one in found)])
        wrong, told, there = wrong + seen[:20].sum(), told + seen.sum(), there + seen[20:].sum()
    assert wrong < 0.05 * told
    assert there > 0.9 * 50 * 20


estimates = st.builds(Estimate, st.floats(-3, 3), st.floats(0.001, 2), st.integers(1, 30))


@given(st.lists(estimates, min_size=1, max_size=30))
def test_the_level_excludes_zero_for_just_the_discoveries(found: list[Estimate]):
    alpha = level(found)
    p = np.sort([one.p for one in found])
    ranks = np.arange(1, len(p) + 1)
    passing = ranks[p <= ranks * 0.05 / len(p)]  # Benjamini and Hochberg (1995), by the book
    discoveries = passing.max() if len(passing) else 0
    assert alpha == pytest.approx(max(discoveries, 1) * 0.05 / len(p))
    excluding = sum(low > 0 or high < 0 for low, high in (one.interval(alpha) for one in found))
    assert abs(excluding - discoveries) <= np.sum(np.isclose(p, alpha))


def test_a_difference_without_spread_is_one_and_no_difference_is_none():
    assert (Estimate(0.1, 0, 4).p, Estimate(0, 0, 4).p) == (0, 1)
    assert level([]) == 0.05
