"""How schedulers and clients look: fixed colours, and markers and dashes that read in grey."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Literal, NamedTuple, TypeAlias

import matplotlib
import seaborn as sns
from matplotlib import font_manager
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

LONGEST_NAME = 40

Dashes: TypeAlias = Literal["-", "--", "-.", ":"]
_DASHES: tuple[Dashes, ...] = ("-", "--", "-.", ":")

_CJK = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
    "PingFang SC",
    "Hiragino Sans",
    "Microsoft YaHei",
)
"""Fonts that have Chinese, Japanese and Korean characters; the one found first serves for those."""


class Look(NamedTuple):
    """Colour, marker and line style of one scheduler or client."""

    color: str
    marker: str
    dashes: Dashes


_POLICIES = {
    "fcfs": Look("#595959", "s", ":"),
    "lpm": Look("#d55e00", "^", "--"),
    "lpm-fallback": Look("#e69f00", "v", "-."),
    "vtc": Look("#0072b2", "o", "-"),
    "dlpm": Look("#009e73", "D", "-"),
}
_ROUTERS = {
    "round-robin": Look("#d55e00", "^", "--"),
    "client-round-robin": Look("#0072b2", "o", "-"),
    "least-outstanding": Look("#8c510a", "<", "-."),
    "power-of-two": Look("#56b4e9", "X", "-."),
    "cache-aware": Look("#e69f00", "v", "-."),
    "preble": Look("#7b3294", "*", ":"),
    "d2lpm": Look("#009e73", "D", "-"),
    "sglang-router": Look("#cc79a7", "P", "--"),
    "vllm-router": Look("#1b1b6f", "p", ":"),
}
"""The look of what stands behind each router, that of the scheduler it goes with in the papers where there is
one; another project's router goes by its program."""
_OTHERS = (
    Look("#cc79a7", "P", "--"),
    Look("#56b4e9", "X", "-."),
    Look("#7b3294", "*", ":"),
    Look("#8c510a", "<", "-"),
    Look("#a6761d", ">", "--"),
    Look("#1b1b6f", "p", "-."),
    Look("#b30059", "h", ":"),
)
_CLIENT_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#7b3294", "#8c510a", "#595959")
_CLIENT_MARKERS = "osDvPX<>"
_MISBEHAVING_COLORS = ("#d40000", "#ff7f50", "#8b0000")
MOST_CLIENTS = len(_CLIENT_COLORS)
"""Clients drawn in a colour of their own; further ones are drawn in one light grey."""


def policies(names: Collection[str]) -> dict[str, Look]:
    """The look of each policy: fixed for those of the suite, by rank of name for others.

    Behind a router it is the router's; where two policies would look alike the second is a variant.
    """
    fixed = {name: look for name in set(names) if (look := _fixed(name))}
    taken = {look.color for look in fixed.values()}
    free = [look for look in _OTHERS if look.color not in taken] or _OTHERS
    strangers = sorted(set(names) - set(fixed))
    looks = fixed | {name: free[i % len(free)] for i, name in enumerate(strangers)}
    return _POLICIES | _told_apart({name: looks[name] for name in sorted(looks, key=_routed)})


def schedulers(policy_of: Mapping[str, str]) -> dict[str, Look]:
    """The look of each scheduler, given its policy: those of one policy are variants of its look."""
    base = policies(policy_of.values())
    return _told_apart({scheduler: base[policy] for scheduler, policy in policy_of.items()})


def _fixed(policy: str) -> Look | None:
    router, plus, _ = policy.partition("+")
    return _ROUTERS.get(router.partition(":")[0]) if plus else _POLICIES.get(policy)


def _routed(policy: str) -> tuple[bool, str]:
    """Sort key: what stands behind a router comes last."""
    return "+" in policy, policy


def _told_apart(looks: Mapping[str, Look]) -> dict[str, Look]:
    """The same looks, but of those in one colour each further one paler and dashed otherwise."""
    seen: Counter[str] = Counter()
    found = {}
    for name, look in looks.items():
        found[name] = _variant(look, seen[look.color])
        seen[look.color] += 1
    return found


def _variant(look: Look, number: int) -> Look:
    dashes = _DASHES[(_DASHES.index(look.dashes) + number) % 4]
    return look._replace(color=_paler(look.color, 0.22 * min(number, 3)), dashes=dashes)


def _paler(color: str, share: float) -> str:
    """The colour with this share of white mixed in."""
    red, green, blue = (part + (1 - part) * share for part in to_rgb(color))
    return to_hex((red, green, blue))


def clients(names: Sequence[str], misbehaving: Collection[str]) -> dict[str, Look]:
    """The look of each client to be drawn: misbehaving ones red and dashed."""
    bad = [name for name in names if name in misbehaving]
    good = [name for name in names if name not in misbehaving]
    reds = {name: Look(_MISBEHAVING_COLORS[i % 3], "^", "--") for i, name in enumerate(bad)}
    return reds | {
        name: Look(_CLIENT_COLORS[i % MOST_CLIENTS], _CLIENT_MARKERS[i % MOST_CLIENTS], "-")
        for i, name in enumerate(good)
    }


def plain(name: str) -> str:
    """A foreign name that fits into a figure: printable, not too long, never read as a formula or hidden."""
    shown = "".join(c if c.isprintable() else "?" for c in name)
    if len(shown) > LONGEST_NAME:
        shown = f"{shown[: LONGEST_NAME - 1]}…"
    return shown.replace("$", r"\$").replace("_", "\N{WORD JOINER}_", shown.startswith("_"))


@cache
def _fallback_fonts() -> tuple[str, ...]:
    """The first font of this machine that has CJK characters, if any."""
    there = set(font_manager.get_font_names())
    return tuple(name for name in _CJK if name in there)[:1]


@contextmanager
def styled() -> Iterator[None]:
    """Draw and save figures inside this: it sets the style and leaves matplotlib as it was.

    A character that the font lacks is drawn as a box, silently.
    """
    settings = {
        **sns.axes_style("ticks"),
        **sns.plotting_context("paper"),
        "font.family": ["sans-serif", *_fallback_fonts()],
        "axes.grid": True,
        "grid.color": "#e6e6e6",
        "legend.frameon": False,
        "lines.markersize": 3.5,
        "lines.linewidth": 1.3,
        "pdf.fonttype": 42,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def panels(count: int, width: float, height: float, most: int = 4) -> Figure:
    """A figure with `count` axes in a grid of at most `most` columns; sizes of one panel in inches."""
    columns = min(count, most)
    lines = -(-count // columns)
    figure = Figure(figsize=(max(width * columns, 4.5), height * lines + 0.6), layout="constrained")
    for i in range(count):
        figure.add_subplot(lines, columns, i + 1)
    return figure
