"""The experiment folder, the final table and the headline."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pandas as pd
import pytest
from rich.console import Console
from synthetic_runs import experiment, rejected, requests, run, starved

from suite.errors import BadInput
from suite.metrics.goodput import Slo
from suite.report import tables
from suite.report.experiment import load, reading_order
from suite.report.headline import answer, headlines
from suite.report.terminal import rich_table


def served(scheduler, seconds, share=1.0, **labels):
    """Two clients, each sending one request at 0; b gets `share` of a's 100 prompt tokens by `seconds`."""
    rows = [
        {"client": "a", "arrival": 0.0, "admitted": 0.5, "finish": seconds, "prompt_tokens": 98},
        {"client": "b", "arrival": 0.0, "admitted": 0.5, "finish": seconds, "prompt_tokens": int(98 * share)},
    ]
    return run(requests(*rows), scheduler=scheduler, **labels)


@pytest.fixture
def folder(tmp_path):
    return experiment(
        tmp_path,
        served("dlpm:quantum=8000", 2, 0.4),
        served("dlpm:quantum=1000", 4, 0.9),
        served("vtc", 4),
        served("vtc", 8, seed=1),
        served("mine", 16),
        served("fcfs", 10),
        served("fcfs", 10, **{"workload.load": 2.0}),
    )


def by_scheduler(folder):
    return {row.scheduler: row for row in tables.rows(tables.collect(folder)) if row.setting == "chat"}


def value(row, key):
    return row.values[key]


def test_collect_has_a_row_per_cell_with_labels_and_numbers(folder):
    frame = tables.collect(folder)
    assert frame["cell"].tolist()[:3] == ["00-dlpm", "01-dlpm", "02-vtc"]
    assert frame["setting"].tolist()[-2:] == ["chat", "chat, load=2.0"]
    assert frame["seed"].tolist() == [0, 0, 0, 1, 0, 0, 0]
    assert frame["client_service_per_s"][2] == pytest.approx(200 / 4)


def test_rows_are_in_reading_order_and_grouped_by_setting(folder):
    shown = [(row.setting, row.scheduler, row.seeds) for row in tables.rows(tables.collect(folder))]
    assert shown == [
        ("chat", "fcfs", 1),
        ("chat", "vtc", 2),
        ("chat", "dlpm:quantum=1000", 1),
        ("chat", "dlpm:quantum=8000", 1),
        ("chat", "mine", 1),
        ("chat, load=2.0", "fcfs", 1),
    ]


def test_backends_of_one_experiment_are_not_averaged(tmp_path):
    runs = [
        served("vtc", 4, backend="sglang"),
        served("vtc", 8, backend="sglang", seed=1),
        served("vtc", 16, backend="simulator"),
        served("vtc", 16, backend="simulator", **{"backend.max_running": 8}),
    ]
    shown = [(row.setting, row.seeds) for row in tables.rows(tables.collect(experiment(tmp_path, *runs)))]
    assert shown == [
        ("chat, backend=sglang", 2),
        ("chat, backend=simulator", 1),
        ("chat, backend=simulator, max_running=8", 1),
    ]


def test_numbers_in_labels_are_ordered_by_size():
    labels = ["dlpm:quantum=32000", "dlpm:quantum=1000.5", "dlpm", "dlpm:quantum=900"]
    assert sorted(labels, key=lambda label: reading_order("dlpm", label)) == [
        "dlpm", "dlpm:quantum=900", "dlpm:quantum=1000.5", "dlpm:quantum=32000",
    ]  # fmt: skip


def test_seeds_are_averaged_and_the_ratio_is_to_vtc(folder):
    rows = by_scheduler(folder)
    assert value(rows["vtc"], "client_service_per_s").text == "38 ±18"
    assert value(rows["vtc"], "vs_reference").text == "1.00"
    assert value(rows["fcfs"], "vs_reference").text == f"{20 / 37.5:.2f}"


