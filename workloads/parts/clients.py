"""Clients: how many there are, and how the rate is divided among them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from suite.trace import MOST_TOKENS, Segment
from workloads.parts.arrivals import Arrivals
from workloads.parts.lengths import Lengths
from workloads.parts.part import LEAST, Clientele, Name, NonNegative, Part, Positive, Weight
from workloads.parts.streams import stream


def zipf(ranks: int, exponent: float) -> np.ndarray:
    """Chances of ranks 0, 1, ...: proportional to (rank + 1) ** -exponent; exponent 0 makes them equal."""
    weights = np.arange(1, ranks + 1) ** -float(exponent)
    chances: np.ndarray = weights / weights.sum()
    return chances


Whose = Literal["client", "shared"]
"""Whose a prefix is: each client's own, or one shared by all."""


def numbered(count: int) -> list[str]:
    """The names of clients that were given none."""
    return [f"client-{number}" for number in range(count)]


class Counted(Part):
    """`count` clients with made-up names. `skew` is a Zipf exponent (0: equal shares) or the shares."""

    count: Clientele
    skew: NonNegative | tuple[Positive, ...] = 0.0

    @model_validator(mode="after")
    def _one_share_each(self) -> Self:
        if isinstance(self.skew, tuple) and len(self.skew) != self.count:
            raise ValueError(f"skew has {len(self.skew)} shares for {self.count} clients; give one to each")
        return self

    @model_validator(mode="after")
    def _some_share_each(self) -> Self:
        if isinstance(self.skew, float) and zipf(self.count, self.skew)[-1] < LEAST:
            raise ValueError(
                f"skew {self.skew:g} leaves the last of {self.count} clients no share of the rate; take a "
                f"smaller one"
            )
        return self

    def named(self) -> tuple[Named, ...]:
        """The same clients, written out."""
        shares = self.skew if isinstance(self.skew, tuple) else zipf(self.count, self.skew).tolist()
        return tuple(
            Named(name=name, share=share) for name, share in zip(numbered(self.count), shares, strict=True)
        )


class Named(Part):
    """One client. It sends `rate` requests/s of its own, or its `share` of the spec's `rate`.

    The spec's `rate` is divided among the clients that have none of their own. `weight` is the service it is
    entitled to, relative to the others; `arrivals` replaces the spec's process.
    """

    name: Name
    share: Positive = 1.0
    rate: Positive | None = None
    weight: Weight = 1.0
    arrivals: Arrivals | None = None


def _bare_count(data: Any) -> Any:
    return {"count": data} if isinstance(data, int | float) else data


Clients = Annotated[
    Annotated[Counted, Tag("counted")]
    | Annotated[tuple[Named, ...], Tag("named"), Field(min_length=1, max_length=100_000)],
    Discriminator(lambda data: "named" if isinstance(data, list | tuple) else "counted"),
    BeforeValidator(_bare_count),
]
"""A count, a count with a skew, or a list of named clients."""


@dataclass(frozen=True)
class Client:
    """A client as a family sees it, misbehaviour included.

    `rate` is in requests/s at load 1, were its programs of the usual size; `share` is that rate relative to
    all clients' without misbehaviour.
    """

    name: str
    rate: float
    share: float
    weight: float
    arrivals: Arrivals
    prefix_factor: float = 1.0
    program_factor: float = 1.0
    added: tuple[Segment, ...] = ()
    """What it puts before every prompt."""
    misbehaves: bool = False

    def prefix(self, tokens: int) -> int:
        """The length this client gives to a prefix of `tokens` tokens."""
        return min(MOST_TOKENS, round(tokens * self.prefix_factor))

    def program(self, size: int) -> int:
        """The size this client gives to a program of a usual `size`: turns, branches, dimensions."""
        return round(size * self.program_factor)

    def prefix_segment(self, name: str, whose: Whose, tokens: Lengths, seed: int) -> Segment:
        """The prefix `name`, this client's own or the one of all.

        Its length is drawn from a stream of its name, so all who share it agree on it.
        """
        id = name if whose == "shared" else f"{name}:{self.name}"
        return Segment(id, self.prefix(tokens.draw(stream(seed, id))))


def resolve(clients: Counted | Sequence[Named], rate: float | None, arrivals: Arrivals) -> tuple[Client, ...]:
    """Give every client its own rate and process. Raises `ValueError` where they contradict one another."""
    named = clients.named() if isinstance(clients, Counted) else clients
    twice = [name for name, uses in Counter(client.name for client in named).items() if uses > 1]
    if twice:
        raise ValueError(f"clients: the name {twice[0]!r} stands twice; names must be unique")
    rates = _rates(named, rate)
    return tuple(
        Client(client.name, own, own / fsum(rates), client.weight, client.arrivals or arrivals)
        for client, own in zip(named, rates, strict=True)
    )


def _rates(named: Sequence[Named], rate: float | None) -> list[float]:
    shares = fsum(client.share for client in named if client.rate is None)
    if rate is None and shares:
        raise ValueError("rate: missing; give the total in requests/s, or every client a rate of its own")
    if rate is not None and not shares:
        raise ValueError("rate: every client has a rate of its own; drop this one, or one of theirs")
    return [client.rate or (rate or 0) * client.share / shares for client in named]
