"""What is printed and written of a comparison: the table of effects, the score card, totals, effects.csv."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from rich.table import Table
from rich.text import Text

from suite.files import write_atomically
from suite.report.effects import MAIN, METRICS, Effect
from suite.report.verdicts import Verdict, verdicts

_STYLES = {"wins": "bold green", "loses": "bold red", "wins and loses": "yellow"}
_SIGNS = {"wins": "+", "loses": "-", "no difference seen": " ", "none": " "}

MOST_COLUMNS = 4
"""Baselines that stand side by side in a score card; more of them stand below each other."""

_TITLES = [metric.title for metric in METRICS if metric.column in MAIN]

_TABLE_CAPTION = (
    "Means over seeds: throughput in client service/s, TTFT in seconds and, but for the worst client's, that "
    "of the well-behaved clients. Ratio: candidate / baseline and its interval; of all differences told, 5 % "
    "may be none, on average."
)
_CAPTION = (
    f"{', '.join(_TITLES)}: candidate / baseline, + better, - worse, without a sign no difference seen. "
    "wins: wins some of the three and loses none."
)


def table(effects: Sequence[Effect]) -> Table:
    """Every metric of every comparison: the values, the ratio with its interval, the seeds, the verdict."""
    headings = "", "candidate", "baseline", "ratio", "seeds", "verdict"
    shown = Table(*headings, caption=_TABLE_CAPTION, caption_justify="left")
    heading = ""
    for effect in effects:
        if heading != (heading := f"{effect.setting}: {effect.candidate} against {effect.baseline}"):
            shown.add_section()
            shown.add_row(Text(heading, style="bold"))
        values = (_value(effect.candidate_value), _value(effect.baseline_value))
        shown.add_row(Text(f"  {effect.title}"), *values, effect.shown, str(effect.seeds), _judgement(effect))
    return shown


def _judgement(effect: Effect) -> Text:
    verdict = Text("" if effect.verdict == "none" else f"{effect.verdict} ", _STYLES.get(effect.verdict, ""))
    return verdict + Text(f"({effect.reason})" if effect.reason else "")


def _value(value: float | None) -> str:
    if value is None:
        return "none"
    if math.isinf(value):
        return "never"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cards(effects: Sequence[Effect]) -> list[Table]:
    """The score card, a table a candidate: per setting, against each baseline, the word and the ratios of the
    metrics that decide it.
    """
    shown = []
    for candidate in dict.fromkeys(effect.candidate for effect in effects):
        own = [effect for effect in effects if effect.candidate == candidate]
        few = len({effect.baseline for effect in own}) <= MOST_COLUMNS
        shown.append(_side_by_side(candidate, own) if few else _one_below_the_other(candidate, own))
    if shown:
        shown[-1].caption = _CAPTION
    return shown


def _side_by_side(candidate: str, effects: Sequence[Effect]) -> Table:
    """A line per setting, a column per baseline."""
    found = {(one.setting, one.baseline): one for one in verdicts(effects)}
    baselines = list(dict.fromkeys(baseline for _, baseline in found))
    shown = _empty("score card")
    for baseline in baselines:
        shown.add_column(Text(f"{candidate}\nagainst {baseline}"))
    for setting in dict.fromkeys(setting for setting, _ in found):
        words = (found[setting, baseline] for baseline in baselines)
        cells = (_word(one) + "\n" + " ".join(_ratios(effects, one)) for one in words)
        shown.add_row(Text(setting), *cells)
    return shown


def _one_below_the_other(candidate: str, effects: Sequence[Effect]) -> Table:
    """A line per setting and baseline, a column per metric."""
    shown = _empty(f"score card: {candidate}")
    for heading in ("against", "", *_TITLES):
        shown.add_column(Text(heading))
    setting = None
    for one in verdicts(effects):
        first, setting = one.setting != setting, one.setting
        if first:
            shown.add_section()
        ratios = map(Text, _ratios(effects, one))
        shown.add_row(Text(one.setting if first else ""), Text(one.baseline), _word(one), *ratios)
    return shown


def _empty(title: str) -> Table:
    shown = Table(title=Text(title), title_justify="left", caption_justify="left")
    shown.add_column("setting", overflow="fold")
    return shown


def _word(verdict: Verdict) -> Text:
    return Text(verdict.word, style=_STYLES.get(verdict.word, ""))


def _ratios(effects: Sequence[Effect], verdict: Verdict) -> list[str]:
    key = verdict.setting, verdict.candidate, verdict.baseline
    return [
        _ratio(one)
        for one in effects
        if (one.setting, one.candidate, one.baseline) == key and one.metric in MAIN
    ]


def _ratio(effect: Effect) -> str:
    value = "none" if effect.ratio is None else f"{effect.ratio:.2f}"
    return f"{value}{_SIGNS[effect.verdict]}"


def totals(verdicts: Sequence[Verdict]) -> list[str]:
    """One line per candidate and baseline: how often each word over all settings."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for verdict in verdicts:
        counts.setdefault((verdict.candidate, verdict.baseline), Counter())[verdict.word] += 1
    return [
        f"{candidate} against {baseline}: {_counted(words)} of {_settings(words.total())}"
        for (candidate, baseline), words in counts.items()
    ]


def _counted(words: Counter[str]) -> str:
    order = ("wins", "loses", "wins and loses", "no difference seen", "cannot be said")
    return ", ".join(f"{word} {words[word]}" for word in order if words[word])


def _settings(count: int) -> str:
    return f"{count} setting{'' if count == 1 else 's'}"


def write(effects: Sequence[Effect], folder: Path) -> Path:
    """Write effects.csv, one row per effect, into an experiment's folder."""
    path = folder / "effects.csv"
    frame = pd.DataFrame([asdict(effect) for effect in effects])
    write_atomically(path, lambda file: frame.to_csv(file, index=False))
    return path
