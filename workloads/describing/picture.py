"""A trace on one page: rates, lengths, sessions, what caches of any size save, and who shares with whom."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, PercentFormatter
from PIL import Image

from suite.errors import BadInput
from suite.files import write_atomically
from workloads.describing.describe import Description, Engine
from workloads.describing.tables import load_line, printable

_SHOWN = 8
"""Clients that get a colour and a bar of their own; the page says when there are more."""
_BINS = 40


def picture(description: Description, path: Path, engine: Engine | None = None) -> None:
    """Draw a description as one page (.png or .pdf), written atomically; the pool of `engine` is marked."""
    if path.suffix not in (".png", ".pdf"):
        raise BadInput(f"{path}: a picture ends in .png or .pdf")
    with sns.axes_style("whitegrid"), matplotlib.rc_context({"font.size": 9}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = page(description, engine)
        save = _save_pdf if path.suffix == ".pdf" else _save_png
        write_atomically(path, lambda draft: save(figure, draft))


def _save_pdf(figure: Figure, path: Path) -> None:
    figure.savefig(path, metadata={"CreationDate": None})


def _save_png(figure: Figure, path: Path) -> None:
    """In 256 colours, which nobody can tell from all of them: a third of the size."""
    drawn = BytesIO()
    figure.savefig(drawn, format="rgba", dpi=100)
    size = (int(figure.bbox.width), int(figure.bbox.height))
    image = Image.frombytes("RGBA", size, drawn.getvalue()).convert("RGB")
    image.quantize(256, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


def page(description: Description, engine: Engine | None = None) -> Figure:
    """The page as a figure: two rows of three, or the first row alone where nothing is shared."""
    hits = description.curve.enough > 0
    figure = Figure(figsize=(15, 7.5 if hits else 4), layout="constrained")
    axes = figure.subplots(2 if hits else 1, 3, squeeze=False)
    figure.suptitle("\n".join(_title(description, engine)), fontsize=11)
    _rates(description, axes[0, 0])
    _lengths(description, axes[0, 1])
    _sessions(description, axes[0, 2])
    if hits:
        _cache(description, engine, axes[1, 0])
        _hits(description, axes[1, 1])
        _sharing(description, axes[1, 2])
    return figure


def _title(description: Description, engine: Engine | None) -> Iterator[str]:
    header = description.header
    requests, clients = description.total.requests, len(description.clients)
    yield (
        f"{_label(header.name, 40)} (seed {header.seed}): {requests:,} request{'s' * (requests != 1)} of "
        f"{clients:,} client{'s' * (clients != 1)} in {description.span:,.0f} s"
    )
    if engine is not None:
        yield load_line(description, engine)
    if not description.curve.enough:
        yield "no prompt begins as an earlier one does: a prefix cache saves nothing"


# -- traffic -----------------------------------------------------------------------------------------------


def _rates(description: Description, ax: Axes) -> None:
    if description.span:
        _rates_by_client(description, ax)
    else:
        _nothing(ax, "Request rate", "all requests come at once")


def _nothing(ax: Axes, title: str, why: str) -> None:
    ax.text(0.5, 0.5, why, ha="center", va="center", color="0.4")
    ax.set(title=title, xticks=[], yticks=[])


def _rates_by_client(description: Description, ax: Axes) -> None:
    edges = np.linspace(0, description.span, _BINS + 1)
    width = edges[1] - edges[0]
    arrivals = description.requests.groupby("client", observed=True)["arrival"]
    colours = sns.color_palette("colorblind", _SHOWN)
    for client, colour in zip(description.clients, colours, strict=False):
        counts, _ = np.histogram(arrivals.get_group(client.name), edges)
        label = _label(client.name) + ("\n(misbehaving)" if client.misbehaving else "")
        ax.stairs(counts / width, edges, color=colour, linewidth=1.3, label=label)
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    ax.set(title="Request rate" + _first(description), xlabel="time (s)", ylabel="requests/s", ylim=(0, None))


def _lengths(description: Description, ax: Axes) -> None:
    _share_at_or_below(ax, description.requests["input_tokens"], "prompt")
    _share_at_or_below(ax, description.requests["output_tokens"], "output", linestyle="--")
    _logarithmic(ax)
    ax.set(title="Lengths", xlabel="tokens (log scale)", ylabel="share of requests at or below")
    ax.legend(fontsize=8)


def _sessions(description: Description, ax: Axes) -> None:
    if description.sessions.empty:
        _nothing(ax, "Sessions", "no sessions: each request stands alone")
    else:
        _session_sizes(description.sessions, ax)


def _session_sizes(sessions: pd.DataFrame, ax: Axes) -> None:
    _share_at_or_below(ax, sessions["requests"], "all requests", linewidth=4, alpha=0.5)
    _share_at_or_below(ax, sessions["depth"], "longest chain (depth)")
    _share_at_or_below(ax, sessions["width"], "most at one depth (width)", linestyle="--")
    _logarithmic(ax)
    ax.set(title="Sessions", xlabel="requests of a session (log scale)")
    ax.set(ylabel="share of sessions at or below")
    ax.legend(fontsize=8)


def _share_at_or_below(ax: Axes, values: pd.Series[int], label: str, **style: Any) -> None:
    distinct, counts = np.unique(values, return_counts=True)
    shares = [0, *np.cumsum(counts) / len(values)]
    ax.step([distinct[0], *distinct], shares, where="post", label=label, **style)
    ax.yaxis.set_major_formatter(PercentFormatter(1))


def _logarithmic(ax: Axes) -> None:
    """An axis of whole numbers, each decade as long."""
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    low = max(low, 0.8)
    ax.set_xlim(left=low)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1_000 * low else (1,)))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.xaxis.set_minor_formatter(NullFormatter())


# -- locality ----------------------------------------------------------------------------------------------


def _cache(description: Description, engine: Engine | None, ax: Axes) -> None:
    curve = description.curve
    most = max(curve.enough, engine.kv_tokens if engine else 0, 10_000)
    sizes = np.geomspace(min(1_000, most / 100), 2 * most, 200)
    ax.plot(sizes, curve.ratio(sizes), color=sns.color_palette("colorblind")[0])
    ax.axhline(curve.limit, color="0.5", linestyle=":", label=f"infinite: {curve.limit:.1%}")
    if engine is not None:
        (ratio,) = curve.ratio([engine.kv_tokens])
        label = f"{engine.name}:\n{engine.kv_tokens:,} tokens, {ratio:.1%}"
        ax.axvline(engine.kv_tokens, color=sns.color_palette("colorblind")[1], label=label)
    ax.set(
        title="Hit ratio of an LRU prefix cache",
        xlabel="cache size in tokens (log scale)",
        xlim=(sizes[0], sizes[-1]),
    )
    _logarithmic(ax)
    _prompt_shares(ax)


def _prompt_shares(ax: Axes) -> None:
    """An axis of shares, with room for a legend above 100 %."""
    ax.set(ylabel="share of prompt tokens", ylim=(0, 1.25))
    ax.set_yticks(np.linspace(0, 1, 6))
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.legend(fontsize=8, loc="upper center", ncols=2)


def _hits(description: Description, ax: Axes) -> None:
    clients = (*description.clients[:_SHOWN], description.total)
    own = pd.Series([client.hit_ratio - client.from_others for client in clients])
    others = pd.Series([client.from_others for client in clients])
    places = np.arange(len(clients))
    colours = sns.color_palette("colorblind")
    ax.bar(places, own, color=colours[0], label="own prefixes")
    ax.bar(places, others, bottom=own, color=colours[1], label="another client's")
    _name_columns(ax, places, [_label(client.name) for client in clients])
    ax.set(title="Hits in an infinite cache" + _first(description))
    ax.grid(visible=False, axis="x")
    _prompt_shares(ax)


def _sharing(description: Description, ax: Axes) -> None:
    names = [client.name for client in description.clients[:_SHOWN]]
    labels = [_label(name) for name in names]
    sns.heatmap(
        _shared(description, names).to_numpy(),
        ax=ax,
        cmap="cividis",
        vmin=0,
        vmax=1,
        annot=True,
        fmt=".0%",
        annot_kws={"fontsize": 8},
        yticklabels=labels,
        cbar_kws={"label": "share of the sender's prompt tokens", "format": PercentFormatter(1, decimals=0)},
    )
    ax.set(
        title="Who hits whose prefixes" + _first(description), xlabel="computed first by", ylabel="sent by"
    )
    ax.tick_params(axis="y", rotation=0)
    _name_columns(ax, np.arange(len(labels)) + 0.5, labels)


def _shared(description: Description, names: list[str]) -> pd.DataFrame:
    """Of each sender's prompt tokens the share that hits, by owner."""
    tokens = description.sharing.pivot(index="sender", columns="owner", values="tokens")
    prompts = description.requests.groupby("client", observed=True)["input_tokens"].sum()
    return tokens.reindex(index=names, columns=names).fillna(0).div(prompts.loc[names].to_numpy(), axis=0)


# -- labels ------------------------------------------------------------------------------------------------


def _name_columns(ax: Axes, places: np.ndarray, labels: list[str]) -> None:
    ax.set_xticks(places, labels, rotation=35, ha="right", rotation_mode="anchor")


def _first(description: Description) -> str:
    clients = len(description.clients)
    return f" ({_SHOWN} largest of {clients:,} clients)" if clients > _SHOWN else ""


def _label(name: str, width: int = 14) -> str:
    """A name as plain text: `$` would begin a formula, a leading `_` would hide it from the legend."""
    text = printable(name, width).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
