"""Jain's index, gap, max-min entitlement, demand and their course over time."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_runs import rejected, requests, service, starved

from suite.metrics import fairness
from suite.metrics.service import curves
from suite.metrics.windows import Window, windows
from suite.results import SERVICE_COLUMNS

amounts = st.lists(st.floats(0.01, 1e6), min_size=1, max_size=9)


def test_jain_of_known_shares():
    assert fairness.jain([5, 5, 5]) == pytest.approx(1)
    assert fairness.jain([7, 0, 0]) == pytest.approx(1 / 3)
    assert fairness.jain([1, 2, 3]) == pytest.approx(36 / 42)
    assert fairness.jain([0, 0]) is None
    assert fairness.jain([]) is None


@given(amounts, st.floats(0.1, 100))
def test_jain_lies_between_one_nth_and_one_and_ignores_the_unit(x, unit):
    value = fairness.jain(x)
    assert 1 / len(x) - 1e-9 <= value <= 1 + 1e-9
    assert fairness.jain(np.array(x) * unit) == pytest.approx(value)


def test_gap_is_the_largest_pairwise_difference():
    assert fairness.gap([4, 9, 1]) == 8
    assert fairness.gap([0, 0]) is None, "serving nobody is no small gap"
    assert fairness.gap([]) is None


def test_entitlement_fills_small_demands_and_splits_the_rest():
    assert fairness.entitlement(100, [10, 80, 90], [1, 1, 1]).tolist() == [10, 45, 45]
    assert fairness.entitlement(100, [10, 80, 90], [1, 2, 1]).tolist() == [10, 60, 30]
    assert fairness.entitlement(500, [10, 80, 90], [1, 1, 1]).tolist() == [10, 80, 90]


@given(amounts, st.floats(0, 1), st.data())
def test_entitlement_spends_the_total_and_raises_the_poorest(demand, share, data):
    weights = np.array(data.draw(st.lists(st.floats(0.1, 10), min_size=len(demand), max_size=len(demand))))
    total = share * sum(demand)
    got = fairness.entitlement(total, demand, weights)
    assert got.sum() == pytest.approx(total)
    assert (got <= np.array(demand) * (1 + 1e-9)).all()
    unmet = got < np.array(demand) * (1 - 1e-9)
    if unmet.any():
        level = (got / weights)[unmet]
        assert level.max() == pytest.approx(level.min())
        assert (got / weights).max() <= level.max() * (1 + 1e-9)


# Client a: 10 in at 0, 5 out at 4 (cost 20), 10 in at 4, 15 out at 10 (cost 40); b: 10 in at 2, 10 out at 8.
FRAME = requests(
    {"client": "a", "arrival": 0, "admitted": 0, "finish": 4, "output_tokens": 5},
    {"client": "a", "arrival": 1, "admitted": 4, "finish": 10, "output_tokens": 15},
    {"client": "b", "arrival": 2, "admitted": 2, "finish": 8, "output_tokens": 10, "weight": 2.0},
)
LOG = curves(service(FRAME), ["a", "b"], "client")
CLIENT_WEIGHTS = pd.Series({"a": 1.0, "b": 2.0})


def interval(start, end):
    return Window(np.array([[start, end]], float))


def test_normalised_service_divides_by_the_clients_weight():
    window = windows(FRAME)["all_active"]
    assert window.intervals.tolist() == [[2, 8]]
    assert fairness.normalised(LOG, window, CLIENT_WEIGHTS).to_dict() == {"a": 20, "b": 15}


def test_the_accumulated_difference_is_between_all_service_so_far():
    # a has 10 from 0 on, b joins with 10 / 2 at 2; a has 30 at 4 and 60 at 10, b 30 / 2 at 8.
    course = fairness.accumulated(LOG, CLIENT_WEIGHTS, np.array([0.0, 1, 3, 5, 9, 11]))
    assert course.tolist() == [0, 10, 5, 25, 15, 45]
    assert fairness.accumulated_gap(LOG, CLIENT_WEIGHTS) == 45


def test_the_accumulated_gap_is_seen_between_a_prompt_and_the_next_output():
    rows = [(0.0, "a", "replica-0", 10, 0, 0, 0), (1.0, "b", "replica-0", 0, 0, 0, 5)]
    log = curves(pd.DataFrame(rows, columns=list(SERVICE_COLUMNS)), ["a", "b"], "actual")
    assert fairness.accumulated_gap(log, pd.Series({"a": 1.0, "b": 1.0})) == 10


def test_nobody_served_has_no_accumulated_gap():
    assert fairness.accumulated_gap(curves(service(FRAME.iloc[:0]), ["a"], "client"), CLIENT_WEIGHTS) is None


def test_demand_is_what_was_got_and_what_was_still_lacking():
    def wanted(start, end):
        return fairness.demand(FRAME, LOG, interval(start, end), "client").to_dict()

    assert wanted(0, 10) == {"a": 60, "b": 30}
    assert wanted(0, 1) == {"a": 20, "b": 0}
    assert wanted(2, 5) == {"a": 50, "b": 30}
    assert wanted(4, 8) == {"a": 40, "b": 20}


def test_jain_entitled_forgives_small_demand_and_names_withheld_service():
    wanted = pd.Series({"a": 60.0, "b": 30.0})
    equal = pd.Series({"a": 1.0, "b": 1.0})
    assert fairness.jain_entitled(LOG, interval(0, 10), wanted, equal) == pytest.approx(1)
    greedy = pd.Series({"a": 60.0, "b": 60.0})
    assert fairness.jain_entitled(LOG, interval(0, 10), greedy, equal) == pytest.approx(
        fairness.jain([60 / 45, 30 / 45])
    )
    alone = pd.Series({"a": 60.0, "b": 0.0})
    assert fairness.jain_entitled(LOG, interval(0, 10), alone, equal) == pytest.approx(1)


def test_what_starves_is_demanded_and_what_never_fits_is_not():
    frame = requests(
        {"client": "a", "arrival": 0, "finish": 4, "prompt_tokens": 30},
        starved("b", 1.0, prompt_tokens=40),
        rejected("c", 1.0),
    )
    log = curves(service(frame), ["a", "b", "c"], "client")
    wanted = fairness.demand(frame, log, interval(0, 4), "client")
    assert wanted.to_dict() == {"a": 32, "b": 40 + 2 * 1, "c": 0}, "b's output as a's"
    weights = pd.Series({"a": 1.0, "b": 1.0, "c": 1.0})
    assert fairness.jain_entitled(log, interval(0, 4), wanted, weights) == pytest.approx(1 / 2)


def test_jain_entitled_of_nothing_delivered_is_none():
    assert (
        fairness.jain_entitled(LOG, interval(5, 6), pd.Series({"a": 9.0, "b": 9.0}), CLIENT_WEIGHTS) is None
    )


def test_over_time_counts_only_clients_active_in_the_window():
    course = fairness.over_time(FRAME, LOG, pd.Series({"a": 1.0, "b": 1.0}), np.array([1.0, 5.0, 9.0]), 2.0)
    assert course["time"].tolist() == [1, 5, 9]
    assert course["jain"].isna().tolist() == [True, False, True]
    a, b = 10 / 2, 0 / 2
    assert course["gap"][1] == pytest.approx(a - b)
    assert course["jain"][1] == pytest.approx(0.5)
