"""What an attack leaves: the small trace, an experiment that replays it, the course of the search."""

from __future__ import annotations

import json
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from suite import trace as traces
from suite.attack.course import Attack, Finding
from suite.attack.objective import ENGINE
from suite.attack.words import comparison
from suite.files import write_atomically
from suite.trace import Header, Trace


def write(attack: Attack, folder: Path, command: str) -> None:
    """Write `attack.json` and, if something was found, `found.jsonl` and `found.yaml` into the folder."""
    text = json.dumps(_record(attack, command), indent=2) + "\n"
    if attack.finding is not None:
        traces.write(_signed(attack, attack.finding), folder / "found.jsonl")
        experiment = _experiment(attack, attack.finding, folder)
        write_atomically(folder / "found.yaml", lambda file: file.write_text(experiment, encoding="utf-8"))
    write_atomically(folder / "attack.json", lambda file: file.write_text(text, encoding="utf-8"))


def _signed(attack: Attack, finding: Finding) -> Trace:
    """The small trace with a header that says where it comes from."""
    search, contest = attack.courses[0], attack.contest
    choices = {
        "scheduler": contest.scheduler.label,
        "rival": contest.rival.label,
        "metric": contest.metric,
        "search": search.strategy,
        "search_seed": search.seed,
        "evaluations": search.evaluations,
        "parameters": finding.parameters,
        "workload": finding.spec,
        "minimised_from_requests": len(finding.whole.requests),
    }
    old = finding.trace.header
    return replace(finding.trace, header=Header("found", old.seed, "suite attack", choices, old.misbehaving))


def _experiment(attack: Attack, finding: Finding, folder: Path) -> str:
    contest = attack.contest
    plain = {
        "name": contest.name,
        "workloads": [str(folder / "found.jsonl")],
        "schedulers": [contest.scheduler.reference, contest.rival.reference],
        "backend": ENGINE.model_dump(mode="json", include={"kind"}),
    }
    lines = [
        f"On this trace {contest.scheduler.label} does worse than {contest.rival.label}:",
        comparison(contest, finding.values),
        "Found by suite attack; attack.json beside it says how.",
    ]
    comment = "".join(f"# {_printable(line)}\n" for line in lines)
    return comment + yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def _printable(line: str) -> str:
    return "".join(c if c.isprintable() else " " for c in line)


def _record(attack: Attack, command: str) -> dict[str, Any]:
    contest, finding = attack.contest, attack.finding
    return {
        "command": command,
        "scheduler": contest.scheduler.label,
        "rival": contest.rival.label,
        "metric": contest.metric,
        "searches": [
            {
                "search": course.strategy,
                "seed": course.seed,
                "evaluations": course.evaluations,
                "without_effect": course.none,
                "best": plain(course.score),
                "improvements": [[number, plain(score)] for number, score in course.improvements],
            }
            for course in attack.courses
        ],
        "finding": None if finding is None else _found(finding),
    }


def _found(finding: Finding) -> dict[str, Any]:
    return {
        "parameters": finding.parameters,
        "workload": finding.spec,
        "effects_on_fresh_seeds": [plain(effect) for effect in finding.fresh],
        "whole": {"requests": len(finding.whole.requests), "effect": plain(finding.whole_effect)},
        "small": {
            "requests": len(finding.trace.requests),
            "clients": len(finding.trace.clients),
            "effect": plain(finding.effect),
        },
    }


def plain(value: float | None) -> float | str | None:
    """A number as JSON has it: infinity is a word there."""
    return value if value is None or isfinite(value) else "infinite" if value > 0 else None
