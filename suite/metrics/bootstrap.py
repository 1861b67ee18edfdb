"""Paired bootstrap over seeds and blocks, intervals of what is estimated, and a level that fits many of them.

Two arms have replayed the same traces, one trace a seed. A resample draws seeds with replacement and, within
each seed that it drew, blocks of requests with replacement; both arms are resampled with the same draws, so
that every request stays beside itself. A number of an arm is the mean over the drawn seeds of what it is for
the blocks drawn there. Source: the hierarchical bootstrap of Davison and Hinkley, Bootstrap Methods and their
Application (1997), section 3.8. It holds the spread within a seed twice, so its intervals are rather too wide
than too narrow. Equal input gives equal numbers: the draws are seeded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Statistic: TypeAlias = Callable[[Ints], Floats]
"""A number of one run under many draws: from how often each block is in, (draws, blocks), to (draws,)."""

RESAMPLES = 1000
"""The standard error of a standard error is then about 2 %."""

ALPHA = 0.05
"""The share of intervals that may miss, see `level`."""


@dataclass(frozen=True)
class Draws:
    """Which seed stands in each place of each resample, and which blocks were drawn within it.

    `places` has the shape (resamples, seeds) and holds indices of seeds; `counts[s]` has a row for every
    place where seed s stands, in their order, and says how often each of its blocks is in.
    """

    places: Ints
    counts: tuple[Ints, ...]


@lru_cache(maxsize=8)
def draw(blocks: tuple[int, ...], resamples: int = RESAMPLES) -> Draws:
    """Draw seeds, and blocks within them; `blocks[s]` is how many blocks seed s has."""
    rng = np.random.default_rng(0)
    places = rng.integers(len(blocks), size=(resamples, len(blocks)))
    counts = tuple(
        rng.multinomial(n, np.full(n, 1 / n), size=int(np.sum(places == seed)))
        for seed, n in enumerate(blocks)
    )
    return Draws(places, counts)


def replicates(draws: Draws, runs: Sequence[Statistic]) -> Floats:
    """A number of an arm in every resample: the mean over the places of its statistic there.

    `runs[s]` is the statistic of the arm's run under seed s.
    """
    values = np.empty(draws.places.shape)
    for seed, (statistic, counts) in enumerate(zip(runs, draws.counts, strict=True)):
        values[draws.places == seed] = statistic(counts)
    return np.asarray(values.mean(axis=1))


# -- statistics of one run -------------------------------------------------------------------------------


def constant(value: float) -> Statistic:
    """A number of the whole run: the same whatever blocks are drawn."""
    return lambda counts: np.full(len(counts), value)


def ratio_of_sums(amounts: Floats, totals: Floats, block: Ints, blocks: int) -> Statistic:
    """Sum of `amounts` over sum of `totals` in the drawn blocks; NaN where the totals add up to nothing."""
    above = np.bincount(block, amounts, minlength=blocks)
    below = np.bincount(block, totals, minlength=blocks)

    def statistic(counts: Ints) -> Floats:
        with np.errstate(invalid="ignore"):
            return np.asarray((counts @ above) / (counts @ below))

    return statistic


class Percentile:
    """Percentile `q` of values that lie in blocks, as a `Statistic`.

    It is exactly numpy's percentile of the values, each repeated as often as its block was drawn; infinite
    values count as the largest. NaN where no value was drawn. Values are sorted once; each order statistic is
    found by bisection, for all draws at once.
    """

    def __init__(self, values: Floats, block: Ints, blocks: int, q: float) -> None:
        order = np.argsort(values, kind="stable")
        self._values = np.append(values[order], np.nan)
        self._share = q / 100
        self._below = np.zeros((len(values) + 1, blocks), np.int32)
        """How many of the first k values lie in each block, one row per k."""
        self._below[np.arange(1, len(values) + 1), block[order]] = 1
        np.cumsum(self._below, axis=0, out=self._below)

    def __call__(self, counts: Ints) -> Floats:
        """The percentile under each draw, shape (draws,)."""
        total = counts @ self._below[-1]
        place = self._share * (total - 1)
        rank = np.floor(place).astype(np.int64)
        low = self._values[self._at(counts, rank)]
        high = self._values[self._at(counts, np.minimum(rank + 1, total - 1))]
        between = (high > low) & (place > rank)
        with np.errstate(invalid="ignore"):
            return np.asarray(np.where(between, low + (place - rank) * (high - low), low))

    def _at(self, counts: Ints, rank: Ints) -> Ints:
        """Where the value of a rank (0 for the smallest) stands under each draw; the NaN if nothing does."""
        nothing = len(self._values) - 1
        first, last = np.zeros(len(counts), np.int64), np.full(len(counts), nothing)
        while np.any(first < last):
            middle = (first + last) // 2
            below = np.einsum("db,db->d", counts, self._below[np.minimum(middle + 1, nothing)])
            first, last = np.where(below > rank, first, middle + 1), np.where(below > rank, middle, last)
        return np.where(rank < 0, nothing, np.minimum(first, nothing))


def largest(statistics: Sequence[Statistic]) -> Statistic:
    """The largest of several statistics, those without a value left aside."""
    return lambda counts: np.asarray(np.fmax.reduce([statistic(counts) for statistic in statistics]))


# -- intervals -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A value that is 0 where there is no difference, its standard error, and the degrees of freedom."""

    value: float
    error: float
    freedom: float

    @property
    def p(self) -> float:
        """How likely a value at least so far from 0 is if there is no difference (Student's t, two-sided)."""
        if self.error == 0:
            return float(self.value == 0)
        return float(2 * stats.t.sf(abs(self.value) / self.error, self.freedom))

    def interval(self, alpha: float) -> tuple[float, float]:
        """The values that would not be rejected at `alpha`."""
        half = float(stats.t.isf(alpha / 2, self.freedom)) * self.error
        return self.value - half, self.value + half


