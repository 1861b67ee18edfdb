"""LongBench (THUDM/LongBench; Bai et al., arXiv 2308.14508): 21 tasks of 5k to 15k words on long contexts.

The data set's own repository is a loading script, which `datasets` no longer runs; the rows are read from a
copy of them as Parquet. The unpacked files of its data.zip (TASK.jsonl) do as a local copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from workloads.parts.part import Name
from workloads.reading.documents import Documents, Question


@dataclass(frozen=True, slots=True)
class _Row:
    context: Annotated[str, Field(min_length=1)]
    input: str
    answers: Annotated[list[str], Field(min_length=1)]


class LongBench(Documents):
    """LongBench's questions by made-up clients; `task` is a configuration of the data set.

    The recorded answer is the first of the true ones.
    """

    REPOSITORY: ClassVar[str] = "Xnhyacinth/LongBench"
    SPLIT: ClassVar[str] = "test"
    LICENCE: ClassVar[str] = "MIT (the texts are their sources')"
    COLUMNS: ClassVar[type] = _Row

    task: Name = "qasper"

    def config(self) -> str:
        """The task."""
        return self.task

    def questions(self) -> Iterator[Question]:
        """The rows' questions."""
        for row in self.rows():
            yield Question(row.context, row.input, row.answers[0])
