"""What the simulator serves at most, and what a trace asks of it."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from suite import capacity as measuring
from suite.capacity import capacity, offered
from suite.errors import BadInput
from suite.trace import Header, Request, Segment, Trace


def trace(*requests: Request) -> Trace:
    return Trace(Header("t", 0, "hand"), requests)


def alone(id: str, at: float = 0.0, tokens: int = 2048, output: int = 16, document: str = "") -> Request:
    return Request(id, "c", at, (Segment(document or id, tokens),), output)


def test_arrivals_and_pauses_do_not_matter_but_what_comes_after_what_does() -> None:
    two = trace(alone("a"), alone("b"))
    late = trace(alone("a", 5.0), alone("b", 900.0))
    assert capacity(late, {}) == capacity(two, {})
    chained = trace(alone("a"), replace(alone("b"), after=("a",), think=60.0))
    one = capacity(trace(alone("a")), {})
    assert capacity(chained, {}).seconds == pytest.approx(2 * one.seconds, rel=0.01)
    assert capacity(two, {}).seconds < 1.9 * one.seconds, "they share their decode steps"


def test_the_rate_is_requests_over_seconds_and_the_hit_ratio_that_of_the_engine() -> None:
    found = capacity(trace(alone("a"), alone("b"), replace(alone("c", document="a"), after=("a",))), {})
    assert found.requests == 3
    assert found.rate == pytest.approx(3 / found.seconds)
    assert found.hit_ratio == pytest.approx((2048 - 16) / (3 * 2048)), "all blocks but the last"


def test_settings_are_the_simulators() -> None:
    made = trace(alone("a"))
    assert capacity(made, {"gpu": "h100"}).seconds < capacity(made, {"gpu": "a10g"}).seconds
    with pytest.raises(BadInput, match="unknown gpu 'h1000'; did you mean 'h100'"):
        capacity(made, {"gpu": "h1000"})
    with pytest.raises(BadInput, match="a capacity is measured on the simulator"):
        capacity(made, {"kind": "endpoint", "url": "http://127.0.0.1:1", "model": "m"})
    with pytest.raises(BadInput, match="2 replicas need a router"):
        capacity(made, {"replicas": 2})
    with pytest.raises(BadInput, match="no request of the trace fits its KV pool"):
        capacity(made, {"kv_tokens": 512})


def test_the_first_requests_stand_for_a_long_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "MOST_SERVED", 2)
    three = trace(alone("a"), alone("b"), alone("c", tokens=40_000))
    assert capacity(three, {}) == capacity(trace(alone("a"), alone("b")), {})


def test_what_is_offered_is_requests_over_the_span() -> None:
    assert offered(trace(alone("a", 1.0), alone("b", 4.0))) == 0.5
    assert offered(trace(alone("a"))) == inf
