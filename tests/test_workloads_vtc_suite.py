"""The synthetic suite of the VTC paper as ready specs: rates, courses and lengths as in the artifact's code.

The expected numbers are those of `exp_suite.py` (Ying1123/VTC-artifact), in requests/s where it has gaps.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from suite.trace import Trace
from workloads.spec import load, ready

EVEN: dict[str, tuple[int, list[float]]] = {
    "overload": (360, [1.5, 3]),
    "proportional": (600, [0.25, 0.5, 1.5]),
    "overload_multi": (360, [0.4] * 3 + [0.6] * 5),
    "weighted": (360, [0.8, 0.8, 1.2, 1.6]),
}
ON_OFF = {"on_off_less": (0.5, 2.0), "on_off_overload": (2.0, 3.0)}
POISSON = {
    "poisson_short_long": ((64, 64), (256, 256)),
    "poisson_short_long_2": ((512, 32), (32, 512)),
}
OTHERS = {"increase", "dist_shift"}


def made(name: str) -> Trace:
    return load(f"vtc_suite_{name}").generate(0)


def times(trace: Trace, client: int) -> np.ndarray:
    return np.array([one.arrival for one in trace.requests if one.client == f"client-{client}"])


def lengths(trace: Trace, client: int) -> set[tuple[int, int]]:
    found = (one for one in trace.requests if one.client == f"client-{client}")
    return {(one.prompt_tokens, one.output_tokens) for one in found}


def assert_even(arrivals: np.ndarray, rate: float, start: float, end: float) -> None:
    """Equal gaps of 1/rate fill [start, end), the first of them begun somewhere."""
    within = arrivals[(arrivals >= start) & (arrivals < end)]
    assert len(within) == pytest.approx(rate * (end - start))
    assert np.diff(within) == pytest.approx(1 / rate, abs=2e-6)


def test_all_of_the_suite_is_there() -> None:
    names = {name.removeprefix("vtc_suite_") for name in ready() if name.startswith("vtc_suite_")}
    assert names == {*EVEN, *ON_OFF, *POISSON, *OTHERS}


@pytest.mark.parametrize("name", sorted({*EVEN, *ON_OFF, *OTHERS}))
def test_lengths_are_256_and_nothing_is_shared(name: str) -> None:
    trace = made(name)
    assert {(one.prompt_tokens, one.output_tokens) for one in trace.requests} == {(256, 256)}
    assert len({segment.id for one in trace.requests for segment in one.prompt}) == len(trace.requests)


@pytest.mark.parametrize(("name", "duration", "rates"), [(name, *course) for name, course in EVEN.items()])
def test_constant_rates(name: str, duration: int, rates: list[float]) -> None:
    trace = made(name)
    assert len(trace.clients) == len(rates)
    for client, rate in enumerate(rates):
        assert_even(times(trace, client), rate, 0, duration)


def test_weights() -> None:
    weights = {(one.client, one.weight) for one in made("weighted").requests}
    assert weights == {(f"client-{number}", number + 1.0) for number in range(4)}


@pytest.mark.parametrize(("name", "on", "steady"), [(name, *rates) for name, rates in ON_OFF.items()])
def test_on_and_off_by_the_minute(name: str, on: float, steady: float) -> None:
    trace = made(name)
    bursts = times(trace, 0)
    for minute in range(0, 10, 2):
        assert_even(bursts, on, 60 * minute, 60 * minute + 60)
    assert not np.any(bursts // 60 % 2)
    assert_even(times(trace, 1), steady, 0, 600)


@pytest.mark.parametrize(("name", "pairs"), POISSON.items())
def test_poisson_rates_and_lengths(name: str, pairs: tuple[Any, Any]) -> None:
    trace = made(name)
    assert trace.clients == ("client-0", "client-1")
    for client, (rate, pair) in enumerate(zip((8.0, 1.5), pairs, strict=True)):
        arrivals = times(trace, client)
        assert len(arrivals) == pytest.approx(600 * rate, abs=4 * math.sqrt(600 * rate))
        gaps = np.diff(arrivals)
        # the CV of n exponential gaps has a standard error of about 1 / sqrt(n)
        assert gaps.std() / gaps.mean() == pytest.approx(1, abs=4 / math.sqrt(len(gaps)))
        assert lengths(trace, client) == {pair}


def test_growing_demand_is_a_straight_line() -> None:
    trace = made("increase")
    assert_even(times(trace, 0), 0.5, 0, 600)
    for time in (100, 300, 450, 600):
        by_then = np.count_nonzero(times(trace, 1) < time)
        assert by_then == pytest.approx(0.2 * time + 1.8 * time**2 / 1200, abs=1)


def test_the_shift_has_three_phases() -> None:
    first, second = (times(made("dist_shift"), client) for client in (0, 1))
    for minute in (0, 2, 4):
        assert_even(first, 0.5, 60 * minute, 60 * minute + 60)
    assert not np.any((first < 300) & (first // 60 % 2 == 1))
    for phase, (rate, other) in enumerate([(None, 2.0), (1.0, 1.0), (0.5, 1.5)]):
        assert_even(second, other, 300 * phase, 300 * phase + 300)
        if rate:
            assert_even(first, rate, 300 * phase, 300 * phase + 300)
