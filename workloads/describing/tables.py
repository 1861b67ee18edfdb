"""A description for a terminal, in 100 columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isnan

from rich.table import Table
from rich.text import Text

from workloads.describing.describe import Description, Engine
from workloads.describing.summaries import WINDOW, Spread, Summary

_SHOWN = 16
"""Clients that get a row of their own; the last row says how many more there are."""
_SIZES = 8
"""Cache sizes for which the hit ratio is printed."""


def printable(name: str, width: int = 32) -> str:
    """A client's name as data to be shown: no control characters, not too long."""
    clean = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in name)
    return clean if len(clean) <= width else f"{clean[: width - 1]}\N{HORIZONTAL ELLIPSIS}"


def tables(description: Description, engine: Engine | None = None) -> list[Table]:
    """Who sends how much, how long, in what sessions, and what a cache could save: that of `engine` too."""
    parts = [_traffic(description), _lengths(description)]
    if description.total.sessions:
        parts.append(_sessions(description))
    parts.append(_locality(description))
    if description.curve.enough:
        parts.append(_sizes(description, engine))
    return parts


def load_line(description: Description, engine: Engine) -> str:
    """How much of what the engine can serve is asked of it, in a line."""
    rate = description.total.rate
    return (
        f"load {_number(rate / engine.rate)}: {_number(rate)} requests/s offered, {_number(engine.rate)} "
        f"requests/s served by the simulator when all wait ({engine.name})"
    )


def _by_client(
    description: Description, title: str, columns: tuple[str, ...], row: Callable[[Summary], tuple[str, ...]]
) -> Table:
    """A row for each of the largest clients, and one for all."""
    table = _table(title, "client", *columns)
    table.columns[0].justify = "left"
    for name, client in _rows(description):
        table.add_row(name, *row(client))
    more = len(description.clients) - _SHOWN
    if more > 0:
        table.add_row(Text(f"and {more:,} more clients", style="dim"))
    table.add_section()
    table.add_row(Text("all clients", style="bold"), *row(description.total))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=Text(title), title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _rows(description: Description) -> Iterator[tuple[Text, Summary]]:
    for client in description.clients[:_SHOWN]:
        yield Text(printable(client.name) + (" (misbehaving)" if client.misbehaving else "")), client


def _traffic(description: Description) -> Table:
    header = description.header
    title = f"{printable(header.name)}: {description.span:,.0f} s, seed {header.seed}"
    columns = ("requests", "share", "req/s", "gap CV", f"IDC {WINDOW:.0f} s", "weight")
    table = _by_client(
        description,
        title,
        columns,
        lambda client: (
            f"{client.requests:,}",
            f"{client.share:.1%}",
            *map(_number, (client.rate, client.cv, client.dispersion)),
            f"{client.weight:g}",
        ),
    )
    if "provenance" in header.choices:
        table.caption = Text(printable(str(header.choices["provenance"]), 400))
        table.caption_justify = "left"
    return table


def _lengths(description: Description) -> Table:
    columns = tuple(f"{what} {statistic}" for what in ("in", "out") for statistic in ("mean", "P50", "P99"))
    return _by_client(
        description,
        "Tokens of prompts (in) and outputs (out)",
        columns,
        lambda client: tuple(
            f"{value:,.0f}"
            for spread in (client.input_tokens, client.output_tokens)
            for value in (spread.mean, spread.p50, spread.p99)
        ),
    )


def _sessions(description: Description) -> Table:
    columns = ("sessions", *(f"{what}\nmean  P99" for what in ("requests", "depth", "width", "think s")))
    return _by_client(
        description,
        "Sessions: requests, longest chain (depth), most at one depth (width), think times",
        columns,
        lambda client: (
            f"{client.sessions:,}",
            *map(_pair, (client.session_requests, client.depth, client.width, client.think)),
        ),
    )


def _locality(description: Description) -> Table:
    columns = ("prompt tokens", "hit", "own", "from other clients")
    return _by_client(
        description,
        "Infinite prefix cache: share of prompt tokens that hit",
        columns,
        lambda client: (
            f"{client.requests * client.input_tokens.mean:,.0f}",
            f"{client.hit_ratio:.1%}",
            f"{client.hit_ratio - client.from_others:.1%}",
            f"{client.from_others:.1%}",
        ),
    )


def _sizes(description: Description, engine: Engine | None) -> Table:
    curve = description.curve
    sizes = {_short(size): size for size in _round_sizes(curve.enough)}
    if engine is not None:
        sizes[f"{engine.name}:\n{engine.kv_tokens:,}"] = engine.kv_tokens
    table = _table("LRU prefix cache of so many tokens: share of prompt tokens that hit", *sizes, "infinite")
    table.add_row(*(f"{ratio:.1%}" for ratio in (*curve.ratio(list(sizes.values())), curve.limit)))
    return table


def _round_sizes(enough: int) -> list[int]:
    """1 and 3 times powers of ten, ascending; the last one is the first that is enough."""
    sizes = [1]
    while sizes[-1] < enough:
        sizes.append(sizes[-1] // 3 * 10 if len(sizes) % 2 == 0 else sizes[-1] * 3)
    return sizes[-_SIZES:]


def _short(tokens: int) -> str:
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if tokens >= unit:
            return f"{tokens // unit}{name}"
    return str(tokens)


def _pair(spread: Spread) -> str:
    shown = ("-" if isnan(value) else f"{value:,.1f}" for value in (spread.mean, spread.p99))
    return " ".join(f"{number:>5}" for number in shown)


def _number(value: float) -> str:
    if isnan(value):
        return "-"
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"
