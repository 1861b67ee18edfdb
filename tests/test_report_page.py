"""The page: hostile names stay text, self-contained, the answer first, the same bytes every time."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib
import pytest
from crowds import HOSTILE, crowd
from synthetic_runs import experiment, rejected, requests, run, starved

from suite.report.html import write_report


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    late = crowd("<i>late</i>", HOSTILE, speed=9)
    made = experiment(
        tmp_path_factory.mktemp("hostile"),
        crowd("fcfs", HOSTILE),
        crowd("dlpm:quantum=1000", HOSTILE, speed=1.1),
        crowd("dlpm:quantum=1000", HOSTILE, seed=1, speed=1.12),
        crowd("dlpm:quantum=2000", HOSTILE, speed=1.08),
        crowd("<b>mine</b>", HOSTILE, speed=1.04),
        replace(late, manifest=replace(late.manifest, invalid=["the <i>client</i> was late"])),
    )
    index = json.loads((made / "experiment.json").read_text())
    labels = {"workload": "chat", "scheduler": "crash", "policy": "crash", "seed": 0}
    failure = {"cell": "chat_crash", "labels": labels, "reason": "<u>KeyError</u>"}
    (made / "experiment.json").write_text(json.dumps({**index, "failed": [failure]}))
    write_report(made)
    return made


class Page(HTMLParser):
    """The tags of a page, its texts, everything that it would load, and its content security policy."""

    def __init__(self):
        super().__init__()
        self.tags, self.sources, self.text, self.policy, self.scripts = [], [], [], "", []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]
        found = dict(attrs)
        self.policy = found["content"] if "http-equiv" in found else self.policy

    def handle_data(self, data):
        (self.scripts if self.tags and self.tags[-1] == "script" else self.text).append(data)


def parsed(folder):
    parser = Page()
    parser.feed((folder / "report.html").read_text(encoding="utf-8"))
    return parser


@pytest.fixture(scope="module")
def page(folder):
    return parsed(folder)


def test_names_are_text_and_never_markup(page):
    assert page.tags.count("script") == 1
    assert not {"i"} & set(page.tags)
    pictures = [source for source in page.sources if source.startswith("data:")]
    assert page.tags.count("b") == len(pictures) + 1  # the figures' titles and the winner, none of a name
    text = "".join(page.text)
    for name in (*HOSTILE, "<b>mine</b>", "<i>late</i>"):
        assert name in text


def test_the_page_is_self_contained(page, folder):
    pictures = [source for source in page.sources if source.startswith("data:image/png;base64,")]
    assert len(pictures) == len(list((folder / "figures").glob("*.png"))) > 8
    assert [source for source in page.sources if source not in pictures] == ["#notes"]
    assert not re.search(r"url\(|@import|https?://", (folder / "report.html").read_text(encoding="utf-8"))


def test_only_the_page_s_own_script_may_run(page):
    digest = base64.b64encode(hashlib.sha256("".join(page.scripts[:1]).encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page.policy
    assert page.policy.startswith("default-src 'none'")
    assert "unsafe" not in page.policy


def test_the_page_tells_the_answer_before_the_table(page):
    text = " ".join(" ".join(page.text).split())
    answer = text.index("The fastest of the fair schedulers, of 1 setting: dlpm:quantum=1000 in 1.")
    against = text.index("dlpm:quantum=1000 against fcfs:")
    assert answer < text.index("5 of 6 runs are valid") < against < text.index("All schedulers")


def test_a_cell_that_failed_is_told_with_its_reason(page):
    assert "failed: chat_crash: <u>KeyError</u>" in " ".join(page.text)
    assert "u" not in page.tags


def test_a_run_that_is_no_result_is_named_with_its_reason_and_left_out(page, folder):
    text = " ".join(" ".join(page.text).split())
    assert text.count("not ranked: the <i>client</i> was late") == 2  # in the ranking and in the table
    drawn = (folder / "figures" / "tradeoff.csv").read_text()
    assert "mine" in drawn
    assert "late" not in drawn


def digests(folder):
    paths = [*folder.glob("*.csv"), *folder.glob("*.html"), *folder.glob("figures/*")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_a_second_report_has_the_same_bytes_and_leaves_matplotlib_as_it_was(folder):
    before, settings = digests(folder), dict(matplotlib.rcParams)
    assert {".png", ".pdf", ".csv"} == {path.suffix for path in (folder / "figures").iterdir()}
    write_report(folder)
    assert digests(folder) == before
    assert dict(matplotlib.rcParams) == settings


def test_what_is_invalid_is_drawn_when_asked_for(tmp_path):
    late = crowd("late", ("a", "b"))
    late = replace(late, manifest=replace(late.manifest, invalid=["it was late"]))
    made = experiment(tmp_path, late)
    assert "None: no run is valid." in write_report(made).page.read_text(encoding="utf-8")
    assert not (made / "figures").exists()
    written = write_report(made, with_invalid=True)
    assert "late" in (made / "figures" / "tradeoff.csv").read_text()
    assert "0 of 1 runs are valid" in written.page.read_text(encoding="utf-8")


@pytest.fixture
def undrawn(monkeypatch):
    """The page alone: what figures make of such runs is tested with the figures."""
    monkeypatch.setattr("suite.report.html.write_figures", lambda *_: [])


@pytest.mark.usefixtures("undrawn")
def test_a_run_in_which_nothing_was_served_makes_a_sane_page(tmp_path):
    frame = requests(rejected("a", 0.0), rejected("b", 1.0))
    made = experiment(tmp_path, run(frame), run(frame, scheduler="vtc"))
    text = write_report(made).page.read_text(encoding="utf-8")
    assert "<li>chat, fcfs: 2 of 2 requests were rejected (larger than the KV pool)</li>" in text
    assert "Nobody wins" in text
    assert ">nan<" not in text


@pytest.mark.usefixtures("undrawn")
def test_the_page_of_a_starving_scheduler_says_so(tmp_path):
    well = requests(*({"client": c, "arrival": 0, "admitted": 1, "finish": 9} for c in "ab"))
    rows = [{"client": "a", "arrival": 0, "admitted": 0.1, "finish": 1}, starved("b", 0.0)]
    made = experiment(tmp_path, run(well, scheduler="vtc"), run(requests(*rows), scheduler="favourite"))
    text = " ".join(" ".join(write_report(made).page.read_text(encoding="utf-8").split()).split())
    assert "The fastest of the fair schedulers, of 1 setting: vtc in 1." in text
    assert "vtc against favourite" in text
    assert "favourite against vtc" not in text
    assert "never admitted" in text