def test_the_best_of_a_setting_is_marked(folder):
    rows = by_scheduler(folder)
    assert [name for name, row in rows.items() if value(row, "client_service_per_s").best] == [
        "dlpm:quantum=8000"
    ]
    assert {name for name, row in rows.items() if value(row, "jain_client_all_active").best} == {
        "fcfs", "vtc", "mine",
    }  # fmt: skip
    assert not any(value(row, "preemptions").best for row in rows.values())


def test_a_setting_without_vtc_has_no_ratio(folder):
    alone = tables.rows(tables.collect(folder))[-1]
    assert alone.setting == "chat, load=2.0"
    assert value(alone, "vs_reference").text == "none"
    assert not any(shown.best for shown in alone.values.values())


def test_a_missing_jain_is_none_with_a_reason_and_never_best(tmp_path):
    apart = requests(
        {"client": "a", "arrival": 0, "admitted": 1, "finish": 2},
        {"client": "b", "arrival": 3, "admitted": 4, "finish": 5},
    )
    folder = experiment(tmp_path, run(apart), served("vtc", 4))
    frame = tables.collect(folder)
    fcfs, vtc = tables.rows(frame)
    assert value(fcfs, "jain_client_all_active").text == "none"
    assert not value(vtc, "jain_client_all_active").best
    assert "Jain, all active, chat, fcfs: the clients were never all active at once" in tables.reasons(frame)


def test_jain_from_a_short_window_is_marked_and_not_ranked(tmp_path):
    brief = requests(
        {"client": "a", "arrival": 0, "finish": 10, "prompt_tokens": 100},
        {"client": "b", "arrival": 9.9, "finish": 11, "prompt_tokens": 0, "output_tokens": 1},
    )
    folder = experiment(tmp_path, run(brief), served("vtc", 4, 0.5), served("dlpm", 4, 0.4))
    frame = tables.collect(folder)
    fcfs, vtc, _ = tables.rows(frame)
    assert value(fcfs, "jain_client_all_active").text.endswith("†")
    assert value(vtc, "jain_client_all_active").best
    first = headlines(frame)[0]
    assert first.winner == "vtc"
    assert "fcfs" not in {place.scheduler for place in first.ranking if place.fair}


def test_some_seeds_without_a_number_are_told(tmp_path):
    apart = requests(
        {"client": "a", "arrival": 0, "finish": 2},
        {"client": "b", "arrival": 3, "finish": 5},
    )
    folder = experiment(tmp_path, served("fcfs", 4), run(apart, seed=1))
    row = tables.rows(tables.collect(folder))[0]
    assert value(row, "jain_client_all_active").text == "1.000 (1 of 2 seeds)"


def test_rich_table_shows_every_scheduler_and_no_name_as_markup(tmp_path):
    folder = experiment(tmp_path, served("mine[red]", 4, workload="[bold]x[/bold]"), served("vtc", 8))
    console = Console(file=io.StringIO(), width=200)
    console.print(rich_table(tables.collect(folder)))
    text = console.file.getvalue()
    assert "mine[red]" in text
    assert "[bold]x[/bold]" in text


def printed(folder, width):
    console = Console(file=io.StringIO(), width=width)
    console.print(rich_table(tables.collect(folder), width))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [50, 80, 100, 200])
