"""The requests that decode: one token each in every step, many steps at once."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from suite.backends.simulator.live import Live


class Batch:
    """Decoding requests in order, by default that of joining, advanced without touching each of them.

    `ticks` counts decode steps. A member's progress is the ticks since it joined; the next end comes from a
    heap; at which ticks it needs a new block depends only on its context length when it joined, modulo the
    block size.
    """

    def __init__(self, block: int) -> None:
        self.members: dict[Live, int] = {}
        """Each with its number, by which they are in order."""
        self.ticks = 0
        self.context = 0
        """Tokens attended in the next step, summed over members."""
        self.stays: list[tuple[Live, int, int]] = []
        """Who has left, with the ticks at which it joined and left."""
        self.by_client: dict[str, int] = {}
        self._block = block
        self._turns = [0] * block
        """Members by the tick, modulo the block size, at which they need a new block."""
        self._ends: list[tuple[int, int, Live]] = []
        self._joins = 0

    def join(self, live: Live) -> None:
        """A request that has its first token (again) and needs more."""
        self._joins += 1
        self.members[live] = self._joins
        live.joined = self.ticks
        self.context += live.prompt_tokens + live.generated
        self._turns[self._turn(live)] += 1
        self.by_client[live.client] = self.by_client.get(live.client, 0) + 1
        heapq.heappush(self._ends, self._end(live))

    def leave(self, live: Live) -> None:
        """Take a request out and settle how much it has generated and computed."""
        del self.members[live]
        self.stays.append((live, live.joined, self.ticks))
        self._turns[self._turn(live)] -= 1
        live.generated += self.ticks - live.joined
        live.computed = live.prompt_tokens + live.generated - 1
        self.context -= live.prompt_tokens + live.generated
        self.by_client[live.client] -= 1
        if not self.by_client[live.client]:
            del self.by_client[live.client]

    def reorder(self, members: list[Live]) -> None:
        """Put the members into this order."""
        self.members = {live: self._joins + i for i, live in enumerate(members, 1)}
        self._joins += len(members)
        self._ends = [self._end(live) for live in members]
        heapq.heapify(self._ends)

    def generated(self, live: Live) -> int:
        """Output tokens of a member so far."""
        return live.generated + self.ticks - live.joined

    def advance(self, steps: int) -> None:
        """Give every member `steps` tokens."""
        self.ticks += steps
        self.context += steps * len(self.members)

    def steps_to_end(self) -> int:
        """Steps until the next member has all its tokens."""
        while True:
            end, number, live = self._ends[0]
            if self.members.get(live) == number:
                return end - self.ticks
            heapq.heappop(self._ends)

    def ended(self) -> Iterator[Live]:
        """Members that have all their tokens, in order; the caller makes each leave."""
        while self.members and not self.steps_to_end():
            yield heapq.heappop(self._ends)[2]

    def blocks_needed(self, steps: int) -> int:
        """New blocks that members need for the next `steps` steps."""
        if steps == 1:
            return self._turns[self.ticks % self._block]
        whole, part = divmod(steps, self._block)
        begin = self.ticks % self._block
        turns = self._turns[begin : begin + part]
        if begin + part > self._block:
            turns += self._turns[: begin + part - self._block]
        return whole * len(self.members) + sum(turns)

    def needs_block(self, live: Live) -> bool:
        """Whether the member's next token begins a new block."""
        return self._turn(live) == self.ticks % self._block

    def _end(self, live: Live) -> tuple[int, int, Live]:
        return live.joined + live.output_tokens - live.generated, self.members[live], live

    def _turn(self, live: Live) -> int:
        return (live.joined - (live.prompt_tokens + live.generated - 1)) % self._block
