"""Chatbot Arena (lmsys/chatbot_arena_conversations on the hub; Zheng et al., 2023): two models, one user.

A row is a battle: the same user's chats with two models side by side, its vote, and when it voted. The user
reads both replies before going on. Users and times are real; the time is that of the vote, so a battle as a
whole comes late by what it took, and its later turns follow their replies by a think time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Annotated, Any, ClassVar, Literal

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


@dataclass(frozen=True, slots=True)
class _Row:
    judge: Annotated[str, Field(min_length=1, max_length=512)]
    tstamp: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    conversation_a: list[Annotated[_Message, Entry]]
    conversation_b: list[Annotated[_Message, Entry]]


_SIDES = {"both": ("a", "b"), "a": ("a",), "b": ("b",)}


class ChatbotArena(Chats):
    """The arena's battles at their recorded times, from 0 on; a client is a user (`judge`).

    `models` says whose requests are sent: those to `both` models at once, or to model `a` or `b` alone. A
    later turn is sent `think` seconds after the last of the replies that its user has waited for.
    """

    REPOSITORY: ClassVar[str] = "lmsys/chatbot_arena_conversations"
    LICENCE: ClassVar[str] = "CC-BY-4.0 (prompts), CC-BY-NC-4.0 (replies)"
    GATED: ClassVar[bool] = True
    COLUMNS: ClassVar[type] = _Row

    models: Literal["both", "a", "b"] = "both"
    think: ThinkTime

    def choices(self) -> dict[str, Any]:
        """What every workload of chats says, and what times and clients are, in words."""
        return super().choices() | {
            "client_rule": "a client is a judge of the data set",
            "arrival_rule": "a battle begins when its vote came; later turns wait for its replies",
        }

    def chats(self) -> Iterator[Chat]:
        """The sides of each battle, one after the other."""
        for number, row in enumerate(self.streamed()):
            for side in _SIDES[self.models]:
                messages = row.conversation_a if side == "a" else row.conversation_b
                said = [Said(one.role, one.content, row.tstamp) for one in messages]
                yield Chat(f"row-{number:06}/{side}", row.judge, said)

    def requests(self, seed: int) -> Iterator[Request]:
        """The turns of all battles, in the order of the rows."""
        battles: dict[str, list[Conversation]] = {}
        for one in self.conversations:
            battles.setdefault(one.id.rpartition("/")[0], []).append(one)
        begin = min(one.turns[0].replied for one in self.conversations)
        for row, sides in battles.items():
            yield from self._sent(row, sides, begin, seed)

    def _sent(self, row: str, sides: list[Conversation], begin: float, seed: int) -> Iterator[Request]:
        """The requests of a battle; one side may have more turns than the other."""
        rng = stream(seed, "thinks", row)
        thinks = [0.0, *(self.think.draw(rng) for _ in range(1, max(len(one.turns) for one in sides)))]
        times = [round(sides[0].turns[0].replied - begin + late, 6) for late in accumulate(thinks)]
        for one in sides:
            turns = len(one.turns)
            for place, request in enumerate(one.requests(one.client, times[:turns], thinks[:turns])):
                awaited = [side.turns[place - 1].id for side in sides if 0 < place <= len(side.turns)]
                yield replace(request, after=tuple(awaited))
