"""Plain requests: prompts that share nothing, as in the synthetic workloads of the VTC paper (OSDI '24)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Self

from pydantic import model_validator

from suite.trace import Request, Segment
from workloads.family import Synthetic
from workloads.parts.clients import Client
from workloads.parts.lengths import Lengths
from workloads.parts.misbehaviour import wrongs
from workloads.parts.streams import stream


class Plain(Synthetic):
    """Requests alone, each with a prompt of its own. Lengths are in tokens."""

    prompt_tokens: Lengths
    output_tokens: Lengths

    @model_validator(mode="after")
    def _has_no_prefixes(self) -> Self:
        if any(how.kind == "longer_prefix" for how in wrongs(self.misbehaviour)):
            raise ValueError("misbehaviour: plain prompts have no prefix to make longer; take added_prefix")
        return self

    def sessions(self, client: Client, seed: int) -> Iterator[list[Request]]:
        """The client's requests, each on its own."""
        rng = stream(seed, "requests", client.name)
        for number in count():
            id = f"{client.name}/{number}"
            prompt = Segment(f"prompt:{id}", self.prompt_tokens.draw(rng))
            yield [Request(id, client.name, 0.0, (prompt,), self.output_tokens.draw(rng))]
