"""Multi-turn chat: every turn's prompt is the whole conversation so far, replies included.

A session opens with a system prompt, one for each client or one for all. Turn k is sent a think time after
the reply to turn k-1, which is part of its prompt; the replies are those the engine really gave.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from numpy.random import Generator

from suite.trace import REPLY, Request, Segment
from workloads.family import Synthetic
from workloads.parts.arrivals import ThinkTime
from workloads.parts.clients import Client, Whose
from workloads.parts.lengths import Lengths
from workloads.parts.streams import stream


class MultiTurnChat(Synthetic):
    """Chat sessions. Lengths are in tokens, `turns` in requests a session, `think` in seconds.

    `system` says whose the system prompt is: each client's own, or one `shared` by all. A length is drawn
    once for each system prompt.
    """

    system: Whose = "client"
    system_tokens: Lengths
    turns: Lengths
    user_tokens: Lengths
    output_tokens: Lengths
    think: ThinkTime

    def requests_per_session(self, factor: float = 1.0) -> float:
        """The mean number of turns."""
        return self.turns.expected() * factor

    def sessions(self, client: Client, seed: int) -> Iterator[list[Request]]:
        """The client's conversations."""
        system = client.prefix_segment("system", self.system, self.system_tokens, seed)
        rng = stream(seed, "conversations", client.name)
        for number in count():
            yield list(self._turns(client, f"{client.name}/{number}", system, rng))

    def _turns(self, client: Client, session: str, system: Segment, rng: Generator) -> Iterator[Request]:
        history: tuple[Segment, ...] = (system,)
        after: tuple[str, ...] = ()
        for turn in range(client.program(self.turns.draw(rng))):
            id = f"{session}/{turn}"
            think = self.think.draw(rng) if turn else 0.0
            prompt = (*history, Segment(f"user:{id}", self.user_tokens.draw(rng)))
            output = self.output_tokens.draw(rng)
            yield Request(id, client.name, 0.0, prompt, output, session, after, think)
            history = (*prompt, Segment(f"{REPLY}{id}", output))
            after = (id,)
