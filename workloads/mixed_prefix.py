"""Mixed prefix: some tokens shared by all clients, some within a client, some by nobody.

A request is [system prompt of the platform] + one of its client's heads (few-shot examples, instructions)
+ a tail of its own. A share of the requests goes without the system prompt, a share without any prefix.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from numpy.random import Generator

from suite.trace import Request, Segment
from workloads.family import Synthetic
from workloads.parts.clients import Client
from workloads.parts.lengths import Lengths
from workloads.parts.part import Count, Fraction
from workloads.parts.streams import stream


class MixedPrefix(Synthetic):
    """Requests with prefixes at two levels. Lengths are in tokens, one draw for each shared prefix.

    `unique_fraction` of the requests share no prefix: they are `unique_tokens` of their own. Of the others,
    `system_fraction` begin with the system prompt that all clients share. Each client has `heads` heads and
    uses them equally often.
    """

    system_fraction: Fraction
    unique_fraction: Fraction
    heads: Count
    system_tokens: Lengths
    head_tokens: Lengths
    tail_tokens: Lengths
    unique_tokens: Lengths
    output_tokens: Lengths

    def sessions(self, client: Client, seed: int) -> Iterator[list[Request]]:
        """The client's requests, each on its own."""
        system = client.prefix_segment("system", "shared", self.system_tokens, seed)
        heads = [
            client.prefix_segment(f"head:{number}", "client", self.head_tokens, seed)
            for number in range(self.heads)
        ]
        rng = stream(seed, "requests", client.name)
        for number in count():
            id = f"{client.name}/{number}"
            prompt = self._prompt(id, system, heads, rng)
            yield [Request(id, client.name, 0.0, prompt, self.output_tokens.draw(rng))]

    def _prompt(self, id: str, system: Segment, heads: list[Segment], rng: Generator) -> tuple[Segment, ...]:
        if rng.random() < self.unique_fraction:
            return (Segment(f"unique:{id}", self.unique_tokens.draw(rng)),)
        opening = (system,) if rng.random() < self.system_fraction else ()
        head = heads[rng.integers(self.heads)]
        return (*opening, head, Segment(f"tail:{id}", self.tail_tokens.draw(rng)))
