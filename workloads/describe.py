"""What is in a trace: who sends how much, how bursty, how long, and how much a perfect cache would save.

The ideal hit ratio is that of an infinite cache which holds everything sent before, in file order, prompts
and replies alike: tokens of a prompt that agree with the beginning of something before, over all its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, field

import numpy as np
import pandas as pd
from rich.table import Table
from rich.text import Text

from suite.trace import REPLY, Header, Request, Segment, Trace


@dataclass(frozen=True)
class Spread:
    """A distribution of lengths in three numbers, in tokens."""

    mean: float
    p50: float
    p99: float


@dataclass(frozen=True)
class Summary:
    """One client, or all of them together.

    `share` is of all requests; `rate` is requests/s over the span of the whole trace; `cv` is the coefficient
    of variation of the gaps between beginnings, of sessions and of requests that belong to none. `hit_ratio`
    is ideal (see the module), `from_others` the part of the prompt tokens that hit what another client
    computed first. Ratios of nothing are NaN.
    """

    name: str
    requests: int
    sessions: int
    share: float
    rate: float
    cv: float
    weight: float
    input_tokens: Spread
    output_tokens: Spread
    hit_ratio: float
    from_others: float
    misbehaving: bool


@dataclass(frozen=True, eq=False)
class Description:
    """A trace described. All frames keep the clients' order: most requests first.

    `requests` has one row per request: client, session, arrival (s), input_tokens, output_tokens, hit_tokens
    (ideal), others_tokens (of those, computed first by another client). `sharing` holds prompt tokens that
    hit: rows are the clients that sent them, columns those that had computed them first.
    """

    header: Header
    span: float
    """Seconds to the last arrival."""
    clients: tuple[Summary, ...]
    total: Summary
    requests: pd.DataFrame
    sharing: pd.DataFrame


def describe(trace: Trace) -> Description:
    """Describe a trace. Arrivals of requests that wait for others are the earliest possible ones."""
    frame, tokens = _measure(trace)
    span = max(request.arrival for request in trace.requests)
    order = frame["client"].value_counts().index.to_list()
    weights = {request.client: request.weight for request in trace.requests}
    parts = dict(iter(frame.groupby("client", observed=True)))
    summarise = _summariser(len(frame), span)
    return Description(
        header=trace.header,
        span=span,
        clients=tuple(
            summarise(name, parts[name], weights[name], name in trace.header.misbehaving) for name in order
        ),
        total=summarise("all clients", frame, sum(weights.values()), False),
        requests=frame,
        sharing=tokens.reindex(index=order, columns=order, fill_value=0),
    )


def _measure(trace: Trace) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row per request, and the matrix of hit tokens by (client that sent, client that computed)."""
    cache = _IdealCache()
    sharing: dict[tuple[str, str], int] = {}
    rows = []
    for request in trace.requests:
        hit = others = 0
        for owner, tokens in cache.send(request):
            hit += tokens
            others += tokens if owner != request.client else 0
            sharing[request.client, owner] = sharing.get((request.client, owner), 0) + tokens
        lengths = (request.prompt_tokens, request.output_tokens, hit, others)
        rows.append((request.client, request.session, request.arrival, *lengths))
    names = ["client", "session", "arrival", "input_tokens", "output_tokens", "hit_tokens", "others_tokens"]
    clients = list(trace.clients)
    matrix = [[sharing.get((sender, owner), 0) for owner in clients] for sender in clients]
    return pd.DataFrame(rows, columns=names), pd.DataFrame(matrix, index=clients, columns=clients)


def _summariser(requests: int, span: float) -> Callable[[str, pd.DataFrame, float, bool], Summary]:
    def summarise(name: str, part: pd.DataFrame, weight: float, misbehaving: bool) -> Summary:
        tokens = part["input_tokens"].sum()
        return Summary(
            name=name,
            requests=len(part),
            sessions=part["session"].nunique(),
            share=len(part) / requests,
            rate=len(part) / span if span else float("nan"),
            cv=_cv(_beginnings(part)),
            weight=weight,
            input_tokens=_spread(part["input_tokens"]),
            output_tokens=_spread(part["output_tokens"]),
            hit_ratio=float(part["hit_tokens"].sum() / tokens),
            from_others=float(part["others_tokens"].sum() / tokens),
            misbehaving=misbehaving,
        )

    return summarise


