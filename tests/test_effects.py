"""Verdicts on runs whose truth is known: who wins, who loses, and of whom nothing can be said."""

from __future__ import annotations

import io
import json
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

from suite.errors import BadInput
from suite.metrics import paired
from suite.metrics.summary import summarise
from suite.report import effects, scorecard, tables
from suite.report.effects import Comparison, Effect, compared
from suite.report.experiment import load
from suite.report.verdicts import verdicts
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
    assert verdict.sentence == "ours against theirs on s: loses: not valid under seed 0: warm cache"


def test_an_invalid_baseline_proves_nothing():
    effect = found([run(0), run(1)], [run(0), run(1)])
    sample = paired.sample(run(0), {**summarise(run(0)), "invalid": None})
    broken = replace(sample, summary={**sample.summary, "invalid": "client was late"})
    assert effect
    effects_ = compared([Comparison("s", "ours", "theirs", {0: (sample, broken), 1: (sample, broken)})])
    assert {(one.verdict, one.reason) for one in effects_} == {
        ("none", "theirs is not valid: client was late")
    }


def test_what_is_0_in_many_draws_has_no_ratio():
    """Of the well-behaved client's 30 requests 16 wait, so that P50 is 0 in about half the draws."""

    def waits(i: int, random: float) -> float:
        return random if i % 4 == 1 or i == 3 else 0

    one = found([run(seed, waits) for seed in range(3)], [run(seed, waits) for seed in range(3)])
    p50 = one["well_ttft_p50"]
    assert (p50.verdict, p50.ratio, p50.low) == ("none", 1, None)
    assert p50.reason == "no finite ratio in many resamples: one of the two is 0, infinite or missing there"


# -- runs that failed ------------------------------------------------------------------------------------


def failure(cell: str, **labels: Any) -> dict[str, Any]:
    """What the index says of a cell that failed."""
    names = {"workload": "chat", "scheduler": "fcfs", "seed": 0, **labels}
    return {"cell": cell, "labels": {"policy": names["scheduler"], **names}, "reason": "KeyError: 'ticket'"}


def with_failures(folder: Path, *failures: dict[str, Any]) -> Path:
    """The experiment folder, its index with these failures."""
    path = folder / "experiment.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "failed": failures}))
    return folder


WHY = "failed: bad.py:9: KeyError: 'ticket' (seed 1)"


def beside(
    failed: tuple[str | None, str | None], ours: Delay = faster, seeds: int = 3
) -> tuple[dict[str, Effect], str]:
    """The effects and the sentence of a candidate beside a slower baseline."""
    pairs = {
        seed: tuple(
            paired.sample(one, {**summarise(one), "invalid": None}) for one in (run(seed, ours), run(seed))
        )
        for seed in range(seeds)
    }
    judged = compared([Comparison("s", "ours", "theirs", pairs, failed)])
    (verdict,) = verdicts(judged)
    return {one.metric: one for one in judged}, verdict.sentence


@pytest.mark.parametrize("seeds", [0, 3])
def test_a_candidate_that_fails_loses_whatever_its_other_runs(seeds: int):
    effect, sentence = beside((WHY, None), seeds=seeds)
    assert {(one.verdict, one.reason, one.low) for one in effect.values()} == {("loses", WHY, None)}
    assert sentence == f"ours against theirs on s: loses: {WHY}"


def test_a_baseline_that_fails_is_not_won_against():
    effect, sentence = beside((None, WHY), seeds=0)
    assert {(one.verdict, one.reason) for one in effect.values()} == {("none", f"theirs {WHY}")}
    assert sentence == f"ours against theirs on s: cannot be said: theirs {WHY}"

    whole, _ = beside((None, None))
    effect, sentence = beside((None, WHY))
    assert whole["well_ttft_p99"].verdict == "wins"
    assert (effect["well_ttft_p99"].verdict, effect["well_ttft_p99"].reason) == ("none", f"theirs {WHY}")
    assert effect["well_ttft_p99"].shown == whole["well_ttft_p99"].shown
    assert "wins" not in {one.verdict for one in effect.values()}
    assert "wins" not in sentence


def test_what_is_lost_to_a_baseline_that_fails_is_lost():
    effect, sentence = beside((None, WHY), ours=lambda i, random: 2 * random)
    assert effect["well_ttft_p99"].verdict == "loses"
    assert ": loses: " in sentence or ": worse in " in sentence


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
    Console(file=out, width=100).print(*scorecard.cards(found))
    assert "[red]w" in out.getvalue(), "names are no markup"
    assert out.getvalue().count("1.20+ 1.20+ 1.20+") == 3


