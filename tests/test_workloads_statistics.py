"""Statistics of generated traces against known truths.

Every tolerance is four standard errors of what is estimated, derived or taken from the sample itself; where
the truth has no sampling error, the test is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from suite.trace import REPLY, Request, Segment, Trace
from workloads.parts.clients import zipf
from workloads.spec import load

Floats = NDArray[np.float64]

BASE: dict[str, Any] = {"duration": 1000, "rate": 4, "clients": 2}
PLAIN = BASE | {"family": "plain", "prompt_tokens": 100, "output_tokens": 10}


def made(spec: Mapping[str, Any], seed: int = 0, **overrides: Any) -> Trace:
    return load(spec, overrides).generate(seed)


def starts(trace: Trace) -> Iterator[Floats]:
    """When each client begins its sessions."""
    for client in trace.clients:
        yield np.array([one.arrival for one in trace.requests if one.client == client and not one.after])


def assert_mean(sample: Any, truth: float) -> None:
    assert np.mean(sample) == pytest.approx(truth, abs=4 * np.std(sample) / math.sqrt(len(sample)))


# -- arrivals ----------------------------------------------------------------------------------------------


def piecewise(edges: list[float], rates: list[float]) -> Callable[[Floats], Floats]:
    """How much of all arrivals is expected by a time of the 1,000 s, at these relative rates in between."""
    done = np.cumsum([0, *np.diff(edges) * rates])
    return lambda times: np.interp(times, edges, done / done[-1])


BURSTS = [float(time) for time in range(0, 1001, 50)]
QUARTERS = [0.0, 250.0, 500.0, 750.0, 1000.0]
COURSES: list[tuple[dict[str, Any], float, Callable[[Floats], Floats]]] = [
    ({"kind": "constant"}, 0.0, lambda times: times / 1000),
    ({"kind": "poisson"}, 1.0, lambda times: times / 1000),
    ({"kind": "gamma", "cv": 0.3}, 0.3, lambda times: times / 1000),
    ({"kind": "gamma", "cv": 2.5}, 2.5, lambda times: times / 1000),
    ({"kind": "on_off", "busy": 50, "silent": 50, "cv": 0.5}, 0.5, piecewise(BURSTS, [1, 0] * 10)),
    ({"kind": "ramp", "start": 0, "end": 1, "cv": 2}, 2.0, lambda times: (times / 1000) ** 2),
    ({"kind": "steps", "rates": [7, 1, 4, 0], "cv": 0.7}, 0.7, piecewise(QUARTERS, [7, 1, 4, 0])),
    (
        {"kind": "phases", "phases": [{"seconds": 100, "rate": 5}, {"seconds": 300}]},
        1.0,
        piecewise([0, 100, 400, 500, 800, 900, 1000], [5, 1, 5, 1, 5, 1]),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("process", "cv", "course"), COURSES, ids=[str(course[0]) for course in COURSES])
def test_rate_course_and_variation_of_every_open_process(
    process: dict[str, Any], cv: float, course: Callable[[Floats], Floats]
) -> None:
    """On the clock on which the rate is even, gaps have mean 1/rate and the stated coefficient of variation.

    A count of n has a standard error of cv sqrt(n); the CV of n Gamma gaps one of cv sqrt((1 + cv^2) / 2n).
    """
    for times in starts(made(PLAIN, arrivals=process)):
        assert len(times) == pytest.approx(2000, abs=4 * cv * math.sqrt(2000) + 1)
        gaps = np.diff(course(times)) * 2000
        assert gaps.mean() == pytest.approx(1, abs=4 * cv / math.sqrt(len(gaps)) + 1e-3)
        error = 4 * cv * math.sqrt((1 + cv**2) / 2 / len(gaps))
        assert gaps.std() / gaps.mean() == pytest.approx(cv, abs=error + 1e-4)


def test_skewed_clients_send_their_shares() -> None:
    trace = made(PLAIN, clients={"count": 4, "skew": 1.2})
    for times, share in zip(starts(trace), zipf(4, 1.2), strict=True):
        assert len(times) == pytest.approx(4000 * share, abs=4 * math.sqrt(4000 * share))


# -- lengths and sizes -------------------------------------------------------------------------------------

SPREAD = {"kind": "lognormal", "mean": 200, "cv": 0.8}
CHAT = BASE | {
    "family": "multi_turn_chat", "system_tokens": 500, "turns": 4, "user_tokens": 30, "output_tokens": 70,
    "think": 1,
}  # fmt: skip
AGENT = BASE | {
    "family": "agent", "system_tokens": 900, "task_tokens": 60, "steps": 3, "call_tokens": 40, "delay": 2,
    "observation_tokens": 150, "answer_tokens": 200,
}  # fmt: skip
JUDGE = BASE | {
    "family": "llm_judge", "dimensions": 5, "article_tokens": 2000, "instruction_tokens": 40,
    "output_tokens": 250,
}  # fmt: skip
TREE = BASE | {
    "family": "tree_of_thoughts", "branches": 3, "height": 3, "question_tokens": 500,
    "instruction_tokens": 30, "output_tokens": 250,
}  # fmt: skip
DOCUMENT = BASE | {
    "family": "shared_document", "documents": 6, "document_tokens": 3000, "question_tokens": 50,
    "output_tokens": 20,
}  # fmt: skip
RETRIEVAL = DOCUMENT | {
    "family": "retrieval", "common_documents": 6, "retrieved": 2, "popularity": 1, "system_tokens": 300,
}  # fmt: skip
FEW_SHOT = BASE | {
    "family": "few_shot", "tasks": 10, "shots": 5, "example_tokens": 120, "question_tokens": 50,
    "output_tokens": 20,
}  # fmt: skip
MIXED = BASE | {
    "family": "mixed_prefix", "system_fraction": 0.6, "unique_fraction": 0.2, "heads": 3,
    "system_tokens": 200, "head_tokens": 300, "tail_tokens": 30, "unique_tokens": 500, "output_tokens": 10,
}  # fmt: skip


def segments(trace: Trace, kind: str) -> list[int]:
    """The lengths of the segments of that kind, each counted once."""
    found = {one for request in trace.requests for one in request.prompt if one.id.startswith(f"{kind}:")}
    return [tokens for _, tokens in found]


@pytest.mark.parametrize(
    ("spec", "field", "kind"),
    [
        (PLAIN, "prompt_tokens", "prompt"),
        (CHAT, "user_tokens", "user"),
        (DOCUMENT | {"documents": 500}, "document_tokens", "document"),
        (FEW_SHOT | {"tasks": 100}, "example_tokens", "example"),
        (MIXED | {"heads": 500}, "head_tokens", "head"),
        (JUDGE, "article_tokens", "article"),
        (TREE, "question_tokens", "tree"),
        (AGENT, "observation_tokens", "observation"),
    ],
)
def test_lengths_in_prompts_have_the_stated_mean(spec: dict[str, Any], field: str, kind: str) -> None:
    lengths = segments(made(spec | {field: SPREAD}), kind)
    assert len(set(lengths)) > 50
    assert_mean(lengths, 200)


@pytest.mark.parametrize("spec", [PLAIN, CHAT, DOCUMENT, RETRIEVAL, FEW_SHOT, MIXED, JUDGE, TREE])
def test_outputs_have_the_stated_mean(spec: dict[str, Any]) -> None:
    assert_mean([one.output_tokens for one in made(spec, output_tokens=SPREAD).requests], 200)


@pytest.mark.parametrize(("spec", "field", "more"), [(CHAT, "turns", 0), (AGENT, "steps", 1)])
def test_programs_have_the_stated_mean_size(spec: dict[str, Any], field: str, more: int) -> None:
    trace = made(spec | {field: {"kind": "uniform", "low": 2, "high": 9}})
    sizes = np.unique([one.session for one in trace.requests], return_counts=True)[1]
    assert_mean(sizes, 5.5 + more)
    error = math.sqrt((sizes**2).sum())  # of a sum over a Poisson number of sessions
    assert len(trace.requests) == pytest.approx(4000, abs=4 * error)


# -- what an infinite cache would hit ----------------------------------------------------------------------


def misses(trace: Trace) -> list[int]:
    """The prompt tokens of each request that no earlier prompt, with its reply, begins with."""
    known: set[tuple[Segment, ...]] = set()
    return [_missed(request, known) for request in trace.requests]


def _missed(request: Request, known: set[tuple[Segment, ...]]) -> int:
    whole = (*request.prompt, Segment(f"{REPLY}{request.id}", request.output_tokens))
    prefixes = [whole[: end + 1] for end in range(len(whole))]
    missed = sum(prefix[-1].tokens for prefix in prefixes[:-1] if prefix not in known)
    known.update(prefixes)
    return missed


def totals(trace: Trace) -> list[int]:
    return [request.prompt_tokens for request in trace.requests]


def hit_ratio(trace: Trace) -> float:
    return 1 - sum(misses(trace)) / sum(totals(trace))


def sessions(trace: Trace) -> int:
    return len({request.session for request in trace.requests})


def test_the_hit_ratio_of_few_shot_prompts() -> None:
    trace = made(FEW_SHOT, common_tasks=4)
    requests = len(trace.requests)
    heads = 4 + 2 * 6
    assert hit_ratio(trace) == pytest.approx(1 - (heads * 600 + requests * 50) / (requests * 650), abs=1e-12)


def test_the_hit_ratio_of_shared_documents() -> None:
    trace = made(DOCUMENT, common_documents=2)
    requests = len(trace.requests)
    documents = 2 + 2 * 4
    assert hit_ratio(trace) == pytest.approx(
        1 - (documents * 3000 + requests * 50) / (requests * 3050), abs=1e-12
    )


def test_the_hit_ratio_of_plain_prompts_is_none() -> None:
    assert hit_ratio(made(PLAIN)) == 0


def test_the_hit_ratio_of_chats() -> None:
    """A turn misses its message alone; the first of a client its system prompt too."""
    trace = made(CHAT)
    whole = sessions(trace) * (4 * 500 + 30 * (1 + 2 + 3 + 4) + 70 * (1 + 2 + 3))
    assert hit_ratio(trace) == pytest.approx(1 - (2 * 500 + len(trace.requests) * 30) / whole, abs=1e-12)


def test_the_hit_ratio_of_agents() -> None:
    """A call misses the last observation alone, the first of a task the task."""
    trace = made(AGENT, system="shared")
    tasks = sessions(trace)
    whole = tasks * (4 * 960 + (40 + 150) * (1 + 2 + 3))
    assert hit_ratio(trace) == pytest.approx(1 - (900 + tasks * (60 + 3 * 150)) / whole, abs=1e-12)


def test_the_hit_ratio_of_judgements() -> None:
    """Whoever comes first misses the article; the verdict has the replies in another place than they were."""
    trace = made(JUDGE)
    hit, whole = 5 * 2000, 5 * 2040 + (2000 + 5 * 250 + 40)
    assert hit_ratio(trace) == pytest.approx(hit / whole, abs=1e-12)


def test_the_hit_ratio_of_trees() -> None:
    """Of the question and every instruction, only the first of the siblings misses any."""
    trace = made(TREE)
    whole = sum(3**depth * (500 + depth * 30 + (depth - 1) * 250) for depth in (1, 2, 3))
    assert hit_ratio(trace) == pytest.approx(1 - (500 + (1 + 3 + 9) * 30) / whole, abs=1e-12)


def test_the_hit_ratio_of_mixed_prefixes() -> None:
    """A mean over requests, whose standard error comes from them; what first uses miss is taken off."""
    trace = made(MIXED, rate=10)
    missed, whole = np.array(misses(trace)), np.array(totals(trace))
    truth = 0.8 * (0.6 * 200 + 300) / (0.2 * 500 + 0.8 * (0.6 * 200 + 330))
    first = 200 + 2 * 2 * 3 * 300
    error = np.std(whole - missed - truth * whole) / math.sqrt(len(whole)) / whole.mean()
    assert hit_ratio(trace) + first / whole.sum() == pytest.approx(truth, abs=4 * error)


def drawn(chances: Floats, order: str) -> dict[tuple[int, ...], float]:
    """The probability of each row of two documents, drawn one after the other without returning any."""
    rows: dict[tuple[int, ...], float] = {}
    for first, second in permutations(range(len(chances)), 2):
        chance = chances[first] * chances[second] / (1 - chances[first])
        for row in [(first, second), (second, first)] if order == "shuffled" else [sorted((first, second))]:
            rows[tuple(row)] = rows.get(tuple(row), 0) + chance / (2 if order == "shuffled" else 1)
    return rows


def distinct(rows: dict[tuple[int, ...], float], depth: int, requests: int) -> tuple[float, float]:
    """How many different beginnings of `depth` documents are expected, and a bound of the variance.

    Whether each was seen is negatively associated, so the variance of the sum is no more than their sum.
    """
    chances: dict[tuple[int, ...], float] = {}
    for row, chance in rows.items():
        chances[row[:depth]] = chances.get(row[:depth], 0) + chance
    seen = 1 - (1 - np.array(list(chances.values()))) ** requests
    return float(seen.sum()), float((seen * (1 - seen)).sum())


@pytest.mark.parametrize("order", ["shuffled", "ranked"])
def test_the_hit_ratio_of_retrieved_documents_by_enumeration(order: str) -> None:
    """The mean over 100 traces of 20 requests; each beginning of one or two documents misses 3,000 tokens."""
    rows = drawn(zipf(6, 1), order)
    assert sum(rows.values()) == pytest.approx(1)
    (ones, spread), (twos, wider) = (distinct(rows, depth, 20) for depth in (1, 2))
    short = RETRIEVAL | {"duration": 5, "arrivals": {"kind": "constant"}, "order": order}
    traces = [made(short, seed) for seed in range(100)]
    assert {len(trace.requests) for trace in traces} == {20}
    truth = 1 - (300 + 3000 * (ones + twos) + 20 * 50) / (20 * 6350)
    error = 3000 * (math.sqrt(spread) + math.sqrt(wider)) / math.sqrt(100) / (20 * 6350)
    assert np.mean([hit_ratio(trace) for trace in traces]) == pytest.approx(truth, abs=4 * error)


def test_a_shuffled_document_stands_anywhere_however_popular() -> None:
    places = [
        [id for id, _ in request.prompt].index("document:0") - 1
        for request in made(RETRIEVAL, retrieved=3, popularity=2).requests
        if any(id == "document:0" for id, _ in request.prompt)
    ]
    assert len(places) > 3000
    for place in range(3):
        error = 4 * math.sqrt(2 / 9 / len(places))
        assert places.count(place) / len(places) == pytest.approx(1 / 3, abs=error)


def test_ranked_documents_share_more_than_shuffled_ones_down_to_the_last() -> None:
    """After many requests every possible beginning was seen: 6 and 30 shuffled; 5 and 15 ranked."""
    for order, beginnings in (("shuffled", 6 + 30), ("ranked", 5 + 15)):
        trace = made(RETRIEVAL, order=order, popularity=0)
        requests = len(trace.requests)
        missed = 300 + beginnings * 3000 + requests * 50
        assert hit_ratio(trace) == pytest.approx(1 - missed / (requests * 6350), abs=1e-12)


def test_a_blend_misses_what_its_parts_miss() -> None:
    parts = [{"name": "chat", **CHAT}, {"name": "few", **FEW_SHOT}, {"name": "own", **PLAIN}]
    trace = made({"family": "blend", "parts": parts})
    alone = [
        Trace(trace.header, tuple(one for one in trace.requests if one.id.startswith(f"{part}/")))
        for part in ("chat", "few", "own")
    ]
    assert sum(misses(trace)) == sum(sum(misses(part)) for part in alone)