def _beginnings(part: pd.DataFrame) -> np.ndarray:
    """When sessions, and requests that belong to none, begin."""
    alone = part["session"].isna()
    sessions = part[~alone].groupby("session")["arrival"].min()
    return np.concatenate([part.loc[alone, "arrival"].to_numpy(float), sessions.to_numpy(float)])


def _cv(arrivals: np.ndarray) -> float:
    gaps = np.diff(np.sort(arrivals))
    return float(gaps.std() / gaps.mean()) if len(gaps) > 1 and gaps.mean() > 0 else float("nan")


def _spread(tokens: pd.Series[int]) -> Spread:
    return Spread(float(tokens.mean()), float(tokens.quantile(0.5)), float(tokens.quantile(0.99)))


# -- the ideal cache ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Stream:
    """One segment id at one place of the trie: how far it was computed, by whom, and where it was left."""

    computed: list[tuple[int, str]] = field(default_factory=list)
    """(first token not covered, client): pieces in ascending order."""
    leaves: dict[int, dict[str, _Stream]] = field(default_factory=dict)
    """What follows after the first `key` tokens of the stream."""

    def extend(self, tokens: int, client: str) -> None:
        if not self.computed or tokens > self.computed[-1][0]:
            self.computed.append((tokens, client))

    def owners(self, tokens: int) -> Iterator[tuple[str, int]]:
        begin = 0
        for end, client in self.computed:
            if begin < tokens:
                yield client, min(end, tokens) - begin
            begin = end


class _IdealCache:
    """A trie over segments: infinite, and filled by each request the moment it is sent."""

    def __init__(self) -> None:
        self._root: dict[str, _Stream] = {}

    def send(self, request: Request) -> list[tuple[str, int]]:
        """(client that computed them first, tokens) of the prompt's hits; then cache prompt and reply."""
        node = self._root
        hits: list[tuple[str, int]] = []
        for id, tokens in (*request.prompt, Segment(f"{REPLY}{request.id}", request.output_tokens)):
            stream = node.get(id)
            if stream is None:
                stream = node[id] = _Stream()
            hits += stream.owners(tokens)
            stream.extend(tokens, request.client)
            node = stream.leaves.setdefault(tokens, {})
        return hits


# -- tables ------------------------------------------------------------------------------------------------


def printable(name: str, width: int = 32) -> str:
    """A client's name as data to be shown: no control characters, not too long."""
    clean = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in name)
    return clean if len(clean) <= width else f"{clean[: width - 1]}\N{HORIZONTAL ELLIPSIS}"


def tables(description: Description) -> list[Table]:
    """The description for a terminal: who sends how much, how long, and what the cache could save."""
    return [_traffic(description), _lengths(description), _locality(description)]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=Text(title), title_justify="left")
    table.add_column("client")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _rows(description: Description) -> Iterator[tuple[Text, Summary]]:
    for client in description.clients:
        yield Text(printable(client.name)), client
    yield Text("all clients", style="bold"), description.total


def _traffic(description: Description) -> Table:
    title = f"{printable(description.header.name)}: {description.span:.0f} s, seed {description.header.seed}"
    table = _table(title, "requests", "sessions", "share", "req/s", "gap CV", "weight")
    for name, client in _rows(description):
        table.add_row(
            name + " (misbehaving)" if client.misbehaving else name,
            f"{client.requests:,}",
            f"{client.sessions:,}" if client.sessions else "-",
            f"{client.share:.1%}",
            _number(client.rate),
            _number(client.cv),
            f"{client.weight:g}",
        )
    return table


def _lengths(description: Description) -> Table:
    columns = [f"{what} {statistic}" for what in ("in", "out") for statistic in ("mean", "P50", "P99")]
    table = _table("Tokens of prompts (in) and outputs (out)", *columns)
    for name, client in _rows(description):
        spreads = (client.input_tokens, client.output_tokens)
        table.add_row(name, *(f"{value:,.0f}" for spread in spreads for value in astuple(spread)))
    return table


def _locality(description: Description) -> Table:
    table = _table("Ideal prefix cache", "prompt tokens", "hit", "own", "from other clients")
    for name, client in _rows(description):
        table.add_row(
            name,
            f"{client.requests * client.input_tokens.mean:,.0f}",
            f"{client.hit_ratio:.1%}",
            f"{client.hit_ratio - client.from_others:.1%}",
            f"{client.from_others:.1%}",
        )
    return table


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2f}"
