"""Verdicts on runs whose truth is known: who wins, who loses, and of whom nothing can be said."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import synthetic_runs
from rich.console import Console
from synthetic_runs import requests, starved

from suite.metrics import paired
from suite.metrics.summary import summarise
from suite.report import effects, scorecard, tables
from suite.report.effects import Comparison, Effect, compared, verdicts
from suite.report.experiment import load
from suite.results import Run

REQUESTS = 60
Delay = Callable[[int, float], float]


def run(seed: int, delay: Delay = lambda i, random: random, clients: int = 2, **labels: Any) -> Run:
    """Requests at one second's distance that get their first token after `delay(i, a random time)`.

    The random times are the same for all runs of a seed. Client c0 misbehaves. A request takes a second more
    for its output, so makespan and windows hardly depend on the delays.
    """
    times = np.random.default_rng(seed).uniform(1, 2, REQUESTS)
    rows = [
        {
            "client": f"c{i % clients}",
            "arrival": float(i),
            "admitted": i + delay(i, random),
            "first_token": i + delay(i, random),
            "finish": i + delay(i, random) + 1,
            "cached_tokens": 4 + seed % 2,
        }
        for i, random in enumerate(times)
    ]
    return synthetic_runs.run(requests(*rows), misbehaving=("c0",), seed=seed, **labels)


def starving(seed: int, **labels: Any) -> Run:
    """A run that serves c0 at once and c1 never."""
    served = [{"client": "c0", "arrival": float(i), "finish": i + 0.1} for i in range(0, REQUESTS, 2)]
    left = [starved("c1", float(i)) for i in range(1, REQUESTS, 2)]
    rows = sorted([*served, *left], key=lambda row: float(row["arrival"]))
    return synthetic_runs.run(requests(*rows), misbehaving=("c0",), seed=seed, **labels)


def faster(i: int, random: float) -> float:
    return random / 2


def found(ours: list[Run], theirs: list[Run], **summary: Any) -> dict[str, Effect]:
    """The effects of runs of the same seeds, by metric; `summary` is put into that of the candidate."""

    def sampled(one: Run, **more: Any) -> paired.Sample:
        return paired.sample(one, {**summarise(one), "invalid": None, **more})

    pairs = {
        a.manifest.labels["seed"]: (sampled(a, **summary), sampled(b))
        for a, b in zip(ours, theirs, strict=True)
    }
    return {one.metric: one for one in compared([Comparison("s", "ours", "theirs", pairs)])}


def test_what_is_resampled_is_what_the_summary_says():
    one = run(3, clients=4)
    sample = paired.sample(one, summarise(one))
    units = paired._parts(sample, sample)
    each_once = np.ones((1, units.number), int)
    for column, statistic in paired._BY_REQUEST.items():
        assert statistic(sample, units)(each_once) == pytest.approx(sample.summary[column]), column


def test_twice_as_fast_wins_by_half():
    effect = found([run(seed, faster) for seed in range(4)], [run(seed) for seed in range(4)])
    for metric in ("well_ttft_p50", "well_ttft_p99", "worst_ttft_p99"):
        one = effect[metric]
        assert one.verdict == "wins"
        assert one.ratio == pytest.approx(0.5)
        assert one.low <= 0.5 <= one.high < 0.6
        assert one.candidate_value == pytest.approx(one.baseline_value / 2)
        assert (one.seeds, one.reason) == (4, None)
    sooner = effect["sooner"]
    assert (sooner.verdict, sooner.ratio, sooner.low, sooner.high) == ("wins", 2, 2, 2)
    assert sooner.shown == "100 % [100, 100]"
    assert effect["hit_rate"].verdict == "no difference seen"
    assert effect["hit_rate"].shown == "1.00 x [1.00, 1.00]"


def test_the_mirror_image_loses():
    effect = found([run(seed) for seed in range(4)], [run(seed, faster) for seed in range(4)])
    assert effect["well_ttft_p99"].verdict == "loses"
    assert effect["well_ttft_p99"].ratio == pytest.approx(2)
    assert (effect["sooner"].verdict, effect["sooner"].ratio) == ("loses", 0)


def test_the_same_runs_differ_in_nothing():
    runs = [run(seed) for seed in range(3)]
    effect = found(runs, runs)
    assert {one.verdict for one in effect.values()} == {"no difference seen"} | {
        effect["jain_actual_backlogged"].verdict
    }
    assert all(one.ratio in (1, None) for one in effect.values())
    assert effect["sooner"].candidate_value == 0.5
    assert found(runs, runs) == effect, "equal results, equal numbers"


def test_noise_alone_is_no_difference():
    others = [run(seed + 100) for seed in range(5)]
    relabelled = [
        replace(one, manifest=replace(one.manifest, labels={**one.manifest.labels, "seed": seed}))
        for seed, one in enumerate(others)
    ]
    effect = found(relabelled, [run(seed) for seed in range(5)])
    assert {one.verdict for one in effect.values()} <= {"no difference seen", "none"}
    assert effect["well_ttft_p50"].low < 1 < effect["well_ttft_p50"].high


def test_arms_on_different_traces_have_no_request_in_common():
    ours = run(0)
    other = replace(ours, manifest=replace(ours.manifest, trace={**ours.manifest.trace, "digest": "another"}))
    effect = found([other, run(1)], [run(0), run(1)])
    assert effect["sooner"].verdict == "none"
    assert "different traces" in str(effect["sooner"].reason)
    assert effect["well_ttft_p50"].low is not None


def test_one_seed_speaks_of_one_trace_and_not_of_whole_runs():
    effect = found([run(0, faster)], [run(0)])
    assert effect["well_ttft_p50"].verdict == "wins"
    assert effect["well_ttft_p50"].reason == "one seed: it speaks of this one trace only"
    for metric in ("client_service_per_s", "jain_client_all_active"):
        assert (effect[metric].verdict, effect[metric].low) == ("none", None)
        assert "one seed" in str(effect[metric].reason)


def test_a_starving_candidate_loses_and_wins_nothing():
    effect = found([starving(seed) for seed in range(3)], [run(seed) for seed in range(3)])
    assert {one.verdict for one in effect.values()} <= {"loses", "none", "no difference seen"}
    assert effect["client_service_per_s"].verdict == "loses"
    assert effect["client_service_per_s"].reason == "ours starved 30 requests under seed 0"
    for metric in ("well_ttft_p50", "well_ttft_p99", "worst_ttft_p99"):
        assert effect[metric].verdict == "loses"
        assert (effect[metric].ratio, effect[metric].low) == (None, None)
        assert effect[metric].reason == "infinite under ours: requests were never served"
    assert (effect["sooner"].verdict, effect["sooner"].ratio) == ("loses", 0)
    (verdict,) = verdicts(list(effect.values()))
    assert verdict.word == "loses"


def test_to_starve_as_the_baseline_does_is_no_win():
    runs = [starving(seed) for seed in range(3)]
    effect = found(runs, runs)
    assert {one.verdict for one in effect.values()} <= {"none", "no difference seen"}
    assert effect["well_ttft_p99"].reason == "infinite under both: requests were never served"


def test_an_invalid_candidate_loses_whatever_its_numbers():
    effect = found(
        [run(seed, faster) for seed in range(3)], [run(seed) for seed in range(3)], invalid="warm cache"
    )
    assert {one.verdict for one in effect.values()} == {"loses"}
    assert {one.reason for one in effect.values()} == {"not valid under seed 0: warm cache"}
    assert {one.low for one in effect.values()} == {None}
    (verdict,) = verdicts(list(effect.values()))
    assert "warm cache" in verdict.sentence


def test_an_invalid_baseline_proves_nothing():
    effect = found([run(0), run(1)], [run(0), run(1)])
    sample = paired.sample(run(0), {**summarise(run(0)), "invalid": None})
    broken = replace(sample, summary={**sample.summary, "invalid": "client was late"})
    assert effect
    effects_ = compared([Comparison("s", "ours", "theirs", {0: (sample, broken), 1: (sample, broken)})])
    assert {(one.verdict, one.reason) for one in effects_} == {
        ("none", "theirs is not valid: client was late")
    }


def test_a_window_too_short_ranks_nobody():
    effect = found(
        [run(seed, faster) for seed in range(3)], [run(seed) for seed in range(3)], all_active_s=0.1
    )
    assert effect["jain_client_all_active"].verdict == "none"
    assert "less than 5%" in str(effect["jain_client_all_active"].reason)


def test_many_comparisons_widen_each_interval():
    def slightly(i: int, random: float) -> float:
        return random * (1 + 0.02 * (i % 3))

    pairs = {
        seed: tuple(
            paired.sample(one, {**summarise(one), "invalid": None})
            for one in (run(seed, slightly), run(seed))
        )
        for seed in range(3)
    }

    def widths(times: int) -> list[float]:
        alike = {seed: (pair[1], pair[1]) for seed, pair in pairs.items()}
        others = [Comparison(f"{i}", "a", "b", alike) for i in range(times)]
        (one,) = [
            e
            for e in compared([Comparison("s", "a", "b", pairs), *others])
            if (e.setting, e.metric) == ("s", "well_ttft_p50")
        ]
        return [one.high - one.low, one.half_width]

    alone, among = widths(0), widths(20)
    assert among[0] > alone[0]
    assert among[1] > 2 * alone[1]


def test_with_many_clients_they_are_what_is_drawn():
    """Half the clients gain much, the others nothing; every part of the trace holds as many of both."""

    def by_client(i: int, random: float) -> float:
        return random / (3 if i % 2 else 1)

    def error(clients: int) -> float:
        pairs = [
            tuple(
                paired.sample(one, {**summarise(one), "invalid": None})
                for one in (run(seed, by_client, clients), run(seed, clients=clients))
            )
            for seed in range(2)
        ]
        found = paired.sooner(pairs)
        assert found is not None
        return found.error

    assert error(20) > 1.5 * error(19)


# -- words -----------------------------------------------------------------------------------------------


def effect(metric: str, verdict: effects.Word, setting: str = "s") -> Effect:
    (found,) = [one for one in effects.METRICS if one.column == metric]
    bounds = (None, None) if verdict == "none" else (1.1, 1.3)
    return Effect(
        setting, metric, found.title, found.better, "ours", "theirs", 1.2, 1.0, 1.2, *bounds, 3, verdict,
        "because" if verdict == "none" else None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("main", "word"),
    [
        (("wins", "no difference seen", "none"), "wins"),
        (("wins", "loses", "wins"), "wins and loses"),
        (("loses", "no difference seen", "none"), "loses"),
        (("no difference seen", "none", "none"), "no difference seen"),
        (("none", "none", "none"), "cannot be said"),
    ],
)
def test_the_word_goes_by_what_decides(main: tuple[effects.Word, ...], word: str):
    deciding = [effect(metric, verdict) for metric, verdict in zip(effects.MAIN, main, strict=True)]
    (verdict,) = verdicts([*deciding, effect("hit_rate", "loses")])
    assert verdict.word == word


def test_a_sentence_says_all():
    parts = zip(
        ("client_service_per_s", "well_ttft_p99", "hit_rate", "well_ttft_p50"),
        ("wins", "loses", "no difference seen", "none"),
        strict=True,
    )
    (verdict,) = verdicts([effect(metric, word) for metric, word in parts])
    assert verdict.sentence == (
        "ours against theirs on s: wins and loses: better in throughput 1.20 x [1.10, 1.30]; worse in "
        "TTFT P99 1.20 x [1.10, 1.30]; no difference seen in hit rate; not compared in TTFT P50 (because)"
    )


def test_totals_and_card_count_settings():
    found = [effect(metric, "wins", setting) for setting in "xyz" for metric in effects.MAIN]
    found += [effect(metric, "no difference seen", "[red]w") for metric in effects.MAIN]
    assert scorecard.totals(verdicts(found)) == [
        "ours against theirs: wins 3, no difference seen 1 of 4 settings"
    ]
    out = io.StringIO()
    Console(file=out, width=100).print(scorecard.card(found))
    assert "[red]w" in out.getvalue(), "names are no markup"
    assert out.getvalue().count("1.20+ 1.20+ 1.20+") == 3


def test_a_folder_is_compared_as_it_stands(tmp_path: Path):
    runs = [
        run(seed, delay, scheduler=name)
        for seed in range(3)
        for name, delay in (("mine:x=1", faster), ("vtc", lambda i, random: random))
    ]
    experiment = load(synthetic_runs.experiment(tmp_path, *runs))
    found = effects.effects(experiment, tables.collected(experiment), "mine:x=1", ["vtc", "gone"])
    assert {(one.setting, one.baseline) for one in found} == {("chat", "vtc")}
    assert {one.metric for one in found if one.verdict == "wins"} >= {"well_ttft_p50", "sooner"}
    frame = pd.read_csv(scorecard.write(found, tmp_path))
    assert list(frame["ratio"].dropna()) == pytest.approx(
        [one.ratio for one in found if one.ratio is not None]
    )
