"""Latency of served and unserved requests: TTFT, TPOT, ITL, end to end, programs; goodput on top of it."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from synthetic_runs import NAN, cancelled, rejected, requests, starved

from suite.metrics import fates, goodput, latency
from suite.metrics.goodput import Slo
from suite.metrics.programs import programs
from suite.results import STREAM_COLUMNS

INF = math.inf
FRAME = requests(
    {"client": "good", "arrival": 0, "first_token": 1, "finish": 5, "output_tokens": 5},
    {"client": "good", "arrival": 2, "first_token": 5, "finish": 5, "output_tokens": 1},
    {"client": "bad", "arrival": 1, "first_token": 4, "finish": 20, "output_tokens": 9},
    rejected("bad", 6.0),
)


def groups(frame, misbehaving=(), streams=None):
    return latency.by_group(latency.samples(frame, streams), misbehaving)


def stream(*rows):
    return pd.DataFrame(rows, columns=list(STREAM_COLUMNS))


def sample(pairs):
    """A sample of these values, each with how often it counts."""
    found, counts = np.array(sorted(pairs), float).T
    return latency.Sample(found, counts, np.zeros(len(found), int))


def test_latencies_of_served_requests():
    found = latency.latencies(FRAME)
    assert found["ttft"].tolist() == [1, 3, 3]
    assert found["tpot"].dropna().tolist() == [1, 2]
    assert found["tpot"].isna().tolist() == [False, True, False]
    assert found["e2e"].tolist() == [5, 3, 19]


def test_percentiles_are_linear_and_groups_are_pooled():
    found = groups(FRAME, ["bad"])
    assert found["all"]["ttft_mean"] == pytest.approx(7 / 3)
    assert found["well"]["ttft_p50"] == pytest.approx(2)
    assert found["well"]["ttft_p90"] == pytest.approx(2.8)
    assert found["well"]["ttft_p95"] == pytest.approx(2.9)
    assert found["well"]["ttft_p999"] == pytest.approx(2.998)
    assert found["well"]["tpot_p99"] == pytest.approx(1)
    assert found["misbehaving"]["e2e_p99"] == pytest.approx(19)


def test_a_group_without_requests_has_no_latency():
    assert set(groups(FRAME)["misbehaving"].values()) == {None}


def test_without_streams_there_is_no_itl():
    assert groups(FRAME)["all"]["itl_p50"] is None


def test_each_client_has_its_own_percentiles():
    table = latency.by_client(latency.samples(pd.concat([FRAME, requests(rejected("none", 0.0))]), None))
    assert table.index.tolist() == ["bad", "good", "none"]
    assert table.columns.tolist() == list(latency.COLUMNS)
    assert table["ttft_p50"].tolist()[:2] == [3, 2]
    assert table.loc["none"].isna().all()


values = st.lists(st.tuples(st.sampled_from([0.0, 0.5, 2.0, 7.0, INF]), st.integers(1, 4)), min_size=1)


@given(values)
def test_statistics_are_those_of_the_values_repeated(pairs):
    found = latency.statistics(sample(pairs))
    full = sorted(value for value, count in pairs for _ in range(count))
    assert found["mean"] == pytest.approx(sum(full) / len(full))
    for name, share in latency.PERCENTILES.items():
        place = round((len(full) - 1) * share / 100, 9)
        low, high = full[math.floor(place)], full[math.ceil(place)]
        expected = low if low == high else low + (place - math.floor(place)) * (high - low)
        assert found[name] == pytest.approx(expected), name


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_percentiles_of_plain_values_are_numpys(plain):
    found = latency.statistics(sample((value, 1) for value in plain))
    expected = np.percentile(plain, list(latency.PERCENTILES.values()))
    assert [found[name] for name in latency.PERCENTILES] == pytest.approx(expected)


# -- the gaps between tokens -----------------------------------------------------------------------------


def test_a_chunk_of_k_tokens_is_k_equal_gaps_and_the_first_chunk_none():
    frame = requests(
        {"client": "a", "arrival": 0, "finish": 9, "output_tokens": 7},
        {"client": "b", "arrival": 0, "finish": 9, "output_tokens": 3},
    )
    rows = stream(("r0", 1, 1), ("r1", 2, 2), ("r0", 3, 4), ("r1", 5, 1), ("r0", 9, 2))
    found = latency.gaps(frame, rows)
    assert found.to_numpy().tolist() == [["a", 0.5, 4], ["a", 3, 2], ["b", 3, 1]]
    assert groups(frame, streams=rows)["all"]["itl_mean"] == pytest.approx((4 * 0.5 + 3 * 3) / 7)
    assert groups(frame, ["b"], rows)["misbehaving"]["itl_p50"] == 3
    assert latency.by_client(latency.samples(frame, rows))["itl_p50"].tolist() == [0.5, 3]


def test_chunks_of_a_request_that_failed_are_no_gaps_and_it_is_infinitely_late():
    frame = requests(
        {"client": "a", "arrival": 0, "finish": 9, "output_tokens": 3},
        {"client": "a", "arrival": 0, "first_token": 1, "finish": NAN, "status": "failed"},
    )
    rows = stream(("r0", 1, 1), ("r1", 1, 1), ("r0", 2, 2), ("r1", 3, 1))
    found = latency.samples(frame, rows).measures["itl"]
    assert found.values.tolist() == [0.5, INF]
    assert found.counts.tolist() == [2, 2], "as many gaps as a finished one has on average"


# -- requests that were not served -----------------------------------------------------------------------


def test_what_the_workload_is_to_blame_for_is_excused_and_the_rest_is_not():
    frame = requests(
        {**rejected("a", 0.0), "session": "too long"},
        cancelled("a", "too long"),
        starved("a", 0.0, session="starving"),
        cancelled("a", "starving"),
        {"client": "a", "arrival": 0, "finish": 1},
        {"client": "a", "arrival": 0, "status": "failed"},
    )
    assert fates.excused(frame).tolist() == [True, True, False, False, False, False]
    assert fates.unserved(frame).tolist() == [False, False, True, True, False, True]
    found = latency.latencies(frame)
    assert found["ttft"].tolist() == [INF, INF, 1, INF]
    assert found["tpot"].tolist()[:2] == [INF, INF]
    assert found["e2e"].tolist() == [INF, INF, 1, INF]


@pytest.mark.parametrize(("unserved", "infinite"), [(0, []), (3, ["mean", "p99", "p999"]), (60, None)])
def test_percentiles_are_infinite_where_the_share_of_the_unserved_demands_it(unserved, infinite):
    served = ({"client": "a", "arrival": 0, "finish": 1} for _ in range(100 - unserved))
    frame = requests(*served, *(starved("b", 0.0) for _ in range(unserved)))
    found = groups(frame)["all"]
    expected = list(latency.STATISTICS) if infinite is None else infinite
    assert [name for name in latency.STATISTICS if found[f"ttft_{name}"] == INF] == expected


# -- programs --------------------------------------------------------------------------------------------


def test_a_program_lasts_from_its_first_arrival_to_its_last_finish():
    frame = requests(
        {"client": "a", "arrival": 1, "finish": 3, "session": "one"},
        {"client": "a", "arrival": 6, "finish": 9, "session": "one"},
        {"client": "b", "arrival": 2, "finish": 4, "session": "alone"},
        {"client": "b", "arrival": 2, "finish": 4},
        {"client": "b", "arrival": 2, "finish": 4, "session": "lost"},
        starved("b", 4.0, session="lost"),
        {"client": "b", "arrival": 2, "finish": 4, "session": "never fits"},
        {**rejected("b", 4.0), "session": "never fits"},
    )
    found = programs(frame).set_index("session")
    assert found["program"].to_dict() == {"lost": INF, "one": 8}
    assert found.loc["one", ["client", "arrival"]].tolist() == ["a", 1]
    assert groups(frame, ["b"])["well"]["program_p50"] == 8
    assert groups(frame, ["b"])["misbehaving"]["program_p50"] == INF


def test_a_run_without_programs_has_no_program_time():
    assert groups(FRAME)["all"]["program_mean"] is None


# -- goodput ---------------------------------------------------------------------------------------------


def test_goodput_counts_the_requests_that_meet_every_bound():
    def share(**bounds):
        return goodput.attainment(FRAME, Slo(**bounds))

    assert share(ttft=1) == pytest.approx(1 / 3)
    assert share(ttft=3) == 1
    assert share(tpot=1) == pytest.approx(2 / 3), "a reply of one token has no TPOT to miss"
    assert share(ttft=3, tpot=1, e2e=3) == pytest.approx(1 / 3)
    assert goodput.goodput(FRAME, Slo(tpot=1), 20.0) == pytest.approx(2 / 20)
    assert goodput.goodput(FRAME, Slo(tpot=1), 0.0) is None


def test_a_starved_request_misses_the_slo_and_a_rejected_one_is_not_asked():
    frame = requests({"client": "a", "arrival": 0, "finish": 1}, starved("b", 0.0), rejected("c", 0.0))
    assert goodput.attainment(frame, Slo(e2e=100)) == pytest.approx(1 / 2)
    assert goodput.attainment(requests(rejected("c", 0.0)), Slo(e2e=100)) is None


@pytest.mark.parametrize(
    ("bounds", "problem"),
    [({}, "needs a bound"), ({"ttft": 0}, "greater than 0"), ({"tfft": 1}, "not permitted")],
)
def test_an_slo_that_bounds_nothing_or_something_unknown_is_refused(bounds, problem):
    with pytest.raises(ValidationError, match=problem):
        Slo(**bounds)
