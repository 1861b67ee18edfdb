"""ToolBench (OpenBMB/ToolBench; Qin et al., ToolLLM, arXiv 2307.16789): agents that call public web APIs.

The agent workload of Preble (its Table 1). A row is a conversation: a system prompt that describes the tools,
a task, then calls (`assistant`) and what came back (`function`) in turn, and an answer. The data set is not
on the hub itself; the rows are read from a copy there, those of toolllama_G123_dfs_eval.json. The rows for
training, toolllama_G123_dfs_train.json, are alike: give them as `file`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, ClassVar

from pydantic import Field

from workloads.reading.chats import Chat, DealtChats, Said
from workloads.reading.hub import Entry

_ROLES = {"function": "user"}
"""Few chat templates know a function; what it gave back is said by the user."""


@dataclass(frozen=True, slots=True)
class _Message:
    value: str
    speaker: Annotated[str, Field(alias="from")]


@dataclass(frozen=True, slots=True)
class _Row:
    conversations: list[Annotated[_Message, Entry]]


class ToolBench(DealtChats):
    """ToolBench's tasks as sessions of made-up clients; `think` is how long a tool takes.

    The rows have a path of calls again and again, step by step; only those that begin no other are kept.
    """

    REPOSITORY: ClassVar[str] = "Yhyu13/ToolBench_toolllama_G123_dfs"
    FILES: ClassVar[str | None] = "toolllama_G123_dfs_eval.json"
    LICENCE: ClassVar[str] = "CC BY-NC 4.0"
    COLUMNS: ClassVar[type] = _Row

    def choices(self) -> dict[str, Any]:
        """What every workload of chats says, and what became of the rows, in words and numbers."""
        found = super().choices()
        return found | {
            "role_rule": "what a function gave back is said by the user",
            "row_rule": "rows that begin another row are a path's earlier steps and are left out",
            "counts": {"rows": len(self._rows), "paths": len(self._paths)} | found["counts"],
        }

    def chats(self) -> Iterator[Chat]:
        """The paths as chats."""
        for number, path in self._paths.items():
            yield Chat(f"row-{number:06}", "", path)

    @cached_property
    def _rows(self) -> list[list[Said]]:
        return [
            [Said(_ROLES.get(one.speaker, one.speaker), one.value) for one in row.conversations]
            for row in self.rows()
        ]

    @cached_property
    def _paths(self) -> dict[int, list[Said]]:
        """The rows that begin no other, by number; sorted, what begins another stands right before one."""
        order = sorted(range(len(self._rows)), key=self._rows.__getitem__)
        begin = {
            place
            for place, after in pairwise(order)
            if self._rows[after][: len(self._rows[place])] == self._rows[place]
        }
        return {place: row for place, row in enumerate(self._rows) if place not in begin}