def estimate(value: float, resampled: Floats, units: int) -> Estimate:
    """The estimate of a value, given what it is in each resample of `units` independent units.

    The factor n / (n - 1) makes up for the spread that n units show less than their population. Resamples in
    which the value does not exist (NaN) are left out.
    """
    error = float(np.nanstd(resampled)) * (units / (units - 1)) ** 0.5
    return Estimate(value, error, units - 1)


FEWEST = 10
"""Estimates of one kind from which on their errors are held against each other."""


def moderated(estimates: Sequence[Estimate], groups: int) -> list[Estimate]:
    """Estimates of one kind, each error drawn towards what is usual among them.

    Three seeds tell little of their own spread; many settings of three seeds tell what spread is usual, and
    how much it varies. Each variance becomes the mean of its own and the usual one, weighted by their degrees
    of freedom, and has the sum of these. Estimates of one group share runs, the candidate's, so they tell of
    one spread only: together they have the freedom of `groups` estimates, and nothing has more. Fewer than
    `FEWEST` stay as they are, and so do those without spread. Source: Smyth, Linear Models and Empirical
    Bayes Methods, Statistical Applications in Genetics and Molecular Biology 3 (2004), section 6.2.
    """
    some = [one for one in estimates if one.error > 0]
    if len(some) < FEWEST:
        return list(estimates)
    own = np.array([one.freedom for one in some], float)
    usual, weight = _usual(np.array([one.error for one in some]) ** 2, own)
    most = groups * float(own.mean())
    weight = min(weight, most)

    def drawn(one: Estimate) -> Estimate:
        if one.error == 0:
            return one
        variance = (weight * usual + one.freedom * one.error**2) / (weight + one.freedom)
        return Estimate(one.value, variance**0.5, max(one.freedom, min(weight + one.freedom, most)))

    return [drawn(one) for one in estimates]


def _usual(variances: Floats, freedom: Floats) -> tuple[float, float]:
    """The variance that is usual among these, and its weight in degrees of freedom.

    The logarithms of sample variances vary by trigamma(freedom / 2) if the true ones are all equal; what they
    vary beyond that says how different these are.
    """
    logs = np.log(variances) - special.digamma(freedom / 2) + np.log(freedom / 2)
    beyond = float(np.var(logs, ddof=1) - np.mean(special.polygamma(1, freedom / 2)))
    most = float(freedom.sum())
    weight = most
    if beyond > special.polygamma(1, most / 2):
        weight = 2 * optimize.brentq(lambda half: special.polygamma(1, half) - beyond, 1e-3, most / 2)
    shift = special.digamma(weight / 2) - np.log(weight / 2)
    return float(np.exp(np.mean(logs) + shift)), weight


def level(estimates: Sequence[Estimate], alpha: float = ALPHA) -> float:
    """The level of each interval of many: of those that exclude 0, a share of `alpha` is wrong on average.

    With R of m discoveries by Benjamini and Hochberg's procedure it is R alpha / m, which excludes 0 for just
    these R; with none it is Bonferroni's alpha / m. Source: Benjamini and Yekutieli, False Discovery Rate-
    Adjusted Multiple Confidence Intervals, JASA 100 (2005), definition 1.
    """
    if not estimates:
        return alpha
    adjusted = stats.false_discovery_control([estimate.p for estimate in estimates])
    return alpha * max(int(np.sum(adjusted <= alpha)), 1) / len(estimates)
