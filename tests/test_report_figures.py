"""The figures: what is drawn, what is told of it where it is cut, empty or never, and its data."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from crowds import crowd
from synthetic_runs import experiment, rejected, requests, run, starved

from suite.report import figures, style, tables
from suite.report.effects import Effect
from suite.report.experiment import load
from suite.report.figures import bound, cache, frontier, latencies, over_time, sweeps
from suite.report.figures.effects import forest


@pytest.fixture(autouse=True)
def styled():
    with style.styled():
        yield


def legend_texts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def panel_texts(axes):
    return [text.get_text() for text in axes.texts]


# -- throughput against fairness -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    runs = [
        crowd("fcfs", ("a", "b")),
        *(crowd(f"dlpm:quantum={q}", ("a", "b"), seed, 1 + q / 1e4 + seed / 100)
          for q in (1000, 2000) for seed in (0, 1)),
    ]  # fmt: skip
    return tables.collect(experiment(tmp_path_factory.mktemp("swept"), *runs))


def test_tradeoff_joins_a_sweep_and_draws_what_its_data_say(swept):
    figure, data = frontier.tradeoff(swept)
    assert legend_texts(figure) == ["fcfs", "dlpm, by quantum"]
    assert {"1000", "2000"} <= set(", ".join(panel_texts(figure.axes[0])).replace("†", "").split(", "))
    points = [tuple(map(float, point)) for line in figure.axes[0].get_lines() for point in line.get_xydata()]
    for row in data.itertuples():
        assert (row.client_service_per_s, row.jain_client_all_active) in points


def test_tradeoff_names_who_has_no_such_number(swept):
    frame = swept.copy()
    frame.loc[frame["policy"] == "fcfs", "jain_client_all_active"] = None
    figure, data = frontier.tradeoff(frame)
    assert "no such numbers: fcfs" in panel_texts(figure.axes[0])
    assert "fcfs" not in set(data["scheduler"])


def test_an_engines_own_policy_has_no_parameter_at_its_point(tmp_path):
    frame = requests(*({"client": c, "arrival": 0, "first_token": 1, "finish": 3} for c in "ab"))
    own = run(frame, scheduler="sglang:lpm", policy="sglang:lpm")
    figure, _ = frontier.tradeoff(tables.collect(experiment(tmp_path, own)))
    assert legend_texts(figure) == ["sglang:lpm"]
    assert panel_texts(figure.axes[0]) == []


def test_points_of_one_label_share_it_once():
    axes = style.panels(1, 3, 3).axes[0]
    frontier.annotate(axes, [frontier.Label(0.5, 0.5, text) for text in ("†", "†", "1000", "†")])
    assert panel_texts(axes) == ["†, 1000"]


# -- clients over time -----------------------------------------------------------------------------------


def test_thirty_clients_are_cut_to_those_that_can_be_told_apart():
    names = tuple(f"client {i}" for i in range(30))
    runs = {"fcfs": crowd("fcfs", names)}
    lines, bars = over_time.service_over_time(runs).figure, latencies.per_client(runs).figure
    assert len(legend_texts(lines)) == style.MOST_CLIENTS + 1
    assert legend_texts(lines)[0] == "client 0 (misbehaving)"
    assert legend_texts(lines)[-1] == "22 others"
    assert lines.legends[0].get_title().get_text().startswith("8 of 30 clients in colour")
    assert len(lines.axes[0].get_lines()) == 30
    assert len(bars.axes[0].get_yticks()) == latencies.MOST_BARS
    assert bars.legends[0].get_title().get_text().startswith("12 of 30 clients shown")


def test_service_over_time_draws_the_cumulative_client_service():
    figure, data = over_time.service_over_time({"fcfs": crowd("fcfs", ("a", "b"))})
    ends = sorted(line.get_ydata()[-1] for line in figure.axes[0].get_lines())
    assert ends == [3 * (10 + 8), 3 * (11 + 8)]
    assert data.groupby("client")["client service"].last().tolist() == ends


def test_response_over_time_draws_mean_ttft_by_arrival():
    frame = requests(
        {"client": "a", "arrival": 0, "first_token": 1, "finish": 3},
        {"client": "a", "arrival": 0.1, "first_token": 3.1, "finish": 4},
        {"client": "a", "arrival": 12, "first_token": 12.1, "finish": 13},
        starved("a", 12.1),
        {"client": "a", "arrival": 24, "first_token": 24.5, "finish": 25},
    )
    figure, _ = over_time.response_over_time({"fcfs": run(frame)})
    x, y = figure.axes[0].get_lines()[0].get_data()
    assert x.tolist() == pytest.approx([0.5, 12.5, 23.5])
    assert y.tolist() == pytest.approx([2, np.nan, 0.5], nan_ok=True)  # no point where one was never served


def test_ticks_of_nearly_constant_times_are_plain_and_differ():
    rows = [{"client": "a", "arrival": t, "first_token": t + 0.0344856, "finish": t + 1} for t in range(24)]
    figure, _ = over_time.response_over_time({"fcfs": run(requests(*rows))})
    figure.draw_without_rendering()
    axis = figure.axes[0].yaxis
    labels = [label.get_text() for label in [*axis.get_ticklabels(), *axis.get_ticklabels(minor=True)]]
    shown = [label for label in labels if label]
    assert len(shown) == len(set(shown)) > 0
    assert all(re.fullmatch(r"[0-9.]+", label) for label in shown)


def test_runs_in_which_nothing_was_served_make_figures_that_say_so(tmp_path):
    frame = requests(rejected("a", 0.0), rejected("b", 1.0))
    runs = {name: run(frame, scheduler=name) for name in ("fcfs", "vtc")}
    cells = tables.collect(experiment(tmp_path, *runs.values()))
    plots = {stem: draw(runs) for draw, stem, _, _ in figures.DETAILS}
    plots |= {"cdf": latencies.cdfs({name: [one] for name, one in runs.items()})}
    plots |= {"tradeoff": frontier.tradeoff(cells), "latency": latencies.per_scheduler(cells)}
    for stem, plot in plots.items():
        for axes in plot.figure.axes:
            assert {"no data", "not known"} & set(panel_texts(axes)), stem


def test_figures_with_data_do_not_say_that_they_have_none():
    runs = {"fcfs": crowd("fcfs", tuple("abcdef")), "vtc": run(requests(rejected("a", 0.0)), scheduler="vtc")}
    for draw, stem, _, _ in figures.DETAILS:
        empty = [bool({"no data", "not known"} & set(panel_texts(axes))) for axes in draw(runs).figure.axes]
        assert empty == ([False, False] if stem == "fairness" else [False, True]), stem


# -- latency ---------------------------------------------------------------------------------------------


def test_a_curve_of_requests_never_served_does_not_reach_one():
    rows = [{"client": "a", "arrival": 0, "first_token": t, "finish": t + 1} for t in (1, 2, 3)]
    half = run(requests(*rows, *(starved("a", 0.0) for _ in range(3))), scheduler="mine")
    figure, data = latencies.cdfs({"vtc": [run(requests(*rows), scheduler="vtc")], "mine": [half]})
    tops = data[data["measure"] == "ttft"].groupby("scheduler")["share"].max()
    assert tops.to_dict() == {"vtc": 1.0, "mine": 0.5}
    assert sorted(line.get_ydata()[-1] for line in figure.axes[0].get_lines()) == [0.5, 1.0]


def test_curves_pool_all_seeds_and_count_every_gap():
    one, two = crowd("vtc", ("bad", "b"), 0), crowd("vtc", ("bad", "b"), 1, speed=2)
    data = latencies.cdfs({"vtc": [one, two]}).data
    gaps = data[data["measure"] == "itl"].set_index("share")["seconds"]
    assert gaps[0.25] == pytest.approx(0.15 / 3)  # three gaps of (0.25 - 0.1) / 3 s a reply under seed 1
    assert gaps[0.75] == pytest.approx(0.4 / 3)


def test_never_is_written_where_a_bar_would_be_infinite(tmp_path):
    rows = [
        {"client": "a", "arrival": 0, "first_token": 1, "finish": 2},
        starved("a", 0.0),
        starved("a", 0.0),
    ]
    frame = tables.collect(experiment(tmp_path, run(requests(*rows)))).assign(invalid=None)
    figure, data = latencies.per_scheduler(frame)
    assert "P50 and P99: never" in panel_texts(figure.axes[0])
    assert np.isinf(data["seconds"]).all()
    assert "P99: never" in panel_texts(latencies.per_client({"fcfs": run(requests(*rows))}).figure.axes[0])


# -- the cache -------------------------------------------------------------------------------------------


def test_hits_are_split_by_who_had_computed_them(tmp_path):
    frame = tables.collect(experiment(tmp_path, crowd("vtc", ("a", "b"))))
    figure, data = cache.hit_rate(frame)
    (row,) = data.itertuples()
    assert row.hit_rate_own + row.hit_rate_shared == pytest.approx(row.hit_rate)
    widths = sorted(bar.get_width() for bar in figure.axes[0].patches)
    assert widths == pytest.approx(sorted([100 * row.hit_rate_own, 100 * row.hit_rate_shared]))
    unknown = replace(crowd("vtc", ("a", "b")), sharing=None)
    plain = cache.hit_rate(tables.collect(experiment(tmp_path / "unknown", unknown))).figure
    assert legend_texts(plain) == ["by whom is not known"]


def test_payers_are_rows_and_finders_columns():
    figure, data = cache.payers({"vtc": crowd("vtc", ("a", "b"))})
    assert data.set_index(["payer", "client"])["tokens"].to_dict() == {
        ("a", "a"): 15, ("a", "b"): 15, ("b", "a"): 0, ("b", "b"): 0,
    }  # fmt: skip
    places = figure.axes[0].get_images()[0].get_array()
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert places[rows.index("a (misbehaving)")].sum() == 30


# -- sweeps ----------------------------------------------------------------------------------------------


def test_a_swept_parameter_is_found_and_drawn_over_its_values(swept):
    assert sweeps.swept_parameters(swept) == [("dlpm", "quantum")]
    figure, data = sweeps.parameter_sweep(swept, "dlpm", "quantum")
    line = figure.axes[0].get_lines()[0]
    assert line.get_xdata().tolist() == [1000, 2000]
    means = swept.groupby("scheduler")["client_service_per_s"].mean()
    assert line.get_ydata().tolist() == pytest.approx(
        [means["dlpm:quantum=1000"], means["dlpm:quantum=2000"]]
    )
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["1000", "2000"]
    assert data["value"].isna().sum() == 2  # fcfs, a level line in both panels


@pytest.fixture(scope="module")
def scaled():
    rng = np.random.default_rng(0)
    rows = [
        {
            "cell": f"{workload}-{policy}-{clients}-{seed}", "setting": f"{workload}, clients={clients}",
            "workload": workload, "scheduler": policy, "policy": policy, "seed": seed,
            "workload.clients": clients, "invalid": None, "client_service_per_s": 100.0 * clients + seed,
            "jain_client_all_active": 0.9, "well_ttft_p50": 1.0 * clients,
            "well_ttft_p99": rng.uniform(1, 9),
        }
        for workload in ("tot", "judge", "longqa")
        for clients in (1, 2, 4, 8)
        for policy in ("lpm", "vtc", "dlpm")
        for seed in (0, 1)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_the_grid_has_a_row_per_measure_and_a_column_per_workload(scaled):
    assert sweeps.swept_keys(scaled) == ["workload.clients"]
    figure, data = sweeps.grid(scaled, "workload.clients")
    assert len(figure.axes) == 4 * 3
    assert [axes.get_title() for axes in figure.axes[:3]] == ["tot", "judge", "longqa"]
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == pytest.approx([100.5, 200.5, 400.5, 800.5] * 3)
    assert len(data) == 4 * 3 * 4 * 3


def test_the_grid_says_never_where_a_latency_is_infinite(scaled):
    frame = scaled.copy()
    frame.loc[(frame["workload"] == "tot") & (frame["policy"] == "lpm"), "well_ttft_p99"] = np.inf
    figure, _ = sweeps.grid(frame, "workload.clients")
    assert panel_texts(figure.axes[9]) == ["never"] * 4
    assert panel_texts(figure.axes[10]) == []


def test_scaling_has_a_row_per_workload_and_lines_over_the_swept_number(scaled):
    figure, _ = sweeps.scaling(scaled, "workload.clients")
    assert len(figure.axes) == 3 * 4
    line = figure.axes[0].get_lines()[0]
    assert line.get_xdata().tolist() == [1, 2, 4, 8]
    assert line.get_ydata().tolist() == [100.5, 200.5, 400.5, 800.5]


# -- the audit, and effects ------------------------------------------------------------------------------


def two_backlogged(target):
    """Client a is served all the time while b waits: the gap grows to 4 x 112."""
    rows = [
        {"client": "a", "arrival": 0, "admitted": 1.0 + k, "finish": 2.0 + k, "prompt_tokens": 110}
        for k in range(5)
    ]
    frame = requests(*rows, {"client": "b", "arrival": 0, "admitted": 9, "finish": 10, "prompt_tokens": 1})
    made = run(frame, scheduler="vtc")
    asked = {"name": "vtc", "target": target, "source": "2" * 64, "router": None,
             "parameters": {"input_weight": 1.0, "output_weight": 2.0, "charge": "full"}}  # fmt: skip
    manifest = replace(made.manifest, scheduler=asked, backend={"kind": "simulator", "max_running": 1})
    return replace(made, manifest=manifest)


def test_the_gap_is_drawn_under_its_bound_and_the_broken_window_shaded():
    broken, none = two_backlogged("baselines.vtc:VTC"), two_backlogged("mine.py:X")
    figure, data = bound.gap_under_bound({"vtc": broken, "mine": none})
    vtc = data[data["scheduler"] == "vtc"]
    assert (vtc["gap"].max() > vtc["bound"]).all()
    assert figure.axes[0].patches
    assert not figure.axes[1].patches
    assert data.loc[data["scheduler"] == "mine", "bound"].isna().all()
    assert legend_texts(figure) == ["gap", "bound", "bound broken"]


def effect(metric, baseline, ratio, low, high, verdict):
    return Effect(
        "chat", metric, metric, "max", "dlpm", baseline, 1.0, 1.0, ratio, low, high, 3, verdict, None
    )


def test_effects_are_drawn_with_their_intervals_and_none_without_a_ratio():
    found = [
        effect("throughput", "vtc", 1.5, 1.4, 1.6, "wins"),
        effect("throughput", "lpm", 0.9, 0.7, 1.2, "no difference seen"),
        effect("Jain", "vtc", 0.8, None, None, "none"),
        effect("Jain", "lpm", None, None, None, "none"),
    ]
    figure, data = forest(found)
    assert data["ratio"].tolist() == [1.5, 0.9, 0.8]
    intervals = [line.get_xdata() for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 2]
    assert [1.4, 1.6] in [list(interval) for interval in intervals]
    labels = [label.get_text().strip() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["throughput  / vtc", "/ lpm", "Jain  / vtc"]
    assert set(legend_texts(figure)) == {"wins", "no difference seen", "none"}


# -- what is drawn for an experiment ---------------------------------------------------------------------


def test_details_are_drawn_for_the_first_settings_only(tmp_path):
    runs = [crowd("vtc", ("a", "b"), workload=f"w{i}") for i in range(figures.MOST_DETAILED + 2)]
    loaded = load(experiment(tmp_path, *runs))
    detailed = {plan.setting for plan in figures._details(loaded)}
    assert detailed == {f"w{i}" for i in range(figures.MOST_DETAILED)}


def test_schedulers_keep_their_looks_and_strangers_differ():
    looks = style.policies(["vtc", "b", "a"])
    assert looks["vtc"] == style.policies(["fcfs", "vtc"])["vtc"]
    assert len({look.color for look in looks.values()}) == len(looks)
    assert len({look.marker for look in looks.values()}) == len(looks)


def test_variants_of_one_policy_are_told_apart():
    labels = [f"dlpm:quantum={q}" for q in (1, 2, 3, 4)]
    looks = style.schedulers(dict.fromkeys(labels, "dlpm"))
    assert len({(look.color, look.dashes) for look in looks.values()}) == 4
    assert looks[labels[0]] == style.policies(["dlpm"])["dlpm"]


def test_response_times_are_drawn_where_nobody_was_served():
    nobody = run(requests(starved("a", 0.0), starved("b", 1.0)))
    plot = over_time.response_over_time({"x": nobody, "y": nobody})
    plot.figure.draw_without_rendering()
    assert plot.data["mean TTFT (s)"].isna().all()
