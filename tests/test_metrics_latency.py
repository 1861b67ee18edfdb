"""Latency, throughput, and the flat summary with its glossary."""

from __future__ import annotations

import pytest
from synthetic_runs import rejected, requests, run

from suite.metrics import latency, throughput
from suite.metrics.glossary import GLOSSARY
from suite.metrics.summary import clients, summarise

FRAME = requests(
    {"client": "good", "arrival": 0, "first_token": 1, "finish": 5, "output_tokens": 5, "prompt_tokens": 100},
    {"client": "good", "arrival": 2, "first_token": 5, "finish": 5, "output_tokens": 1, "prompt_tokens": 100,
     "cached_tokens": 60},
    {"client": "bad", "arrival": 1, "admitted": 3, "first_token": 4, "finish": 20, "output_tokens": 9,
     "prompt_tokens": 200, "cached_tokens": 40, "preemptions": 2, "recomputed_tokens": 33, "weight": 2.0},
    rejected("bad", 6.0),
)  # fmt: skip


def test_latencies_of_served_requests():
    found = latency.latencies(FRAME)
    assert found["ttft"].tolist() == [1, 3, 3]
    assert found["tpot"].dropna().tolist() == [1, 2]
    assert found["tpot"].isna().tolist() == [False, True, False]
    assert found["e2e"].tolist() == [5, 3, 19]


def test_percentiles_are_linear_and_groups_are_pooled():
    groups = latency.by_group(FRAME, ["bad"])
    assert groups["all"]["ttft_mean"] == pytest.approx(7 / 3)
    assert groups["well"]["ttft_p50"] == pytest.approx(2)
    assert groups["well"]["ttft_p90"] == pytest.approx(2.8)
    assert groups["well"]["tpot_p99"] == pytest.approx(1)
    assert groups["misbehaving"]["e2e_p99"] == pytest.approx(19)


def test_a_group_without_requests_has_no_latency():
    assert set(latency.by_group(FRAME, [])["misbehaving"].values()) == {None}


def test_rates_and_counts():
    rates = throughput.rates(FRAME)
    assert throughput.makespan(FRAME) == 20
    assert rates["tokens_per_s"] == pytest.approx((400 + 15) / 20)
    assert rates["output_tokens_per_s"] == pytest.approx(15 / 20)
    assert rates["client_service_per_s"] == pytest.approx((400 + 30) / 20)
    assert rates["actual_service_per_s"] == pytest.approx((300 + 30) / 20)
    assert rates["requests_per_s"] == pytest.approx(3 / 20)
    assert throughput.hit_rate(FRAME) == pytest.approx(100 / 400)
    assert throughput.counts(FRAME) == {
        "requests": 4, "finished": 3, "rejected": 1, "failed": 0, "cancelled": 0, "preemptions": 2,
        "recomputed_tokens": 33,
    }  # fmt: skip


def test_nothing_served_has_no_rates():
    frame = requests(rejected("a", 1.0))
    assert throughput.makespan(frame) == 0
    assert set(throughput.rates(frame).values()) == {None}
    assert throughput.hit_rate(frame) is None


def test_a_rejected_first_arrival_is_not_in_the_makespan():
    frame = requests(rejected("a", 1.0), {"client": "b", "arrival": 4, "finish": 9})
    assert throughput.makespan(frame) == 5


def test_summary_of_a_run():
    row = summarise(run(FRAME, misbehaving=("bad",)))
    # All active [1, 5): good 0 + 2*5 out at 5, its second prompt 100 at 2, 1 out at 5; bad's prompt 200 at 3,
    # no output yet; bad weighs 2, so the normalised client service is 112 and 100.
    assert row["all_active_s"] == 4
    assert row["jain_client_all_active"] == pytest.approx(212**2 / (2 * (112**2 + 100**2)))
    assert row["gap_client_all_active"] == pytest.approx(12)
    assert row["jain_actual_all_active"] == pytest.approx((52 + 80) ** 2 / (2 * (52**2 + 80**2)))
    assert row["backlogged_none"] == "client 'good' was never backlogged"
    assert row["jain_client_backlogged"] is None
    assert row["vtc_difference_none"] == "arrivals end at 6 s; VTC's windows need 90 s"
    assert row["vtc_difference_max"] is None
    assert row["well_ttft_p50"] == pytest.approx(2)
    assert row["misbehaving_ttft_p50"] == pytest.approx(3)


def test_summary_with_long_enough_arrivals_has_vtcs_difference():
    rows = [{"client": c, "arrival": t, "finish": t + 1.0} for t in range(0, 121, 5) for c in "ab"]
    row = summarise(run(requests(*rows)))
    assert row["vtc_difference_none"] is None
    assert row["vtc_difference_max"] == pytest.approx(0)


def test_the_glossary_explains_exactly_the_columns_of_the_summary():
    named = [column for metric in GLOSSARY for column in metric.columns]
    assert len(named) == len(set(named))
    assert set(named) == set(summarise(run(FRAME)))
    assert all(all(metric) for metric in GLOSSARY)


def test_a_run_in_which_nothing_was_served_can_be_summarised():
    row = summarise(run(requests(rejected("a", 0.0), rejected("b", 1.0))))
    assert row["rejected"] == 2
    assert row["jain_client_whole"] is None
    assert row["whole_none"] == "no request was served"


def test_clients_table():
    table = clients(run(FRAME, misbehaving=("bad",))).set_index("client")
    assert table.index.tolist() == ["bad", "good"]
    assert table.loc["bad", ["requests", "finished", "rejected", "failed", "cancelled"]].tolist() == [
        2,
        1,
        1,
        0,
        0,
    ]
    assert table["misbehaving"].tolist() == [True, False]
    assert table["client_service"].tolist() == [200 + 18, 200 + 12]
    assert table["actual_service"].tolist() == [160 + 18, 140 + 12]
    assert table["client_service_all_active"].tolist() == [200, 112]
    assert table.loc["good", "hit_rate"] == pytest.approx(0.3)
    assert table.loc["good", "ttft_p50"] == pytest.approx(2)
    assert table["weight"].tolist() == [2, 1]


def test_a_client_never_served_stands_in_the_clients_table():
    frame = requests({"client": "a", "arrival": 0, "finish": 1}, rejected("b", 0.0))
    table = clients(run(frame)).set_index("client")
    assert table.loc["b", ["finished", "client_service", "prompt_tokens"]].tolist() == [0, 0, 0]
    assert table.loc["b", ["hit_rate", "ttft_p50"]].isna().all()
