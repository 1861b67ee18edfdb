"""Recorded chats as workloads: what every data set of conversations has in common.

The prompt of a turn is the chat template of the served model over the conversation so far, in its own token
ids; the length of the recorded reply is the output. Where a later prompt repeats prompt and reply id for id,
the reply stands in it as `reply:ID`, so that an engine's own words take its place in a replay; elsewhere, as
some templates rewrite what was said, the recorded words stay. Which chats share a beginning is found in the
ids.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import cycle, dropwhile, takewhile
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from suite.errors import BadInput
from suite.trace import REPLY, Request, Segment
from suite.validation import at
from workloads.parts.arrivals import ThinkTime
from workloads.parts.clients import Client
from workloads.parts.dealing import Verbatim, dealt
from workloads.parts.part import Count
from workloads.parts.streams import stream
from workloads.reading.hub import Hub
from workloads.reading.text import Exchange, Ids, Tokenizer, found

MESSAGE_RULE = (
    "white space around messages is dropped, and so is what comes before the user's first message but for a "
    "system message; a chat ends before the first message that is empty, out of turn or without a reply; one "
    "that the tokenizer's chat template refuses is left out"
)
PREFIX_RULE = (
    "found in the token ids of the prompts; a reply is one where a later prompt repeats it id for id"
)


class Said(NamedTuple):
    """One message. `role` is user, assistant, system, or what else the data set has.

    `time` is in seconds, 0 if it is not known.
    """

    role: str
    content: str
    time: float = 0.0


class Chat(NamedTuple):
    """A conversation as the data set has it. `client` is whose it was, as far as the data set knows."""

    id: str
    client: str
    messages: Sequence[Said]


class Turn(NamedTuple):
    """A request, and when the recorded reply to it was there, in seconds; 0 if that is not known."""

    id: str
    prompt: tuple[Segment, ...]
    output_tokens: int
    replied: float


class Conversation(NamedTuple):
    """The turns of a chat, at least one."""

    id: str
    client: str
    turns: tuple[Turn, ...]

    def requests(self, client: str, arrivals: Sequence[float], thinks: Sequence[float]) -> Iterator[Request]:
        """The turns, each after the one before; seconds for each, the first think time being none."""
        before: tuple[str, ...] = ()
        for turn, arrival, think in zip(self.turns, arrivals, thinks, strict=True):
            yield Request(
                turn.id,
                client,
                arrival,
                turn.prompt,
                turn.output_tokens,
                self.id,
                before,
                think if before else 0.0,
            )
            before = (turn.id,)


class Chats(Hub, ABC):
    """A workload of recorded chats.

    A chat ends before the first turn of more than `longest` tokens, prompt and reply together, as the served
    model has no room for it.
    """

    longest: Count | None = None

    @abstractmethod
    def chats(self) -> Iterator[Chat]:
        """The chats, as the rows have them."""

    @property
    def conversations(self) -> tuple[Conversation, ...]:
        """What `MESSAGE_RULE` leaves of the chats. Raises `BadInput` if that is nothing."""
        return self._recorded.conversations

    def choices(self) -> dict[str, Any]:
        """The parameters, where the rows come from, the rules, and how often they applied."""
        return super().choices() | {
            "message_rule": MESSAGE_RULE,
            "prefix_rule": PREFIX_RULE,
            "counts": dict(self._recorded.counts),
        }

    def tokens(self, seed: int) -> Mapping[str, NDArray[np.int32]]:
        """The token ids of the prompts under `seed`."""
        used = {segment.id for request in self.requests(seed) for segment in request.prompt}
        return {id: ids for id, ids in self._recorded.tokens.items() if id in used}

    @cached_property
    def _recorded(self) -> _Recorded:
        counts, heard, refusal = Counter(chats_refused=0), list[_Heard](), ""
        tokenizer = self.served_tokenizer
        for chat in self.chats():
            messages = cleaned(chat.messages)
            try:
                with at(f"{self.place()}, {chat.id}"):
                    exchanges = [*_exchanges(chat.id, messages, tokenizer)]
            except BadInput as error:
                counts["chats_refused"] += 1
                refusal = refusal or str(error)
                continue
            short = [*takewhile(self._fits, exchanges)]
            counts["messages_dropped"] += len(chat.messages) - len(messages)
            counts["turns_too_long"] += len(exchanges) - len(short)
            counts["chats_dropped"] += not short
            if short:
                times = [one.time for one in messages if one.role == "assistant"]
                heard.append(_Heard(chat.id, chat.client, short, times))
        if not heard:
            raise BadInput(refusal) if refusal else self._nothing_left()
        return _woven(heard, counts)

    def _nothing_left(self) -> BadInput:
        few = "" if self.longest is None else f" of at most {self.longest} tokens"
        return BadInput(f"{self.place()}: no chat in it has a question and a reply{few}")

    def _fits(self, one: Exchange) -> bool:
        return self.longest is None or len(one.prompt) + len(one.reply) <= self.longest


class _Heard(NamedTuple):
    """A chat in token ids, without its text, and the times of its replies."""

    id: str
    client: str
    exchanges: list[Exchange]
    times: list[float]


class _Recorded(NamedTuple):
    conversations: tuple[Conversation, ...]
    tokens: Mapping[str, Ids]
    counts: Counter[str]


def cleaned(messages: Sequence[Said]) -> list[Said]:
    """Questions and replies in turn, after a system message if there is one, by `MESSAGE_RULE`."""
    said = [one._replace(content=one.content.strip()) for one in messages]
    system = [one for one in said[:1] if one.role == "system" and one.content]
    kept: list[Said] = []
    asked = dropwhile(lambda one: one.role != "user", said)
    for one, role in zip(asked, cycle(("user", "assistant")), strict=False):
        if one.role != role or not one.content:
            break
        kept.append(one)
    whole = kept[: len(kept) // 2 * 2]
    return [*system, *whole] if whole else []


def _exchanges(id: str, messages: Sequence[Said], tokenizer: Tokenizer) -> Iterator[Exchange]:
    said = [{"role": one.role, "content": one.content} for one in messages]
    replies = [place for place, one in enumerate(messages) if one.role == "assistant"]
    for turn, place in enumerate(replies):
        prompt = tokenizer.chat(said[:place])
        reply = tokenizer.reply(said[:place], said[place]["content"], prompt)
        yield Exchange(f"{id}/{turn}", np.array(prompt, np.int32), np.array(reply, np.int32), id)


def _woven(heard: Sequence[_Heard], counts: Counter[str]) -> _Recorded:
    """The conversations, once it is found what all their prompts share."""
    shared = found([exchange for one in heard for exchange in one.exchanges])
    prompts = iter(shared.prompts)
    conversations = []
    for id, client, exchanges, times in heard:
        turns = tuple(
            Turn(one.id, next(prompts), max(1, len(one.reply)), time)
            for one, time in zip(exchanges, times, strict=False)
        )
        counts["later_turns"] += len(turns) - 1
        counts["later_turns_that_repeat_the_reply"] += sum(map(_repeats, turns))
        conversations.append(Conversation(id, client, turns))
    return _Recorded(tuple(conversations), shared.tokens, counts)


def _repeats(turn: Turn) -> bool:
    return any(segment.id.startswith(REPLY) for segment in turn.prompt)


# -- chats without times -----------------------------------------------------------------------------------


class DealtChats(Chats, Verbatim, ABC):
    """Chats that begin when the spec says: each is a session of one client, and no chat is used twice.

    They are shuffled and dealt out in proportion to the clients' rates. A later turn is sent `think` seconds
    after the reply to the one before.
    """

    think: ThinkTime

    @model_validator(mode="after")
    def _chats_for_all(self) -> Self:
        requests = sum(map(self._rate, self.resolved)) * self.duration
        begun, there = requests / self.requests_per_session(), len(self.conversations)
        if begun > there:
            raise ValueError(
                f"its clients would begin about {begun:.0f} chats, but there are only {there}; raise "
                f"`limit`, or lower the rate, load or duration"
            )
        return self

    def choices(self) -> dict[str, Any]:
        """What every workload of chats says, and how chats were dealt, in words."""
        return super().choices() | {
            "client_rule": "chats are shuffled and dealt out in proportion to the clients' rates, none twice",
            "arrival_rule": "chats begin as the arrival process says, until a client has no more of them",
        }

    def requests_per_session(self, factor: float = 1.0) -> float:
        """The mean number of turns; `factor` makes no recorded chat longer."""
        return sum(len(one.turns) for one in self.conversations) / len(self.conversations)

    def sessions(self, client: Client, seed: int) -> Iterator[list[Request]]:
        """The client's chats, as many as there are."""
        rng = stream(seed, "thinks", client.name)
        for one in self.dealt(client, seed):
            thinks = [self.think.draw(rng) for _ in one.turns]
            yield list(one.requests(client.name, [0.0] * len(thinks), thinks))

    def dealt(self, client: Client, seed: int) -> list[Conversation]:
        """The chats of one client, in the order of its sessions."""
        return dealt(self.conversations, "chats", self.resolved, seed)[client.name]
