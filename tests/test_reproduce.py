"""Reproductions: how values are compared and written, the authors' engine, and what is committed."""

from __future__ import annotations

from collections.abc import Mapping
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from rich.console import Console
from synthetic_runs import requests
from typer.testing import CliRunner

from suite import experiment, policies
from suite.backends.base import Outcome
from suite.cli import app
from suite.errors import BadInput
from suite.report.experiment import Experiment
from suite.reproduce import hosts, making, vtc_table2
from suite.reproduce.lightllm import ADAPTER_TOKENS, PATIENCE, LightLLM
from suite.reproduce.reproduction import Comparison, Reproduction, available, chosen
from suite.reproduce.values import (
    Quantity,
    Table,
    Value,
    distance,
    frame,
    furthest,
    has_order,
    listed,
    orders,
    percent,
    within,
)
from suite.reproduce.vtc_fig3 import completed, differences
from suite.results import read_manifest
from suite.trace import Header, Request, Segment, Trace

REFERENCE = Path(__file__).resolve().parents[1] / "results/reference"

SPEED, JAIN = Quantity("speed", 1), Quantity("Jain", 2)


# -- values -----------------------------------------------------------------------------------------------


def test_deviation_is_relative_to_the_paper():
    assert Value("a", SPEED, 110.0, 100.0).deviation == pytest.approx(0.1)
    assert Value("a", SPEED, 110.0).deviation is None
    assert distance(
        [Value("a", SPEED, 110.0, 100.0), Value("b", SPEED, 70.0, 100.0), Value("c", SPEED, 1.0)]
    ) == (pytest.approx(0.2))


def test_percent_marks_the_sign_and_shows_no_negative_zero():
    assert [percent(x, "+") for x in (0.251, -0.251, -0.0001, None)] == ["+25.1 %", "-25.1 %", "0.0 %", "-"]
    assert percent(0.251) == "25.1 %"


def test_order_is_that_of_the_paper_by_some_quantities():
    values = [
        Value("a", SPEED, 1.0, 10.0), Value("b", SPEED, 3.0, 20.0), Value("c", SPEED, 2.0),
        Value("a", JAIN, 0.9, 0.5), Value("b", JAIN, 0.8, 0.6),
    ]  # fmt: skip
    assert has_order(values[:2])
    assert not has_order(values[3:])
    assert has_order([Value("a", SPEED, 3.0, 10.0), Value("b", SPEED, 1.0, 10.0)]), "the paper's are equal"
    assert orders(values) == "the order is the paper's by speed; the order is not the paper's by Jain"


def test_the_furthest_value_is_named_without_its_group():
    values = [
        Value("here: a", SPEED, 9.0, 10.0),
        Value("here: b", SPEED, 5.0, 10.0),
        Value("here: c", SPEED, 1.0),
    ]
    assert furthest(values) == "the largest deviation is -50.0 % (speed of b: 5.0, the paper 10.0)"


def test_near_is_measured_in_standard_deviations():
    values = [
        Value("a", SPEED, 10.0, 12.0, 1.0),
        Value("b", SPEED, 10.0, 12.1, 1.0),
        Value("c", SPEED, 10.0, 12.0),
    ]
    assert within(values) == "1 of 2 of the paper's values lie within two standard deviations of ours"


