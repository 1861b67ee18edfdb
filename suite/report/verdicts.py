"""Candidate against baselines, setting by setting: one word, and a sentence that says why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from suite.report.effects import MAIN, Effect


@dataclass(frozen=True)
class Verdict:
    """What is to be said of a candidate against one baseline in one setting.

    `word` goes by the metrics in `MAIN`: "wins" wins some and loses none, "loses" the other way round, "wins
    and loses" does both, "no difference seen" neither, "cannot be said" has none of them.
    """

    setting: str
    candidate: str
    baseline: str
    word: str
    sentence: str


def verdicts(effects: Sequence[Effect]) -> list[Verdict]:
    """One verdict per setting, candidate and baseline, in the order of the effects."""
    groups: dict[tuple[str, str, str], list[Effect]] = {}
    for effect in effects:
        groups.setdefault((effect.setting, effect.candidate, effect.baseline), []).append(effect)
    return [Verdict(*key, _word(group), _sentence(*key, group)) for key, group in groups.items()]


def _word(group: Sequence[Effect]) -> str:
    found = {effect.verdict for effect in group if effect.metric in MAIN}
    if {"wins", "loses"} <= found:
        return "wins and loses"
    return next((word for word in ("wins", "loses", "no difference seen") if word in found), "cannot be said")


def _sentence(setting: str, candidate: str, baseline: str, group: Sequence[Effect]) -> str:
    """What is better and by how much, what is worse, what is neither, and what cannot be compared; the reason
    alone where it is the same for all.
    """
    by_verdict: dict[str, list[str]] = {}
    for effect in group:
        by_verdict.setdefault(effect.verdict, []).append(_phrase(effect))
    parts = [
        f"{heading} {', '.join(by_verdict[verdict])}"
        for verdict, heading in _HEADINGS.items()
        if verdict in by_verdict
    ]
    about, word = f"{candidate} against {baseline} on {setting}", _word(group)
    if len({(effect.verdict, effect.reason) for effect in group}) == 1 and all(map(_settled, group)):
        return f"{about}: {word}: {group[0].reason}"
    lead = "" if parts[0].startswith(word) else f"{word}: "
    return f"{about}: {lead}{'; '.join(parts)}"


_HEADINGS = {
    "wins": "better in",
    "loses": "worse in",
    "no difference seen": "no difference seen in",
    "none": "not compared in",
}


def _phrase(effect: Effect) -> str:
    if effect.verdict == "no difference seen":
        return effect.title
    if effect.verdict == "none" or _settled(effect):
        return f"{effect.title} ({effect.reason})"
    return f"{effect.title} {effect.shown}"


def _settled(effect: Effect) -> bool:
    """True if the verdict came without an interval, so with a reason."""
    return effect.low is None
