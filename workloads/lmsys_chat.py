"""LMSYS-Chat-1M (lmsys/lmsys-chat-1m on the hub; Zheng et al., ICLR'24): chats with 25 models on one site.

A row is a conversation and the model it was with. It names no users and no times, so chats begin when the
spec says. A client is made up, or a model, as in the real trace of the VTC paper (section 5.3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from workloads.parts.clients import Client, Named, resolve
from workloads.parts.misbehaviour import misbehaving, wrongs
from workloads.parts.streams import stream
from workloads.reading.chats import Chat, Conversation, DealtChats, Said
from workloads.reading.hub import Entry


@dataclass(frozen=True, slots=True)
class _Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class _Row:
    model: Annotated[str, Field(min_length=1)]
    conversation: list[Annotated[_Message, Entry]]


class LMSYSChat(DealtChats):
    """LMSYS-Chat-1M's chats as sessions of clients.

    `client` says who they are: `drawn`, the clients of the spec, among whom chats are dealt; or `model`, the
    models of the data set, each with its own chats and its share of the spec's `rate` by their number.
    """

    REPOSITORY: ClassVar[str] = "lmsys/lmsys-chat-1m"
    LICENCE: ClassVar[str] = "LMSYS-Chat-1M Dataset License Agreement"
    GATED: ClassVar[bool] = True
    COLUMNS: ClassVar[type] = _Row

    client: Literal["drawn", "model"] = "drawn"

    @model_validator(mode="after")
    def _clients_from_one_place(self) -> Self:
        if self.client == "model" and "clients" in self.model_fields_set:
            raise ValueError("clients: they are the data set's models; drop it, or say `client: drawn`")
        return self

    def choices(self) -> dict[str, Any]:
        """What every workload of dealt chats says; with models as clients, that they are."""
        found = super().choices()
        if self.client == "model":
            del found["clients"]
            found["client_rule"] = (
                "a client is a model; it has a share of the rate by the number of its chats"
            )
        return found

    @cached_property
    def resolved(self) -> tuple[Client, ...]:
        """The clients of the spec, or one for each model."""
        if self.client == "drawn":
            return super().resolved
        chats = Counter(one.client for one in self.conversations)
        named = [Named(name=model, share=float(chats[model])) for model in sorted(chats)]
        return misbehaving(resolve(named, self.rate, self.arrivals), wrongs(self.misbehaviour), self.duration)

    def dealt(self, client: Client, seed: int) -> list[Conversation]:
        """The chats dealt to a client, or all that were with the model, shuffled."""
        if self.client == "drawn":
            return super().dealt(client, seed)
        own = [one for one in self.conversations if one.client == client.name]
        return [own[number] for number in stream(seed, "chats", client.name).permutation(len(own))]

    def chats(self) -> Iterator[Chat]:
        """The rows as chats, each with its model as client."""
        for number, row in enumerate(self.streamed()):
            said = [Said(one.role, one.content) for one in row.conversation]
            yield Chat(f"row-{number:06}", row.model, said)