def test_numbers_stand_whole_at_any_width(folder, width):
    text = printed(folder, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    service = [value(row, "client_service_per_s") for row in tables.rows(tables.collect(folder))]
    assert all(shown.bare in text for shown in service)
    assert "preempted" in text
    assert ("Too narrow for: seeds; preempted" in " ".join(text.split())) == (width < 200)


def test_eighty_columns_hold_what_matters_most_and_long_names_fold(tmp_path):
    long = "my_idea.py:MyIdea:quantum=1000,other=2000"
    folder = experiment(tmp_path, served(long, 4), served("vtc", 4), served("vtc", 8, seed=1))
    table = rich_table(tables.collect(folder), 80)
    headings = [str(column.header).replace("\n", " ") for column in table.columns]
    most = ["scheduler", "service/s", "x vtc", "Jain, all active", "TTFT P50 (s)", "TTFT P99 (s)"]
    assert headings[: len(most)] == most
    assert "other=2000" in printed(folder, 80)


def test_lost_requests_are_told_under_the_table(tmp_path):
    lost = requests(
        {"client": "a", "arrival": 0, "finish": 2},
        rejected("b", 1.0),
        rejected("b", 2.0),
        {**rejected("b", 3.0), "status": "cancelled"},
    )
    folder = experiment(tmp_path, run(lost), served("vtc", 4))
    assert tables.warnings(tables.collect(folder)) == [
        "chat, fcfs: 2 of 4 requests were rejected (larger than the KV pool)",
        "chat, fcfs: 1 of 4 requests were cancelled (each came after one that was not served)",
    ]
    assert "chat, fcfs: 2 of 4 requests were rejected" in printed(folder, 200)


def test_summary_csv_holds_what_collect_returns(folder):
    frame = tables.collect(folder)
    written = pd.read_csv(tables.write_summary(frame, folder))
    assert written.columns.tolist() == frame.columns.tolist()
    assert written["client_service_per_s"].tolist() == pytest.approx(frame["client_service_per_s"].tolist())


def test_headline_names_the_fastest_of_the_fair(folder):
    first = headlines(tables.collect(folder))[0]
    # dlpm:quantum=8000 is faster but less fair: services 100 and 41, Jain 141^2 / (2 (100^2 + 41^2)) = 0.85.
    assert first.sentence == "dlpm:quantum=1000: 48 service/s, 1.27x vtc's, at Jain 0.997"
    assert not first.alike


def test_the_answer_counts_the_settings_each_scheduler_wins(folder):
    found = headlines(tables.collect(folder))
    assert [headline.winner for headline in found] == ["dlpm:quantum=1000", "fcfs"]
    assert [place.scheduler for place in found[0].ranking if place.fair] == [
        "dlpm:quantum=1000", "vtc", "fcfs", "mine",
    ]  # fmt: skip
    assert answer(found) == (
        "The fastest of the fair schedulers, of 2 settings: dlpm:quantum=1000 in 1, fcfs in 1."
    )


def test_a_place_names_both_indices(folder):
    frame = tables.collect(folder).assign(jain_actual_backlogged=0.5)
    place = headlines(frame)[0].ranking[0]
    assert (place.jain, place.jain_actual) == ("0.997", "0.500")


def invalid(scheduler, seconds, **labels):
    one = served(scheduler, seconds, **labels)
    return replace(one, manifest=replace(one.manifest, invalid=["the client was late"]))


def test_an_invalid_run_is_no_part_of_any_number(tmp_path):
    folder = experiment(tmp_path, served("vtc", 4), invalid("vtc", 1, seed=1), invalid("dlpm", 1))
    frame = tables.collect(folder)
    assert frame["invalid"].isna().tolist() == [True, False, False]
    (row,) = tables.rows(frame)
    assert (row.scheduler, row.seeds, value(row, "client_service_per_s").text) == ("vtc", 1, "50")
    assert tables.excluded(frame) == {("chat", "dlpm"): "the client was late"}
    assert "invalid: 02-dlpm: the client was late" in tables.warnings(frame)
    (headline,) = headlines(frame)
    assert headline.winner == "vtc"
    assert headline.sentence.startswith("vtc: 50 service/s")
    last = headline.ranking[-1]
    assert (last.scheduler, last.service, last.reason) == ("dlpm", "", "the client was late")


def test_without_a_valid_run_nobody_wins(tmp_path):
    frame = tables.collect(experiment(tmp_path, invalid("vtc", 4), invalid("dlpm", 2)))
    assert tables.rows(frame) == []
    assert answer(headlines(frame)).startswith("Nobody wins")
    console = Console(file=io.StringIO(), width=120)
    console.print(rich_table(frame, 120))
    assert console.file.getvalue().count("invalid") == 2 + 2  # in the table, and below it with the reason


def favourite(scheduler="mine", **labels):
    """Serves client a at once and never client b: a flattering run, if one looks at the served alone."""
    return run(
        requests(
            {
                "client": "a",
                "arrival": 0,
                "admitted": 0.1,
                "finish": 1,
                "prompt_tokens": 98,
                "cached_tokens": 98,
            },
            {
                "client": "a",
                "arrival": 0,
                "admitted": 0.1,
                "finish": 1,
                "prompt_tokens": 98,
                "cached_tokens": 98,
            },
            starved("b", 0.0),
            starved("b", 0.0),
        ),
        scheduler=scheduler,
        **labels,
    )


def test_a_starving_scheduler_gets_no_flattering_number(tmp_path):
    frame = tables.collect(experiment(tmp_path, served("vtc", 4), favourite()))
    frame = frame.assign(invalid=None)  # whatever the validity checks say of it
    vtc, mine = tables.rows(frame)
    assert not any(shown.best for shown in mine.values.values())
    assert value(vtc, "hit_rate").text == "0.0"
    assert value(mine, "client_service_per_s").text == "none"
    assert value(mine, "well_ttft_p99").text == "never"
    assert "chat, mine: 2 of 4 requests were starved (the scheduler never admitted them)" in tables.warnings(
        frame
    )
    (headline,) = headlines(frame)
    assert headline.winner == "vtc"
    assert "mine" not in headline.sentence
    assert [place.scheduler for place in headline.ranking if place.fair] == ["vtc"]


def test_an_experiment_of_starving_schedulers_has_no_winner(tmp_path):
    frame = tables.collect(experiment(tmp_path, favourite("x"), favourite("y"))).assign(invalid=None)
    (headline,) = headlines(frame)
    assert (headline.winner, headline.sentence) == (None, None)


def test_seeds_of_which_one_starved_have_no_deviation(tmp_path):
    frame = tables.collect(experiment(tmp_path, favourite(), served("mine", 4, seed=1))).assign(invalid=None)
    (row,) = tables.rows(frame)
    assert value(row, "well_ttft_p99").text == "never"


def test_goodput_is_a_column_where_there_is_a_goal(tmp_path):
    folder = experiment(tmp_path, served("vtc", 4), served("dlpm", 2))
    without = tables.collect(folder)
    assert "goodput_per_s" not in {column.key for column in tables.shown_columns(without)}
    frame = tables.collect(folder, Slo(ttft=3))
    vtc, dlpm = tables.rows(frame)
    assert value(vtc, "goodput_per_s").text == "0.00"
    assert value(dlpm, "goodput_per_s").text == "1.00"


def test_headline_admits_that_all_are_alike(tmp_path):
    found = headlines(tables.collect(experiment(tmp_path, served("fcfs", 4), served("vtc", 4))))
    assert found[0].sentence.startswith("all 2 alike")
    assert answer(found) == "The fastest of the fair schedulers, of 1 setting: all alike in 1."


def test_a_scheduler_that_fell_back_on_another_is_told(tmp_path):
    def own(active, seed):
        one = served("sglang:lpm", 4, seed=seed)
        asked = {**one.manifest.scheduler, "target": "sglang:lpm"}
        manifest = replace(one.manifest, scheduler=asked, engine={"active": active})
        return replace(one, manifest=manifest)

    frame = tables.collect(
        experiment(tmp_path, own({"lpm": 88, "fcfs": 12}, 0), own({"lpm": 5}, 1), served("lpm", 4))
    )
    assert tables.warnings(frame) == ["chat, sglang:lpm, seed 0: fcfs in 12% of passes"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "experiment.json is missing"),
        ("{", "experiment.json: not an index"),
        ('{"name": "x", "command": "", "cells": []}', "lists no finished cell"),
        ('{"name": "x", "command": "", "cells": ["gone"]}', "gone: not a run folder"),
    ],
)
def test_a_damaged_folder_is_bad_input(tmp_path, content, problem):
    if content is not None:
        (tmp_path / "experiment.json").write_text(content)
    with pytest.raises(BadInput, match=problem) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_manifest_without_labels_is_bad_input(folder):
    path = folder / "cells" / "02-vtc" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["labels"]["policy"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match="labels miss policy"):
        load(folder)