def test_lists_read_as_people_write_them():
    assert [listed(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


def test_a_table_shows_the_papers_values_where_it_has_any():
    table = Table(
        "t",
        "scheduler",
        (Value("x|y", SPEED, 1.0, 2.0, 0.5), Value("x|y", JAIN, 0.5), Value("z", JAIN, 0.25)),
    )
    assert table.markdown().splitlines() == [
        "| scheduler | speed | paper | deviation | Jain |",
        "| --- | --- | --- | --- | --- |",
        "| x&#124;y | 1.0 ± 0.5 | 2.0 | -50.0 % | 0.50 |",
        "| z | - | - | - | 0.25 |",
    ]


# -- where they are, how they are made --------------------------------------------------------------------


def test_reproductions_are_found_by_looking_and_need_ready_experiments():
    found = available()
    assert {"dlpm-fig1", "vtc-fig3", "vtc-table2"} <= set(found)
    assert [one.name for one in chosen("all")] == list(found)
    for name, one in found.items():
        assert one.name == name
        assert set(one.experiments) <= set(experiment.ready())


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(BadInput, match="no reproduction 'vtc-tabel2'; did you mean 'vtc-table2'"):
        chosen("vtc-tabel2")


def test_a_missing_public_file_is_told_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SUITE_TRACES", str(tmp_path))
    with pytest.raises(
        BadInput, match=r"vtc-table2: file: 'vtc/results/FCFS_real.jsonl' .* set SUITE_TRACES"
    ):
        making.check(chosen("vtc-table2")[0])


def test_without_a_name_the_command_lists_all():
    listing = CliRunner().invoke(app, ["reproduce"])
    assert listing.exit_code == 0
    assert all(name in listing.output for name in available())


class Tiny(Reproduction):
    """Requests served, of a workload of a few."""

    name = "tiny"
    title = "A tiny one"
    shows = "\nHow many are served.\n"
    assumptions = "None."
    notes = "## Notes\n\nNone either."
    experiments = ("tiny.yaml",)

    def compare(self, runs: Mapping[str, Experiment]) -> Comparison:
        served = [
            float((cell.run().requests["status"] == "finished").sum()) for cell in runs["tiny.yaml"].cells
        ]
        table = Table("Served", "scheduler", (Value("fcfs", SPEED, served[0], 2 * served[0]),))
        return Comparison((table,), ("Half of it agrees.",), Figure(figsize=(1, 1)), "Nothing to see.")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    monkeypatch.chdir(tmp_path)
    workload = "{family: shared_document, duration: 5, rate: 2, documents: 1, document_tokens: 50, "
    workload += "question_tokens: 5, output_tokens: 5}"
    Path("tiny.yaml").write_text(f"name: tiny\nworkloads: [{workload}]\nschedulers: [fcfs]\n")
    return Tiny()


def test_a_reproduction_runs_once_and_writes_the_same_folder_again(tiny: Tiny):
    quiet = Console(file=StringIO())
    first = making.run(tiny, 1, "suite reproduce tiny", quiet)
    folder = making.write(tiny, Path("out"))
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    again = making.run(tiny, 1, "suite reproduce tiny", quiet)
    assert ([o.finished for o in first], [o.skipped for o in again]) == ([1], [1])
    making.write(tiny, Path("out"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert set(files) == {"README.md", "table.csv", "figure.png"}
    manifest = read_manifest(next(Path("results/runs/tiny.yaml/cells").iterdir()))
    assert manifest.command == "suite reproduce tiny"


def test_the_page_holds_command_tables_findings_and_assumptions(tiny: Tiny):
    making.run(tiny, 1, "", Console(file=StringIO()))
    text = (making.write(tiny, Path("out")) / "README.md").read_text()
    parts = (
        "# A tiny one\n", "    suite reproduce tiny\n", "How many are served.", "## Served\n", "| fcfs |",
        "-50.0 %", "](figure.png)", "- Half of it agrees.", "## What was assumed\n\nNone.", "## Notes",
    )  # fmt: skip
    places = [text.find(part) for part in parts]
    assert -1 not in places
    assert places == sorted(places)


def test_a_cell_that_fails_is_told_and_nothing_is_written(tiny: Tiny, monkeypatch: pytest.MonkeyPatch):
    Path("mine.py").write_text(
        "from baselines.fcfs import FCFS\n\n\nclass Mine(FCFS):\n    name = ''\n\n"
        "    def candidates(self, waiting, now):\n        raise ValueError('no idea')\n"
    )
    Path("tiny.yaml").write_text(Path("tiny.yaml").read_text().replace("[fcfs]", "['mine.py:Mine']"))
    monkeypatch.setattr("suite.reproduce.reproduction.available", lambda: {"tiny": tiny})
    failed = CliRunner().invoke(app, ["reproduce", "tiny", "-o", "out"])
    assert failed.exit_code == 1
    assert "no idea" in failed.output
    assert not Path("out").exists()


# -- the authors' engine ----------------------------------------------------------------------------------


def hosted(rows: list[tuple[float, int, int]], pool: int, scheduler: str = "fcfs") -> Outcome:
    """Requests (arrival, prompt, output) of one client, served with a pool of that many tokens for them."""
    trace = Trace(
        Header("hand-made", 0, "test"),
        tuple(Request(f"r{i}", "a", t, (Segment(f"p{i}", p),), o) for i, (t, p, o) in enumerate(rows)),
    )
    host = LightLLM(model="llama-2-7b", gpu="a10g", kv_tokens=pool + ADAPTER_TOKENS)
    return host.run(trace, policies.parse(scheduler), Path(), lambda share, note="": None)


def served(rows: list[tuple[float, int, int]], pool: int) -> pd.DataFrame:
    """What became of them, first come, first served."""
    return hosted(rows, pool).requests


def test_admission_counts_what_is_held_at_once_and_no_more():
    """The first frees its 40 tokens before the second needs its last; the later that begins, the sooner."""
    rows = [(0.0, 20, 20), (0.0, 20, 50)]
    peak = 2 * (20 + 20)  # both with 20 tokens of output; later the second alone holds 70
    together = served(rows, peak + 1)
    assert together["admitted"].tolist() == [0, 0]
    apart = served(rows, peak)
    assert 0 < apart["admitted"][1] < apart["finish"][0]
    alone = served(rows, 71)  # in the first's 10th step: (19 - 10) * 2 + 30 + 21 = 69, the second alone 70
    assert alone["admitted"][1] == apart["admitted"][1]


def test_a_new_batch_waits_for_ten_decode_steps():
    frame = served([(0.0, 20, 50), (0.01, 20, 50)], 1000)
    step = (frame["finish"][0] - frame["first_token"][0]) / 49
    waited = (frame["admitted"][1] - frame["first_token"][0]) / step
    assert PATIENCE * 0.9 < waited < (PATIENCE + 1) * 1.1


def test_what_can_never_fit_is_rejected():
    assert served([(0.0, 50, 50)], 100)["status"].tolist() == ["rejected"]
    assert served([(0.0, 50, 49)], 100)["status"].tolist() == ["finished"]


_rows = st.lists(st.tuples(st.floats(0, 5), st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=30)


@given(_rows, st.sampled_from(["fcfs", "vtc", "dlpm"]))
@settings(max_examples=60)
def test_all_are_served_whole_and_nobody_is_preempted(rows: list[tuple[float, int, int]], scheduler: str):
    outcome = hosted(sorted(rows), 200, scheduler)
    frame = outcome.requests
    assert set(frame["status"]) == {"finished"}
    assert frame["output_tokens"].tolist() == [output for _, _, output in sorted(rows)]
    assert not frame["preemptions"].any()
    assert (frame["arrival"] <= frame["admitted"]).all()
    assert most_held(outcome) < 200


def most_held(outcome: Outcome) -> int:
    """Tokens held at once at most, by the prompts and outputs of those that run."""
    frame, streams = outcome.requests, outcome.streams
    assert streams is not None

    def held(time: float) -> int:
        running = frame[(frame["admitted"] <= time) & (time < frame["finish"])]
        out = streams[streams["id"].isin(running["id"]) & (streams["time"] <= time)]
        return int(running["prompt_tokens"].sum() + out["tokens"].sum())

    return max(held(time) for time in {*frame["admitted"], *streams["time"]})


# -- VTC's figures ----------------------------------------------------------------------------------------


def test_service_is_spread_between_first_token_and_end():
    frame = requests(
        {"client": "a", "arrival": 0, "first_token": 2, "finish": 6, "prompt_tokens": 10, "output_tokens": 5},
        {"client": "b", "arrival": 0, "first_token": 4, "finish": 8, "prompt_tokens": 10, "output_tokens": 5},
    )
    assert differences(frame, np.array([0.0, 2.0, 4.0, 5.0, 6.0, 8.0])).tolist() == [0, 0, 10, 10, 10, 0]
    assert completed(frame, 5).to_dict() == {"a": 0, "b": 0}
    assert completed(frame, 6).to_dict() == {"a": 20, "b": 0}


def test_the_overload_runs_of_the_artifact(artifact: Path):
    """Jain of service completed until the arrivals end; unequal under FCFS, equal under VTC."""
    from suite.metrics.fairness import jain
    from suite.reproduce import artifact as reader

    found = {name: completed(*reader.results(f"{name}_overload")) for name in ("FCFS", "VTC")}
    assert jain(found["FCFS"]) == pytest.approx(0.900, abs=5e-4)
    assert jain(found["VTC"]) == pytest.approx(0.9997, abs=5e-5)


def test_the_slowdown_is_measured_on_the_overload_run(artifact: Path):
    assert hosts.slowdown() == pytest.approx(1.096, abs=0.01)


def test_the_published_half_of_table_2_is_what_is_committed(artifact: Path):
    made = frame([vtc_table2.published()]).to_csv(index=False, float_format="%.6g").splitlines()
    committed = (REFERENCE / "vtc-table2/table.csv").read_text().splitlines()
    assert committed[: len(made)] == made
    assert vtc_table2.published().markdown() in (REFERENCE / "vtc-table2/README.md").read_text()


@pytest.mark.parametrize("name", available())
def test_what_is_committed_fits_a_repository_and_is_listed(name: str):
    folder = REFERENCE / name
    assert {path.name for path in folder.iterdir()} == {"README.md", "table.csv", "figure.png"}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 500_000
    assert f"`suite reproduce {name}`" in (REFERENCE / "README.md").read_text()
    one = available()[name]
    text = (folder / "README.md").read_text()
    assert one.assumptions.strip() in text
    assert one.shows.strip() in text
    assert all(case in text for case in pd.read_csv(folder / "table.csv")["case"])


@pytest.fixture
def artifact(traces: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if not (traces / "vtc").is_dir():
        pytest.skip(
            f"no files of the VTC artifact in {traces}: set SUITE_TRACES to the folder that holds them"
        )
    monkeypatch.setenv("SUITE_TRACES", str(traces))
    return traces / "vtc"
