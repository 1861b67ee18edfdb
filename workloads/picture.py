"""A trace on one page: rates over time, lengths, what a perfect cache would save, who shares with whom."""

from __future__ import annotations

import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from suite.errors import BadInput
from suite.files import write_atomically
from workloads.describe import Description, printable

_SHOWN = 8
"""Clients that get a colour and a bar of their own; the page says when there are more."""
_BINS = 40


def picture(description: Description, path: Path) -> None:
    """Draw a description as one page (.png or .pdf), written atomically."""
    if path.suffix not in (".png", ".pdf"):
        raise BadInput(f"{path}: a picture ends in .png or .pdf")
    with sns.axes_style("whitegrid"), matplotlib.rc_context({"font.size": 9}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = _page(description)
        stamp = {"CreationDate": None} if path.suffix == ".pdf" else {}
        write_atomically(path, lambda draft: figure.savefig(draft, dpi=150, metadata=stamp))


def _page(description: Description) -> Figure:
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    axes = figure.subplots(2, 2)
    figure.suptitle(_title(description))
    _rates(description, axes[0, 0])
    _lengths(description, axes[0, 1])
    _hits(description, axes[1, 0])
    _sharing(description, axes[1, 1])
    return figure


def _title(description: Description) -> str:
    total, clients = description.total, len(description.clients)
    return (
        f"{_label(description.header.name)} (seed {description.header.seed}): {total.requests:,} requests of "
        f"{clients} clients in {description.span:,.0f} s, ideal hit ratio {total.hit_ratio:.1%}"
    )


def _rates(description: Description, ax: Axes) -> None:
    edges = np.linspace(0, description.span or 1.0, _BINS + 1)
    width = edges[1] - edges[0]
    arrivals = description.requests.groupby("client")["arrival"]
    colours = sns.color_palette("colorblind", _SHOWN)
    for client, colour in zip(description.clients, colours, strict=False):
        counts, _ = np.histogram(arrivals.get_group(client.name), edges)
        label = _label(client.name) + ("\n(misbehaving)" if client.misbehaving else "")
        ax.stairs(counts / width, edges, color=colour, linewidth=1.3, label=label)
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    ax.set(title="Request rate" + _first(description), xlabel="time (s)", ylabel="requests/s", ylim=(0, None))


def _lengths(description: Description, ax: Axes) -> None:
    columns = {"input_tokens": "prompt", "output_tokens": "output"}
    tokens = description.requests[list(columns)].rename(columns=columns)
    sns.ecdfplot(tokens, ax=ax, log_scale=True, palette="colorblind")
    ax.set(title="Lengths", xlabel="tokens (log scale)", ylabel="share of requests at or below")
    ax.yaxis.set_major_formatter(PercentFormatter(1))


def _hits(description: Description, ax: Axes) -> None:
    clients = (*description.clients[:_SHOWN], description.total)
    own = pd.Series([client.hit_ratio - client.from_others for client in clients])
    others = pd.Series([client.from_others for client in clients])
    places = np.arange(len(clients))
    colours = sns.color_palette("colorblind")
    ax.bar(places, own, color=colours[0], label="own prefixes")
    ax.bar(places, others, bottom=own, color=colours[1], label="another client's")
    _name_columns(ax, places, [_label(client.name) for client in clients])
    ax.set(title="Ideal prefix hits" + _first(description), ylabel="share of prompt tokens", ylim=(0, 1.2))
    ax.set_yticks(np.linspace(0, 1, 6))
    ax.grid(visible=False, axis="x")
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.legend(fontsize=8, loc="upper center", ncols=2)


def _sharing(description: Description, ax: Axes) -> None:
    part = description.sharing.iloc[:_SHOWN, :_SHOWN]
    prompts = description.requests.groupby("client")["input_tokens"].sum()
    share = part.div(prompts.reindex(part.index), axis=0)
    labels = [_label(name) for name in part.index]
    sns.heatmap(
        share.to_numpy(),
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


def _name_columns(ax: Axes, places: np.ndarray, labels: list[str]) -> None:
    ax.set_xticks(places, labels, rotation=35, ha="right", rotation_mode="anchor")


def _first(description: Description) -> str:
    clients = len(description.clients)
    return f" ({_SHOWN} largest of {clients} clients)" if clients > _SHOWN else ""


def _label(name: str) -> str:
    """A name as plain text: `$` would begin a formula, a leading `_` would hide it from the legend."""
    text = printable(name, 14).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
