"""A small spec of every synthetic family, and what tests of their traces look things up with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import pytest

from suite.trace import Request, Trace
from workloads.spec import load

BASE: dict[str, Any] = {"duration": 100, "clients": [{"name": "a", "rate": 3}, {"name": "b", "rate": 1}]}

CHAT: dict[str, Any] = BASE | {
    "family": "multi_turn_chat",
    "system_tokens": {"kind": "uniform", "low": 50, "high": 500},
    "turns": {"kind": "uniform", "low": 1, "high": 5},
    "user_tokens": {"kind": "lognormal", "mean": 40, "cv": 1},
    "output_tokens": {"kind": "uniform", "low": 1, "high": 90},
    "think": {"mean": 4, "cv": 1},
}
DOCUMENT: dict[str, Any] = BASE | {
    "family": "shared_document",
    "documents": 5,
    "document_tokens": {"kind": "uniform", "low": 1000, "high": 3000},
    "question_tokens": 20,
    "output_tokens": 10,
}
MIXED: dict[str, Any] = BASE | {
    "family": "mixed_prefix",
    "system_fraction": 0.6,
    "unique_fraction": 0.2,
    "heads": 3,
    "system_tokens": 200,
    "head_tokens": {"kind": "uniform", "low": 300, "high": 400},
    "tail_tokens": 30,
    "unique_tokens": 500,
    "output_tokens": 10,
}
TREE: dict[str, Any] = BASE | {
    "family": "tree_of_thoughts",
    "branches": 1,
    "height": 3,
    "question_tokens": {"kind": "uniform", "low": 50, "high": 500},
    "instruction_tokens": {"kind": "uniform", "low": 5, "high": 9},
    "output_tokens": {"kind": "uniform", "low": 1, "high": 90},
}
JUDGE: dict[str, Any] = BASE | {
    "family": "llm_judge",
    "dimensions": 1,
    "article_tokens": {"kind": "uniform", "low": 500, "high": 900},
    "instruction_tokens": {"kind": "uniform", "low": 5, "high": 9},
    "output_tokens": {"kind": "uniform", "low": 1, "high": 90},
}
AGENT: dict[str, Any] = BASE | {
    "family": "agent",
    "system_tokens": {"kind": "uniform", "low": 500, "high": 900},
    "task_tokens": 60,
    "steps": {"kind": "uniform", "low": 1, "high": 5},
    "call_tokens": {"kind": "uniform", "low": 10, "high": 60},
    "delay": {"mean": 2, "cv": 1},
    "observation_tokens": {"kind": "uniform", "low": 100, "high": 200},
    "answer_tokens": 300,
}
RETRIEVAL: dict[str, Any] = DOCUMENT | {
    "family": "retrieval",
    "system_tokens": {"kind": "uniform", "low": 100, "high": 200},
    "retrieved": 3,
}
FEW_SHOT: dict[str, Any] = BASE | {
    "family": "few_shot",
    "tasks": 4,
    "shots": 3,
    "example_tokens": {"kind": "uniform", "low": 100, "high": 200},
    "question_tokens": 20,
    "output_tokens": 10,
}
PLAIN: dict[str, Any] = BASE | {
    "family": "plain",
    "prompt_tokens": {"kind": "uniform", "low": 100, "high": 200},
    "output_tokens": {"kind": "uniform", "low": 1, "high": 90},
}


def listed(*specs: dict[str, Any]) -> list[Any]:
    return [pytest.param(spec, id=spec["family"]) for spec in specs]


WITH_PREFIXES = listed(CHAT, DOCUMENT, MIXED, TREE, JUDGE, AGENT, RETRIEVAL, FEW_SHOT)
FAMILIES = [*WITH_PREFIXES, *listed(PLAIN)]


def made(spec: Mapping[str, Any], seed: int = 0, **overrides: Any) -> Trace:
    return load(spec, overrides).generate(seed)


def of(trace: Trace, client: str) -> list[Request]:
    return [request for request in trace.requests if request.client == client]


def sessions(trace: Trace) -> list[list[Request]]:
    found = defaultdict(list)
    for request in trace.requests:
        found[request.session].append(request)
    return list(found.values())
