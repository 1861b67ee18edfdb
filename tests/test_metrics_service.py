"""Service curves and windows, against numbers counted by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st
from synthetic_runs import rejected, requests, service, starved

from suite.metrics.service import Weights, cost, curves, received
from suite.metrics.windows import overlap, windows

LOG = pd.DataFrame(
    [
        (0.0, "a", 100, 50, 0, 0),
        (2.0, "a", 0, 0, 70, 3),
        (2.0, "b", 10, 0, 0, 0),
        (5.0, "a", 0, 0, 0, 4),
        (5.0, "b", 0, 0, 0, 1),
    ],
    columns=["time", "client", "extend", "cached", "recomputed", "output"],
)


def in_interval(kind, start, end, clients=("a", "b"), **weights):
    log = curves(LOG, list(clients), kind, Weights(**weights))
    return received(log, np.array([[start, end]])).to_dict()


def test_actual_service_counts_extend_and_client_service_all_input():
    assert in_interval("actual", 0, 9) == {"a": 100 + 2 * 7, "b": 10 + 2}
    assert in_interval("client", 0, 9) == {"a": 150 + 2 * 7, "b": 10 + 2}


def test_cost_weights_are_the_callers():
    assert in_interval("actual", 0, 9, input=3, output=1) == {"a": 307, "b": 31}


def test_prompts_count_from_their_stamp_and_outputs_up_to_it():
    assert in_interval("actual", 0, 2) == {"a": 106, "b": 0}
    assert in_interval("actual", 2, 5) == {"a": 8, "b": 12}


def test_a_client_missing_from_the_log_was_given_nothing():
    assert in_interval("client", 0, 9, clients=("b", "c")) == {"b": 12, "c": 0}


def test_union_of_intervals_adds_up():
    log = curves(LOG, ["a", "b"], "actual")
    assert received(log, np.array([[0.0, 1.0], [4.0, 5.0]])).to_dict() == {"a": 108, "b": 2}
    assert received(log, np.empty((0, 2))).to_dict() == {"a": 0, "b": 0}


def test_cost_of_requests_is_what_their_log_adds_up_to():
    frame = requests(
        {
            "client": "a",
            "arrival": 0,
            "finish": 4,
            "prompt_tokens": 30,
            "cached_tokens": 20,
            "output_tokens": 5,
        },
        {"client": "b", "arrival": 1, "finish": 3, "prompt_tokens": 8, "output_tokens": 2},
    )
    assert cost(frame, "actual").tolist() == [20, 12]
    assert cost(frame, "client").tolist() == [40, 12]
    log = curves(service(frame), ["a", "b"], "actual")
    assert received(log, np.array([[0.0, 4.0]])).tolist() == [20, 12]


def spans(window):
    return window.intervals.tolist()


TWO = requests(
    {"client": "a", "arrival": 0, "admitted": 0, "finish": 4},
    {"client": "a", "arrival": 3, "admitted": 6, "finish": 10},
    {"client": "b", "arrival": 2, "admitted": 5, "finish": 7},
    {"client": "b", "arrival": 9, "admitted": 9, "finish": 12},
)


def test_windows_of_two_clients():
    found = windows(TWO)
    assert spans(found["whole"]) == [[0, 12]]
    assert spans(found["all_active"]) == [[2, 7], [9, 10]]
    assert spans(found["backlogged"]) == [[3, 5]]
    assert np.allclose(spans(found["trimmed"]), [[0.9, 9]])
    assert found["all_active"].seconds == 6
    assert found["all_active"].end == 10
    assert {window.reason for window in found.values()} == {None}


def test_a_client_never_served_empties_the_shared_windows_and_is_named():
    with_silent = pd.concat([TWO, requests(rejected("late", 1.0))])
    found = windows(with_silent)
    assert found["all_active"].seconds == 0
    assert found["all_active"].reason == "client 'late' was never active"
    assert found["backlogged"].reason == "client 'late' was never backlogged"
    assert spans(found["whole"]) == [[0, 12]]


def test_a_starved_request_waits_to_the_end_of_the_run():
    frame = requests(
        {"client": "a", "arrival": 0, "admitted": 3, "finish": 5},
        {"client": "a", "arrival": 4, "admitted": 6, "finish": 8},
        starved("b", 1.0),
        starved("b", 7.0),
    )
    found = windows(frame)
    assert spans(found["whole"]) == [[0, 8]]
    assert spans(found["all_active"]) == [[1, 8]]
    assert spans(found["backlogged"]) == [[1, 3], [4, 6]]


def test_a_run_in_which_all_starved_has_no_whole_window():
    found = windows(requests(starved("a", 0.0), starved("b", 2.0)))
    assert found["whole"].reason == "no request was served"
    assert spans(found["trimmed"]) == [[0.2, 2]]


def test_clients_that_never_meet_have_no_shared_window():
    frame = requests(
        {"client": "a", "arrival": 0, "admitted": 1, "finish": 5},
        {"client": "b", "arrival": 5, "admitted": 7, "finish": 8},
    )
    found = windows(frame)
    assert spans(found["all_active"]) == []
    assert found["all_active"].reason == "the clients were never all active at once"
    assert found["backlogged"].reason == "the clients were never all backlogged at once"


def test_admission_on_arrival_is_no_backlog():
    frame = requests({"client": "a", "arrival": 1, "admitted": 1, "finish": 3})
    assert windows(frame)["backlogged"].reason == "client 'a' was never backlogged"
    assert windows(frame)["trimmed"].reason == "all requests arrive at one instant"


def test_nothing_served_leaves_nothing():
    found = windows(requests(rejected("a", 0.0), rejected("b", 1.0)))
    assert found["whole"].reason == "no request was served"
    assert found["all_active"].reason == "client 'a' was never active (nor were 1 others)"


points = st.integers(0, 12)
pieces = st.lists(st.tuples(points, points).map(sorted), max_size=8)


@given(pieces, st.integers(1, 4))
def test_overlap_holds_exactly_the_instants_covered_often_enough(intervals, depth):
    merged = overlap(np.array(intervals, float).reshape(-1, 2), depth)
    for instant in np.arange(0, 12, 0.5):
        covered = sum(a <= instant < b for a, b in intervals) >= depth
        assert covered == any(a <= instant < b for a, b in merged)
    assert (np.diff(merged.ravel()) > 0).all()
