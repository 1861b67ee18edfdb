"""LooGLE (bigai-nlco/LooGLE on the hub; Li et al., arXiv 2311.04939): questions on long documents.

The long-context workload of the DLPM paper (its Table 2) and of Preble (its Table 1). Rows come in two
shapes: one for each question (`context`, `question`, `answer`), or, in older copies, one for each document
(`input`, `qa_pairs`, `output`), whose questions are a list of {Q, A, S} or the text of one.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, model_validator

from workloads.parts.part import Name
from workloads.reading.documents import Documents, Question
from workloads.reading.hub import Entry


def _listed(value: Any) -> Any:
    """The list that a text spells, as older copies have it; `none` where a task has no questions."""
    if not isinstance(value, str):
        return value
    try:
        return [] if value == "none" else ast.literal_eval(value)  # literals alone: nothing is evaluated
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise ValueError("it spells no list of {Q, A}, nor is it 'none'") from None


def _answered(value: Any) -> Any:
    """An answer of several gaps (the task shortdep_cloze) as the JSON object that is asked for."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


class _Pair(BaseModel):
    Q: str
    A: Annotated[str, BeforeValidator(_answered)]


class _Row(BaseModel):
    context: str | None = None
    question: str = ""
    answer: str = ""
    input: str | None = None
    qa_pairs: Annotated[list[Annotated[_Pair, Entry]], BeforeValidator(_listed)] = []
    output: str = ""

    @model_validator(mode="after")
    def _has_a_document(self) -> Self:
        if not (self.context or self.input):
            raise ValueError("neither `context` (with `question`, `answer`) nor `input` (with `qa_pairs`)")
        return self

    def questions(self) -> Iterator[Question]:
        if self.context:
            yield Question(self.context, self.question, self.answer)
        elif self.input and self.qa_pairs:
            yield from (Question(self.input, pair.Q, pair.A) for pair in self.qa_pairs)
        elif self.input:
            yield Question(self.input, "", self.output)


class LooGLE(Documents):
    """LooGLE's questions by made-up clients; `task` is a configuration of the data set."""

    REPOSITORY: ClassVar[str] = "bigai-nlco/LooGLE"
    SPLIT: ClassVar[str] = "test"
    LICENCE: ClassVar[str] = "CC BY-SA 4.0"
    COLUMNS: ClassVar[type] = _Row

    task: Name = "shortdep_qa"

    def config(self) -> str:
        """The task."""
        return self.task

    def questions(self) -> Iterator[Question]:
        """The rows' questions."""
        for row in self.rows():
            yield from row.questions()
