"""Recorded text that names no users: how it is dealt to clients, and what they cannot do to it."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from itertools import accumulate
from typing import Self, TypeVar

from pydantic import model_validator

from workloads.family import Synthetic
from workloads.parts.clients import Client
from workloads.parts.streams import stream

Thing = TypeVar("Thing")


class Verbatim(Synthetic, ABC):
    """A synthetic workload of recorded text, which no client makes longer than it is."""

    @model_validator(mode="after")
    def _text_stays_as_it_is(self) -> Self:
        if any(client.prefix_factor != 1 for client in self.resolved):
            raise ValueError(
                "misbehaviour: longer_prefix makes no recorded text longer; take added_prefix instead"
            )
        return self


def dealt(things: Sequence[Thing], what: str, clients: Sequence[Client], seed: int) -> dict[str, list[Thing]]:
    """The things of each client by name: shuffled, then dealt out in proportion to the clients' rates.

    The order is that of the stream `what` under `seed`; each thing goes to one client.
    """
    order = stream(seed, what).permutation(len(things))
    rates = [0.0, *accumulate(client.rate for client in clients)]
    ends = [round(len(order) * rate / rates[-1]) for rate in rates]
    return {
        client.name: [things[number] for number in order[begin:end]]
        for client, begin, end in zip(clients, ends, ends[1:], strict=False)
    }
