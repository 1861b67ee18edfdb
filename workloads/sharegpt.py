"""ShareGPT (anon8231489123/ShareGPT_Vicuna_unfiltered on the hub): chats that users of ChatGPT have shared.

The file that serving benchmarks replay. A row is a conversation, long ones cut into several rows, so that
many begin in the middle. It names no users and no times: chats are dealt to clients here, and begin when the
spec says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from workloads.reading.chats import Chat, DealtChats, Said
from workloads.reading.hub import Entry

_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}


@dataclass(frozen=True, slots=True)
class _Message:
    value: str
    speaker: Annotated[str, Field(alias="from")]


@dataclass(frozen=True, slots=True)
class _Row:
    conversations: list[Annotated[_Message, Entry]]


class ShareGPT(DealtChats):
    """ShareGPT's chats as sessions of made-up clients."""

    REPOSITORY: ClassVar[str] = "anon8231489123/ShareGPT_Vicuna_unfiltered"
    FILES: ClassVar[str | None] = "ShareGPT_V3_unfiltered_cleaned_split.json"
    LICENCE: ClassVar[str] = "Apache-2.0 (the texts are their authors')"
    COLUMNS: ClassVar[type] = _Row

    def chats(self) -> Iterator[Chat]:
        """The rows as chats."""
        for number, row in enumerate(self.streamed()):
            said = [Said(_ROLES.get(one.speaker, one.speaker), one.value) for one in row.conversations]
            yield Chat(f"row-{number:06}", "", said)
