"""The flat summary with its glossary, the table of clients, and what a starving scheduler gets in them."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from synthetic_runs import rejected, requests, run, starved
from typer.testing import CliRunner

from suite.cli import app
from suite.errors import BadInput
from suite.metrics import throughput
from suite.metrics.glossary import GLOSSARY, search
from suite.metrics.goodput import Slo
from suite.metrics.service import KINDS
from suite.metrics.summary import clients, summarise

FRAME = requests(
    {"client": "good", "arrival": 0, "first_token": 1, "finish": 5, "output_tokens": 5, "prompt_tokens": 100},
    {"client": "good", "arrival": 2, "first_token": 5, "finish": 5, "output_tokens": 1, "prompt_tokens": 100,
     "cached_tokens": 60},
    {"client": "bad", "arrival": 1, "admitted": 3, "first_token": 4, "finish": 20, "output_tokens": 9,
     "prompt_tokens": 200, "cached_tokens": 40, "preemptions": 2, "recomputed_tokens": 33, "weight": 2.0},
    rejected("bad", 6.0),
)  # fmt: skip
SHARING = pd.DataFrame(
    [("good", "good", 60), ("good", "bad", 30), ("bad", "bad", 10)], columns=["payer", "client", "tokens"]
)
STREAMS = pd.DataFrame({"id": ["r2", "r2"], "time": [4.0, 20.0], "tokens": [1, 8]})


def test_rates_and_counts():
    rates = throughput.rates(FRAME)
    assert throughput.makespan(FRAME) == 20
    assert rates["tokens_per_s"] == pytest.approx((400 + 15) / 20)
    assert rates["output_tokens_per_s"] == pytest.approx(15 / 20)
    assert rates["client_service_per_s"] == pytest.approx((400 + 30) / 20)
    assert rates["actual_service_per_s"] == pytest.approx((300 + 30) / 20)
    assert rates["requests_per_s"] == pytest.approx(3 / 20)
    assert throughput.counts(FRAME) == {
        "requests": 4, "finished": 3, "rejected": 1, "failed": 0, "starved": 0, "cancelled": 0,
        "preemptions": 2, "recomputed_tokens": 33,
    }  # fmt: skip


def test_hits_are_split_by_who_computed_them():
    assert throughput.hit_rates(FRAME, SHARING) == {
        "hit_rate": pytest.approx(100 / 400),
        "hit_rate_own": pytest.approx(70 / 400),
        "hit_rate_shared": pytest.approx(30 / 400),
    }
    assert throughput.hit_rates(FRAME, None)["hit_rate_own"] is None


def test_nothing_served_has_no_rates():
    frame = requests(rejected("a", 1.0))
    assert throughput.makespan(frame) == 0
    assert set(throughput.rates(frame).values()) == {None}
    assert set(throughput.hit_rates(frame, SHARING).values()) == {None}
    assert throughput.no_rates(frame) == "no request was served"


def test_a_rejected_first_arrival_is_not_in_the_makespan():
    frame = requests(rejected("a", 1.0), {"client": "b", "arrival": 4, "finish": 9})
    assert throughput.makespan(frame) == 5


def test_summary_of_a_run():
    row = summarise(run(FRAME, misbehaving=("bad",), streams=STREAMS))
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
    assert row["misbehaving_itl_mean"] == pytest.approx(2)
    assert row["well_avg_ttft_p50"] == pytest.approx(2)
    assert row["worst_e2e_p50"] == pytest.approx(19)
    assert row["rates_none"] is None
    # Good is ahead most from its second prompt at 2 on, until bad gets its first at 3.
    assert row["accumulated_gap_client"] == pytest.approx(200)


def test_well_avg_is_the_mean_of_the_clients_own_percentiles_and_worst_the_largest():
    rows = [{"client": c, "arrival": 0, "finish": t} for c, t in [("a", 1), ("a", 3), ("b", 6), ("c", 50)]]
    row = summarise(run(requests(*rows), misbehaving=("c",)))
    assert row["well_avg_e2e_p50"] == pytest.approx((2 + 6) / 2)
    assert row["worst_e2e_p50"] == 50
    assert row["well_avg_program_p50"] is None


def test_goodput_needs_an_slo():
    row = summarise(run(FRAME), Slo(ttft=2))
    assert row["goodput_per_s"] == pytest.approx(1 / 20)
    assert row["slo_attainment"] == pytest.approx(1 / 3)
    assert row["goodput_none"] is None
    without = summarise(run(FRAME))
    assert (without["goodput_per_s"], without["slo_attainment"]) == (None, None)
    assert without["goodput_none"] == "no SLO is set"


def test_summary_with_long_enough_arrivals_has_vtcs_difference():
    rows = [{"client": c, "arrival": t, "finish": t + 1.0} for t in range(0, 121, 5) for c in "ab"]
    row = summarise(run(requests(*rows)))
    assert row["vtc_difference_none"] is None
    assert row["vtc_difference_max"] == pytest.approx(0)


def test_a_run_in_which_nothing_was_served_can_be_summarised():
    row = summarise(run(requests(rejected("a", 0.0), rejected("b", 1.0))), Slo(ttft=1))
    assert row["rejected"] == 2
    assert row["jain_client_whole"] is None
    assert row["whole_none"] == "no request was served"
    assert row["goodput_none"] == "no request was served"
    assert row["slo_attainment"] is None


# -- a scheduler that serves one client only -------------------------------------------------------------

ONE_SERVED = requests(
    *({"client": "a", "arrival": t, "admitted": t + 1, "finish": t + 4.0} for t in range(0, 120, 3)),
    *(starved(client, float(t)) for client in "bc" for t in range(0, 120, 3)),
)


def test_serving_one_of_three_is_one_third_fair_in_every_window():
    row = summarise(run(ONE_SERVED))
    for window in ("whole", "all_active", "backlogged", "trimmed"):
        assert row[f"{window}_none"] is None
        for kind in KINDS:
            assert row[f"jain_{kind}_{window}"] == pytest.approx(1 / 3), window
            if window != "whole":
                assert row[f"jain_entitled_{kind}_{window}"] == pytest.approx(1 / 3), window
    assert row["all_active_s"] == 121
    assert row["backlogged_s"] == 40, "a waits 1 s of every 3"


def test_the_starved_are_infinitely_late_and_miss_the_slo():
    row = summarise(run(ONE_SERVED), Slo(ttft=1000))
    for column in ("ttft_mean", "ttft_p50", "e2e_p50", "tpot_p99", "well_avg_ttft_p50", "worst_e2e_p50"):
        assert row[column] == math.inf, column
    assert row["slo_attainment"] == pytest.approx(1 / 3)
    assert row["starved"] == 80


def test_a_run_that_starved_requests_has_no_rates_and_says_so():
    row = summarise(run(ONE_SERVED, sharing=SHARING), Slo(ttft=1000))
    rates = [c for c in row if c.endswith("_per_s")] + ["hit_rate", "hit_rate_own", "hit_rate_shared"]
    assert len(rates) == 9
    assert {row[column] for column in rates} == {None}
    assert row["rates_none"] == "80 of 120 requests starved, so the run did other work than was asked for"
    assert row["goodput_none"] == row["rates_none"]


def test_vtcs_difference_counts_what_the_starved_asked_for():
    # a asks and gets 12 every 3 s: 4 a second; b and c ask as much and get nothing.
    row = summarise(run(ONE_SERVED))
    assert row["vtc_difference_mean"] == pytest.approx(2 * 12 / 3, rel=0.1)


def test_a_client_served_for_a_while_is_not_fair_because_its_outputs_would_have_been_long():
    """Prompts of 10, outputs of 100. b gets half of what a gets, and had asked for as much."""
    frame = requests(
        *(
            {"client": "a", "arrival": t, "admitted": t, "finish": t + 2.0, "output_tokens": 100}
            for t in range(40)
        ),
        *(
            {"client": "b", "arrival": t, "admitted": t, "finish": t + 2.0, "output_tokens": 100}
            for t in range(20)
        ),
        *(starved("b", float(t)) for t in range(20, 40)),
    )
    row = summarise(run(frame))
    assert row["jain_entitled_client_trimmed"] < 0.9


def test_a_client_that_comes_after_the_last_finish_and_starves_is_in_the_whole_run():
    frame = requests({"client": "a", "arrival": 0, "finish": 4}, starved("b", 10.0))
    row = summarise(run(frame))
    assert row["whole_s"] == 10
    assert row["jain_client_whole"] == pytest.approx(1 / 2)


def test_the_starved_client_stands_in_the_table_with_nothing():
    table = clients(run(ONE_SERVED)).set_index("client")
    assert table["starved"].tolist() == [0, 40, 40]
    assert table["client_service_all_active"].tolist()[1:] == [0, 0]
    assert table["ttft_p50"].tolist() == [4, math.inf, math.inf]


# -- the table of clients --------------------------------------------------------------------------------


def test_clients_table():
    table = clients(run(FRAME, misbehaving=("bad",), sharing=SHARING, streams=STREAMS)).set_index("client")
    fates = ["requests", "finished", "rejected", "failed", "starved", "cancelled"]
    assert table.index.tolist() == ["bad", "good"]
    assert table.loc["bad", fates].tolist() == [2, 1, 1, 0, 0, 0]
    assert table["misbehaving"].tolist() == [True, False]
    assert table["client_service"].tolist() == [200 + 18, 200 + 12]
    assert table["actual_service"].tolist() == [160 + 18, 140 + 12]
    assert table["client_service_all_active"].tolist() == [200, 112]
    assert table.loc["good", "hit_rate"] == pytest.approx(0.3)
    assert table.loc["good", "ttft_p50"] == pytest.approx(2)
    assert table["weight"].tolist() == [2, 1]
    assert table["paid_for_others"].tolist() == [0, 30]
    assert table["taken_from_others"].tolist() == [30, 0]
    assert table.loc["bad", "itl_p99"] == 2


def test_a_client_never_served_stands_in_the_clients_table():
    frame = requests({"client": "a", "arrival": 0, "finish": 1}, rejected("b", 0.0))
    table = clients(run(frame)).set_index("client")
    assert table.loc["b", ["finished", "client_service", "prompt_tokens"]].tolist() == [0, 0, 0]
    assert table.loc["b", ["hit_rate", "ttft_p50"]].isna().all()
    assert table["paid_for_others"].isna().all(), "not worked out is not nothing"


# -- the glossary ----------------------------------------------------------------------------------------


def test_the_glossary_explains_exactly_the_columns_of_the_summary():
    named = [column for metric in GLOSSARY for column in metric.columns]
    assert len(named) == len(set(named))
    assert set(named) == set(summarise(run(FRAME)))
    assert all(all(metric) for metric in GLOSSARY)


def test_metrics_are_found_by_name_column_or_formula():
    assert [metric.columns[0] for metric in search("RECOMPUTED")] == ["preemptions"]
    assert [metric.names for metric in search("well_avg_e2e_p99")] == [GLOSSARY[-2].names]
    assert "makespan_s" in {metric.names for metric in search("first arrival")}
    with pytest.raises(BadInput, match=r"'jian': no metric has this word; did you mean 'jain'\?"):
        search("jian")


def test_the_command_prints_definitions_that_fit_100_columns():
    found = CliRunner().invoke(app, ["metrics"])
    assert found.exit_code == 0
    lines = found.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    assert [line for line in lines if line.startswith("gap_")] == [
        "gap_{actual,client}_{whole,all_active,backlogged,trimmed}"
    ]
    only = CliRunner().invoke(app, ["metrics", "makespan_s"]).stdout
    assert only.startswith("makespan_s\n")
    assert "jain" not in only
