"""WildChat (allenai/WildChat-1M on the hub; Zhao et al., ICLR'24): chats with ChatGPT, with users and times.

A row is a conversation with the hashed address it came from, and the time at which each of its replies was
complete: the only recorded one. So a request is sent at the time of its reply here, too late by what that
reply took. WildChat-4.8M has the same columns; give a copy of it as `file`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from typing import Annotated, Any, ClassVar

from numpy.random import Generator
from pydantic import Field

from suite.trace import Request
from workloads.parts.arrivals import ThinkTime
from workloads.parts.streams import stream
from workloads.reading.chats import Chat, Chats, Conversation, Said
from workloads.reading.hub import Entry


@dataclass(frozen=True, slots=True)
class _Message:
    role: str
    content: str
    timestamp: datetime | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    timestamp: datetime
    hashed_ip: Annotated[str, Field(min_length=1, max_length=512)]
    conversation: list[Annotated[_Message, Entry]]


class WildChat(Chats):
    """WildChat's chats at their recorded times, from 0 on; a client is a hashed address.

    A later turn is sent at its recorded time, or when the reply to the one before is there if that is later;
    with `think`, that many seconds after that reply instead.
    """

    REPOSITORY: ClassVar[str] = "allenai/WildChat-1M"
    LICENCE: ClassVar[str] = "ODC-BY"
    COLUMNS: ClassVar[type] = _Row

    think: ThinkTime | None = None

    def choices(self) -> dict[str, Any]:
        """What every workload of chats says, and what times and clients are, in words."""
        later = "never before the reply to the one before" if self.think is None else "later turns by `think`"
        return super().choices() | {
            "client_rule": "a client is a hashed_ip of the data set",
            "arrival_rule": f"a request is sent when its recorded reply was complete; {later}",
        }

    def chats(self) -> Iterator[Chat]:
        """The rows as chats; a reply without a time has that of its row, the last reply's."""
        for number, row in enumerate(self.streamed()):
            said = [
                Said(one.role, one.content, _seconds(one.timestamp or row.timestamp))
                for one in row.conversation
            ]
            yield Chat(f"row-{number:06}", row.hashed_ip, said)

    def requests(self, seed: int) -> Iterator[Request]:
        """The turns of all chats, in the order of the rows."""
        begin = min(turn.replied for one in self.conversations for turn in one.turns)
        rng = stream(seed, "thinks")
        for one in self.conversations:
            yield from self._sent(one, begin, rng)

    def _sent(self, one: Conversation, begin: float, rng: Generator) -> Iterator[Request]:
        times = [round(turn.replied - begin, 6) for turn in one.turns]
        thinks = [0.0] * len(times)
        if self.think is not None:
            thinks[1:] = [self.think.draw(rng) for _ in times[1:]]
            times = [round(times[0] + late, 6) for late in accumulate(thinks)]
        return one.requests(one.client, list(accumulate(times, max)), thinks)


def _seconds(time: datetime) -> float:
    """Unix seconds; a time without a zone is UTC."""
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
