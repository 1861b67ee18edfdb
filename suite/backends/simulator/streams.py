"""When each token came: put together after a run from what was noted in it, `suite.results`'s streams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from suite.backends.simulator.engine import Engine
from suite.backends.simulator.live import Live
from suite.results import STREAM_COLUMNS


def chunks(requests: Sequence[Live], engines: Sequence[Engine]) -> pd.DataFrame:
    """One row per chunk: a token that ends a prefill, or a request's tokens of a stretch of decode steps.

    id, time (seconds, when its last token came), tokens; request by request, of each in order of time. The
    `engines` are those that served the requests.
    """
    events = np.array([event for engine in engines for event in _events(engine)], float).reshape(-1, 2)
    numbers = np.arange(len(events))
    place = {live: i for i, live in enumerate(requests)}
    shares = sorted(_all_shares(engines), key=lambda share: (place[share[0]], events[share[1], 0]))
    rows = np.concatenate([numbers[:0], *(numbers[first:last] for _, first, last in shares)])
    lengths = [last - first for _, first, last in shares]
    owners = np.repeat([place[live] for live, *_ in shares], lengths).astype(int)
    ids = pd.array([live.id for live in requests], dtype="str").take(owners)
    columns = (ids, events[rows, 0], events[rows, 1].astype(int))
    return pd.DataFrame(dict(zip(STREAM_COLUMNS, columns, strict=True)))


def _events(engine: Engine) -> list[tuple[float, int]]:
    """When tokens came, and how many to each who got some: all stretches, then all ends of a prefill."""
    return [*engine.journal.stretches, *((time, 1) for time, _ in engine.journal.first_tokens)]


def _all_shares(engines: Sequence[Engine]) -> Iterator[tuple[Live, int, int]]:
    """Who got tokens in which events of all engines, from one number to before another."""
    before = 0
    for engine in engines:
        yield from ((live, before + first, before + last) for live, first, last in _shares(engine))
        before += len(_events(engine))


def _shares(engine: Engine) -> Iterator[tuple[Live, int, int]]:
    """Who got tokens in which events of one engine. Who is in the batch gets a token in each step of a
    stretch; nobody joins within one."""
    journal, stays = engine.journal, engine.batch.stays
    for number, (_, live) in enumerate(journal.first_tokens, len(journal.stretches)):
        yield live, number, number + 1
    ticks = np.cumsum([steps for _, steps in journal.stretches])
    spans = np.array([span for _, *span in stays], int).reshape(-1, 2)
    for (live, *_), (first, last) in zip(stays, np.searchsorted(ticks, spans, "right").tolist(), strict=True):
        if first < last:
            yield live, first, last
