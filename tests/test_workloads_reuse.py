"""The hit ratio over cache size, against an LRU cache played token by token and against the simulator."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.backends.simulator import Simulator
from suite.policies import parse
from suite.trace import REPLY, Request, Segment
from workloads.describing.columns import columns
from workloads.describing.reuse import Curve, Hits, reuse
from workloads.spec import load


def measured(requests: Sequence[Request]) -> tuple[Hits, Curve]:
    return reuse(columns(requests))


def ask(number: int, *prompt: tuple[str, int], output: int = 1) -> Request:
    segments = tuple(Segment(*segment) for segment in prompt)
    return Request(str(number), "c", float(number), segments, output)


def path(request: Request) -> list[tuple[tuple[str, int], ...]]:
    """Every token of prompt and reply, as all there is up to it: equal paths, equal KV entries."""
    segments = (*request.prompt, Segment(f"{REPLY}{request.id}", request.output_tokens))
    tokens = [(id, i) for id, length in segments for i in range(length)]
    return [tuple(tokens[: i + 1]) for i in range(len(tokens))]


def played(requests: Sequence[Request], size: int) -> int:
    """Prompt tokens that hit in an LRU cache of `size` tokens, one token after the other."""
    stack: dict[tuple[tuple[str, int], ...], None] = {}
    hits = 0
    for request in requests:
        tokens = path(request)
        hits += sum(token in stack for token in tokens[: request.prompt_tokens])
        for token in reversed(tokens):
            stack.pop(token, None)
            stack[token] = None
            if len(stack) > size:
                del stack[next(iter(stack))]
    return hits


prompts = st.lists(st.tuples(st.sampled_from("xyz"), st.integers(1, 4)), min_size=1, max_size=4)
sent = st.lists(st.tuples(prompts, st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=10)


def conversation(drawn: list[tuple[list[tuple[str, int]], int, int]]) -> list[Request]:
    """Requests, some of which go on from one before (the number says how far back; 0 is from none)."""
    requests: list[Request] = []
    for number, (prompt, back, output) in enumerate(drawn):
        history: tuple[tuple[str, int], ...] = ()
        if 0 < back <= len(requests):
            earlier = requests[-back]
            history = (*earlier.prompt, (f"{REPLY}{earlier.id}", earlier.output_tokens))
        requests.append(ask(number, *history, *prompt, output=output))
    return requests


@settings(max_examples=200)
@given(sent)
def test_every_cache_size_hits_what_a_cache_played_token_by_token_hits(
    drawn: list[tuple[list[tuple[str, int]], int, int]],
) -> None:
    requests = conversation(drawn)
    _, curve = measured(requests)
    everything = sum(len(path(request)) for request in requests)
    sizes = range(everything + 2)
    counted = np.rint(curve.ratio(sizes) * curve.prompt_tokens).astype(int).tolist()
    assert counted == [played(requests, size) for size in sizes]


@settings(max_examples=50)
@given(sent)
def test_the_curve_rises_to_the_ideal_ratio_and_no_further(
    drawn: list[tuple[list[tuple[str, int]], int, int]],
) -> None:
    hits, curve = measured(conversation(drawn))
    ratios = curve.ratio(np.arange(curve.enough + 3))
    assert np.all(np.diff(ratios) >= 0)
    assert curve.limit == pytest.approx(hits.tokens.sum() / curve.prompt_tokens)
    assert ratios[curve.enough :] == pytest.approx(curve.limit)
    assert curve.enough == 0 or ratios[curve.enough - 1] < curve.limit


def test_a_prompt_asked_again_needs_a_cache_that_holds_all_between() -> None:
    requests = [ask(0, ("x", 100)), ask(1, ("y", 50), output=10), ask(2, ("x", 100))]
    _, curve = measured(requests)
    assert curve.enough == 60 + 100
    assert curve.ratio([60, 61, 110, 160, 1000]).tolist() == [0, 1 / 250, 50 / 250, 100 / 250, 100 / 250]


def test_pieces_of_one_stream_have_histories_of_their_own() -> None:
    """Of 20 tokens the first 10 were touched last by request 1, the others by request 0."""
    requests = [ask(0, ("x", 20)), ask(1, ("x", 10), output=5), ask(2, ("x", 30))]
    hits, curve = measured(requests)
    assert list(zip(hits.request, hits.tokens, strict=True)) == [(1, 10), (2, 20)]
    assert (curve.ratio([10, 15, 20, 25]) * curve.prompt_tokens).tolist() == [20, 20, 25, 30]


def test_many_lengths_of_one_stream_take_no_more_memory_than_few() -> None:
    """A serving log knows of a prompt how long its beginning was: each request has a length of its own."""
    lengths = np.random.default_rng(0).permutation(3_000) + 1
    trace = columns([ask(i, ("x", length), output=1) for i, length in enumerate(lengths.tolist())])
    tracemalloc.start()
    hits, curve = reuse(trace)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    longest = np.maximum.accumulate(lengths)
    assert hits.tokens.sum() == np.minimum(lengths[1:], longest[:-1]).sum()
    assert curve.limit == hits.tokens.sum() / lengths.sum()
    assert most < 5_000_000


def test_the_owner_of_a_prefix_is_whoever_sent_it_first() -> None:
    prompts = [("a", 10), ("b", 30), ("a", 20), ("c", 40), ("b", 40)]
    sent = [Request(str(i), who, float(i), (Segment("x", n),), 1) for i, (who, n) in enumerate(prompts)]
    hits, _ = measured(sent)
    found = [(r, "abc"[o], n) for r, o, n in zip(hits.request, hits.owner, hits.tokens, strict=True)]
    assert found == [
        (1, "a", 10), (2, "a", 10), (2, "b", 10), (3, "a", 10), (3, "b", 20),
        (4, "a", 10), (4, "b", 20), (4, "c", 10),
    ]  # fmt: skip


def test_an_empty_cache_and_a_trace_without_sharing_hit_nothing() -> None:
    _, curve = measured([ask(0, ("x", 5)), ask(1, ("y", 5))])
    assert (curve.limit, curve.enough) == (0, 0)
    assert curve.ratio([0, 1, 10**9]).tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", ["chat", "document"])
def test_a_simulated_engine_with_little_to_do_hits_as_much(name: str) -> None:
    """Not quite: it looks prompts up in whole blocks and without their last token, and keeps no last token of
    a reply. At a load near 0 that is all.
    """
    trace = load(name, {"shape": {"stretch": 1000}}).generate(0)
    _, curve = measured(trace.requests)
    for kv_tokens in (10_000, 30_000, 100_000):
        simulator = Simulator(kv_tokens=kv_tokens)
        frame = simulator.run(trace, parse("fcfs"), Path(), lambda share, note="": None).requests
        simulated = frame["cached_tokens"].sum() / frame["prompt_tokens"].sum()
        assert simulated == pytest.approx(curve.ratio(kv_tokens), abs=0.004)
