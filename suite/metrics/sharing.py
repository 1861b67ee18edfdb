"""Who computed the prefixes that others find in the cache.

A cached token was paid for by the client whose request computed it last. That is worked out from the trace
and from how many tokens each request found, by walking the requests in order of admission over a tree of
prompts: a request's first `cached_tokens` are charged to who computed each part last, and what it computes
itself, its reply included, its client has paid for from then on. Each replica has a cache of its own, and so
a tree.

The tree is one of segments, not of tokens. A position in a prompt is a place in a segment after a certain
course of segments before it; two prompts share it if these agree, with the same lengths.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

import pandas as pd

from suite.results import SHARING_COLUMNS
from suite.trace import REPLY, Request, Trace


class _Place:
    """A segment after a certain course of segments: who computed its tokens last, and what came after it."""

    __slots__ = ("_spans", "_then")

    def __init__(self) -> None:
        self._spans: tuple[tuple[int, int, str], ...] = ()
        """Disjoint [start, end) in order, each with its payer."""
        self._then: dict[tuple[int, str], _Place] = {}

    def then(self, tokens: int, id: str) -> _Place:
        """The segment named `id` after the first `tokens` of this one."""
        found = self._then.get((tokens, id))
        if found is None:
            found = self._then[tokens, id] = _Place()
        return found

    def payers(self, end: int) -> Iterator[tuple[str, int]]:
        """Who computed the tokens before `end`, and how many of them."""
        for start, stop, payer in self._spans:
            if start < end:
                yield payer, min(stop, end) - start

    def paint(self, start: int, end: int, payer: str) -> None:
        """The tokens from `start` to `end` have now been computed by `payer`."""
        before = ((a, min(b, start), who) for a, b, who in self._spans if a < start)
        after = ((max(a, end), b, who) for a, b, who in self._spans if b > end)
        self._spans = (*before, (start, end, payer), *after) if self._spans else ((start, end, payer),)


def shared(trace: Trace, requests: pd.DataFrame) -> pd.DataFrame:
    """Cached prompt tokens by who computed them last: payer, client, tokens, sorted by both names.

    `requests` as in `suite.results`. The tokens of a client add up to the `cached_tokens` of its finished
    requests. Requests admitted at one instant are walked by their cached tokens, so that each comes after
    those whose work it found. What nobody is known to have computed counts as the client's own.
    """
    by_id = {request.id: request for request in trace.requests}
    admitted = requests[requests["admitted"].notna()].sort_values(
        ["admitted", "cached_tokens"], kind="stable"
    )
    roots: defaultdict[str, _Place] = defaultdict(_Place)
    ledger: Counter[tuple[str, str]] = Counter()
    columns = (admitted[name] for name in ("id", "cached_tokens", "status"))
    for id, cached, status, worker in zip(*columns, admitted["worker"].fillna(""), strict=True):
        request = by_id[id]
        found = _walk(request, int(cached), roots[worker])
        if status == "finished":
            for payer, tokens in found.items():
                ledger[payer, request.client] += tokens
    rows = sorted((payer, client, tokens) for (payer, client), tokens in ledger.items() if tokens)
    return pd.DataFrame(rows, columns=list(SHARING_COLUMNS))


def _walk(request: Request, cached: int, place: _Place) -> Counter[str]:
    """Take a request's course from the root: whose work it found; the rest is now its client's."""
    found: Counter[str] = Counter()
    left, before = cached, 0
    for id, tokens in request.prompt:
        place = place.then(before, id)
        there = min(left, tokens)
        if there:
            for payer, known in place.payers(there):
                found[payer] += known
        if there < tokens:
            place.paint(there, tokens, request.client)
        left, before = left - there, tokens
    place.then(before, REPLY + request.id).paint(0, request.output_tokens, request.client)
    found[request.client] += cached - found.total()
    return found