def cards(candidates: int, baselines: int) -> list[list[str]]:
    """The lines of the score cards of two settings, 100 characters wide."""
    found = [
        replace(effect(metric, "no difference seen", setting), candidate=f"mine-{c}", baseline=f"other-{b}")
        for setting in ("chat", "document")
        for c in range(candidates)
        for b in range(baselines)
        for metric in effects.MAIN
    ]
    drawn = []
    for table in scorecard.cards(found):
        out = io.StringIO()
        Console(file=out, width=100).print(table)
        drawn.append(out.getvalue().splitlines())
    return drawn


def test_several_candidates_have_a_score_card_each():
    first, second = cards(2, 3)
    assert not any("mine-1" in line for line in first)
    assert sum(line.count("against other-") for line in first) == 3
    assert sum(line.count("no difference seen ") for line in first) == 3 * 2, "nothing is folded"
    assert not any("+ better" in line for line in first)
    assert any("+ better" in line for line in second), "the caption stands once"


def test_many_baselines_stand_below_each_other():
    (card,) = cards(1, 6)
    assert card[0].rstrip() == "score card: mine-0"
    assert [line.split()[-2] for line in card if "other-5" in line] == ["1.20"] * 2
    for b in range(6):
        assert sum(f"other-{b} " in line and " no difference seen " in line for line in card) == 2
    assert sum(line.startswith("│ chat ") for line in card) == 1


def test_a_folder_is_compared_as_it_stands(tmp_path: Path):
    runs = [
        run(seed, delay, scheduler=name)
        for seed in range(3)
        for name, delay in (("mine:x=1", faster), ("vtc", lambda i, random: random))
    ]
    alone = run(0, scheduler="vtc", workload="document")  # where the candidate has no run
    experiment = load(synthetic_runs.experiment(tmp_path, *runs, alone))
    found = effects.effects(experiment, tables.collected(experiment), "mine:x=1", ["vtc"])
    assert {(one.setting, one.baseline) for one in found} == {("chat", "vtc"), ("document", "vtc")}
    missing = verdicts(found)[1]
    assert missing.word == "cannot be said"
    assert "no seed under which both were run to their end" in missing.sentence
    assert {one.metric for one in found if one.verdict == "wins"} >= {"well_ttft_p50", "sooner"}
    frame = pd.read_csv(scorecard.write(found, tmp_path))
    assert list(frame["ratio"].dropna()) == pytest.approx(
        [one.ratio for one in found if one.ratio is not None]
    )


def test_failures_of_a_folder_count_where_the_other_did_not_fail(tmp_path: Path):
    runs = [
        run(seed, scheduler=name)
        for seed in range(3)
        for name in ("mine", "vtc")
        if (seed, name) != (1, "mine")
    ]
    elsewhere = run(0, scheduler="mine", workload="document")
    failed = [
        failure("mine-1", scheduler="mine", seed=1),
        failure("vtc-0", scheduler="vtc", workload="document"),
        *(failure(f"{name}-p", scheduler=name, workload="poll") for name in ("mine", "vtc")),
    ]
    experiment = load(with_failures(synthetic_runs.experiment(tmp_path, *runs, elsewhere), *failed))
    assert experiment.only({"mine-1"}).failed == experiment.failed[:1]
    found = effects.effects(experiment, tables.collected(experiment), "mine", ["vtc"])
    assert [(one.setting, one.word) for one in verdicts(found)] == [
        ("chat", "loses"), ("document", "cannot be said"), ("poll", "cannot be said"),
    ]  # fmt: skip
    reasons = [verdict.sentence.partition(": ")[2] for verdict in verdicts(found)]
    assert reasons == [
        "loses: failed: KeyError: 'ticket' (seed 1)",
        "cannot be said: vtc failed: KeyError: 'ticket' (seed 0)",
        "cannot be said: no seed under which both were run to their end",
    ]


def test_a_failure_without_its_coordinates_is_no_index(tmp_path: Path):
    nameless = {"cell": "x", "labels": {"workload": "chat", "seed": 0}, "reason": "?"}
    folder = with_failures(synthetic_runs.experiment(tmp_path, run(0)), nameless)
    with pytest.raises(BadInput, match=r"experiment\.json: labels miss policy, scheduler"):
        load(folder)
