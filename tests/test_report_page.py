"""Figures and the page: drawn from hostile names, self-contained, and the same bytes every time."""

from __future__ import annotations

import hashlib
import re
from html.parser import HTMLParser

import matplotlib
import pytest
from synthetic_runs import experiment, rejected, requests, run

from suite.report import figures, style, tables
from suite.report.experiment import load
from suite.report.html import write_report

HOSTILE = ("<script>alert(1)</script>", "$\\frac{1}$", "_hidden", "{{ 7 * 7 }}", "a\nb" + "x" * 99, "客户")


def crowd(scheduler, clients, seed=0, speed=1.0):
    """Each client sends three requests; they are served one after the other."""
    rows, now = [], 0.0
    for k in range(3):
        for i, client in enumerate(clients):
            arrival = 2.0 * k + 0.01 * i
            start = max(now, arrival)
            now = start + 0.5 / speed
            times = {"arrival": arrival, "admitted": start, "first_token": start + 0.1, "finish": now}
            rows.append({"client": client, **times, "prompt_tokens": 10 + i, "output_tokens": 4})
    return run(requests(*rows), misbehaving=clients[:1], scheduler=scheduler, seed=seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = experiment(
        tmp_path_factory.mktemp("hostile"),
        crowd("fcfs", HOSTILE),
        crowd("dlpm:quantum=1000", HOSTILE, speed=2),
        crowd("dlpm:quantum=1000", HOSTILE, seed=1, speed=3),
        crowd("dlpm:quantum=2000", HOSTILE, speed=4),
        crowd("<b>mine</b>", HOSTILE, speed=3),
    )
    write_report(made)
    return made


class Page(HTMLParser):
    """The tags of a page and everything that it would load."""

    def __init__(self):
        super().__init__()
        self.tags, self.sources, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def page(folder):
    parser = Page()
    parser.feed((folder / "report.html").read_text(encoding="utf-8"))
    return parser


def test_names_are_text_and_never_markup(page):
    assert "script" not in page.tags
    assert page.tags.count("b") == len(page.sources)  # the figures' titles, none of a name
    text = "".join(page.text)
    assert "<script>alert(1)</script>" in text
    assert "<b>mine</b>" in text
    assert "{{ 7 * 7 }}" in text


def test_the_page_is_self_contained(page, folder):
    assert len(page.sources) == len(list((folder / "figures").glob("*.png"))) == 5
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not re.search(r"url\(|@import|https?://", (folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_tells_the_answer_before_the_table(page):
    text = " ".join(" ".join(page.text).split())
    assert text.index("Highest throughput dlpm:quantum=2000: ") < text.index("All schedulers")


def digests(folder):
    paths = [*folder.glob("*.csv"), *folder.glob("*.html"), *folder.glob("figures/*")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_a_second_report_has_the_same_bytes(folder):
    before = digests(folder)
    assert len(before) == 2 + 2 * 5
    write_report(folder)
    assert digests(folder) == before


def test_drawing_leaves_matplotlib_as_it_was(folder):
    before = dict(matplotlib.rcParams)
    loaded = load(folder)
    figures.write_figures(loaded, tables.collected(loaded))
    assert dict(matplotlib.rcParams) == before


def legend_texts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_thirty_clients_are_cut_to_those_that_can_be_told_apart():
    names = tuple(f"client {i}" for i in range(30))
    runs = {"fcfs": crowd("fcfs", names)}
    with style.styled():
        lines, bars = figures.service_over_time(runs), figures.latency_bars(runs)
    assert len(legend_texts(lines)) == style.MOST_CLIENTS + 1
    assert legend_texts(lines)[0] == "client 0 (misbehaving)"
    assert legend_texts(lines)[-1] == "22 others"
    assert lines.legends[0].get_title().get_text().startswith("8 of 30 clients in colour")
    assert len(lines.axes[0].get_lines()) == 30
    assert len(bars.axes[0].get_yticks()) == figures.MOST_BARS
    assert bars.legends[0].get_title().get_text().startswith("12 of 30 clients shown")


def test_service_over_time_draws_the_cumulative_client_service():
    with style.styled():
        figure = figures.service_over_time({"fcfs": crowd("fcfs", ("a", "b"))})
    ends = sorted(line.get_ydata()[-1] for line in figure.axes[0].get_lines())
    assert ends == [3 * (10 + 8), 3 * (11 + 8)]


def test_response_over_time_draws_mean_ttft_by_arrival():
    frame = requests(
        {"client": "a", "arrival": 0, "first_token": 1, "finish": 3},
        {"client": "a", "arrival": 0.1, "first_token": 3.1, "finish": 4},
        {"client": "a", "arrival": 24, "first_token": 24.5, "finish": 25},
    )
    with style.styled():
        figure = figures.response_over_time({"fcfs": run(frame)})
    assert figure.axes[0].get_lines()[0].get_ydata().tolist() == pytest.approx([2, 0.5])
    assert figure.axes[0].get_lines()[0].get_xdata().tolist() == pytest.approx([0.5, 23.5])


def test_tradeoff_joins_a_sweep_and_names_what_it_cannot_draw(folder):
    frame = tables.collect(folder)
    with style.styled():
        figure = figures.tradeoff(frame)
    assert "dlpm, by quantum" in legend_texts(figure)
    drawn = {text.get_text() for text in figure.axes[0].texts}
    assert {"1000", "2000†"} <= drawn  # the faster, the shorter the time in which all are active
    frame.loc[frame["policy"] == "fcfs", "jain_client_all_active"] = None
    with style.styled():
        without = figures.tradeoff(frame)
    assert "no such Jain: fcfs" in {text.get_text() for text in without.axes[0].texts}


def test_an_engines_own_policy_has_no_parameter_at_its_point(tmp_path):
    frame = requests(*({"client": c, "arrival": 0, "first_token": 1, "finish": 3} for c in "ab"))
    own = run(frame, scheduler="sglang:lpm", policy="sglang:lpm")
    with style.styled():
        figure = figures.tradeoff(tables.collect(experiment(tmp_path, own)))
    assert legend_texts(figure) == ["sglang:lpm"]
    assert [text.get_text() for text in figure.axes[0].texts] == []


@pytest.mark.filterwarnings("error")
def test_a_run_in_which_nothing_was_served_makes_a_sane_report(tmp_path):
    frame = requests(rejected("a", 0.0), rejected("b", 1.0))
    made = experiment(tmp_path, run(frame), run(frame, scheduler="vtc"))
    text = write_report(made).read_text(encoding="utf-8")
    assert "<li>chat, fcfs: 2 of 2 requests were rejected (larger than the KV pool)</li>" in text
    assert "nobody: no request was served" in text
    runs = {"fcfs": run(frame), "vtc": run(frame, scheduler="vtc")}
    with style.styled():
        drawn = [plan.draw(runs) for plan in figures._PER_SETTING]
    for figure in [*drawn, figures.tradeoff(tables.collect(made))]:
        assert all("no data" in [text.get_text() for text in axes.texts] for axes in figure.axes)
        assert "nan" not in figure.legends[0].get_title().get_text()


def test_figures_with_data_do_not_say_that_they_have_none(folder):
    runs = {"fcfs": crowd("fcfs", ("a", "b")), "vtc": run(requests(rejected("a", 0.0)), scheduler="vtc")}
    with style.styled():
        drawn = {plan.stem: plan.draw(runs) for plan in figures._PER_SETTING}
    for stem, figure in drawn.items():
        empty = [[text.get_text() for text in axes.texts] == ["no data"] for axes in figure.axes]
        assert empty == ([False, False] if stem == "fairness" else [False, True])


def test_points_of_one_label_share_it_once():
    with style.styled():
        axes = style.panels(1, 3, 3).axes[0]
    figures._annotate(axes, [figures._Label(0.5, 0.5, text) for text in ("†", "†", "1000", "†")])
    assert [text.get_text() for text in axes.texts] == ["†, 1000"]


def test_ticks_of_nearly_constant_times_are_plain_and_differ():
    rows = [{"client": "a", "arrival": t, "first_token": t + 0.0344856, "finish": t + 1} for t in range(24)]
    with style.styled():
        figure = figures.response_over_time({"fcfs": run(requests(*rows))})
        figure.draw_without_rendering()
    axis = figure.axes[0].yaxis
    labels = [label.get_text() for label in [*axis.get_ticklabels(), *axis.get_ticklabels(minor=True)]]
    shown = [label for label in labels if label]
    assert len(shown) == len(set(shown)) > 0
    assert all(re.fullmatch(r"[0-9.]+", label) for label in shown)


def test_schedulers_keep_their_looks_and_strangers_differ():
    looks = style.policies(["vtc", "b", "a"])
    assert looks["vtc"] == style.policies(["fcfs", "vtc"])["vtc"]
    assert len({look.color for look in looks.values()}) == len(looks)
    assert len({look.marker for look in looks.values()}) == len(looks)
