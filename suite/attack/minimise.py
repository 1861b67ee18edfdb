"""Making a trace small while it still shows what it shows: delta debugging.

Clients, then sessions, then single requests are taken away in halves, quarters, ... down to one by one, until
nothing more can go; then prompts and outputs are halved as long as that holds. A request goes together with
those that come after it. Source: Zeller and Hildebrandt, Simplifying and Isolating Failure-Inducing Input,
IEEE TSE 28(2), 2002; of its algorithm the part that removes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

from suite.trace import REPLY, Request, Segment, Trace

Holds = Callable[[Trace], bool]

_KEYS: tuple[Callable[[Request], str], ...] = (
    lambda request: request.client,
    lambda request: request.session or request.id,
    lambda request: request.id,
)
"""What a request belongs to, from coarse to fine; what has one key is taken away together."""


def minimised(trace: Trace, holds: Holds) -> Trace:
    """A part of the trace of which `holds` is true and of which no single request could be left out.

    `holds` must be true of the trace itself.
    """
    for key in _KEYS:
        trace = _thinned(trace, key, holds)
    for shorter in (_halved_prompts, _halved_outputs):
        while holds(candidate := shorter(trace)) and candidate != trace:
            trace = candidate
    return _from_zero(_thinned(trace, _KEYS[-1], holds))


def without(trace: Trace, ids: Collection[str]) -> Trace | None:
    """The trace less some requests and all that come after them; None if nothing would be left."""
    gone = set(ids)
    left = []
    for request in trace.requests:  # parents stand before children
        if request.id in gone or not gone.isdisjoint(request.after):
            gone.add(request.id)
        else:
            left.append(request)
    there = {request.client for request in left}
    misbehaving = tuple(client for client in trace.header.misbehaving if client in there)
    return Trace(replace(trace.header, misbehaving=misbehaving), tuple(left)) if left else None


def _thinned(trace: Trace, key: Callable[[Request], str], holds: Holds) -> Trace:
    """The trace after whole groups were taken away, again and again until every one of them is needed."""
    size = len(_groups(trace, key)) // 2
    while size >= 1:
        before = trace
        for chunk in _chunks(_groups(trace, key), size):
            candidate = without(trace, chunk)
            if candidate is not None and holds(candidate):
                trace = candidate
        if size > 1 or trace == before:
            size //= 2
    return trace


def _groups(trace: Trace, key: Callable[[Request], str]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for request in trace.requests:
        groups.setdefault(key(request), []).append(request.id)
    return list(groups.values())


def _chunks(groups: Sequence[list[str]], size: int) -> Iterator[list[str]]:
    """The ids in runs of `size` groups, the latest first: what comes last is likely to matter least."""
    for end in range(len(groups), 0, -size):
        yield [id for group in groups[max(0, end - size) : end] for id in group]


def _halved_prompts(trace: Trace) -> Trace:
    def shorter(segment: Segment) -> Segment:
        return segment if segment.id.startswith(REPLY) else segment._replace(tokens=_half(segment.tokens))

    return _each(trace, lambda request: replace(request, prompt=tuple(map(shorter, request.prompt))))


def _halved_outputs(trace: Trace) -> Trace:
    def shorter(segment: Segment) -> Segment:
        return segment._replace(tokens=_half(segment.tokens)) if segment.id.startswith(REPLY) else segment

    return _each(
        trace,
        lambda request: replace(
            request, prompt=tuple(map(shorter, request.prompt)), output_tokens=_half(request.output_tokens)
        ),
    )


def _half(tokens: int) -> int:
    return max(1, tokens // 2)


def _from_zero(trace: Trace) -> Trace:
    first = min(request.arrival for request in trace.requests)
    return _each(trace, lambda request: replace(request, arrival=round(request.arrival - first, 6)))


def _each(trace: Trace, change: Callable[[Request], Request]) -> Trace:
    return replace(trace, requests=tuple(map(change, trace.requests)))
