"""GSM8K (openai/gsm8k; Cobbe et al., arXiv 2110.14168): school mathematics behind worked examples.

The questions that the DLPM paper's trees of thoughts grow from (its Table 2), and the usual few-shot task. A
row is a `question` and its `answer` with the steps that lead there.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import Field

from suite.errors import BadInput
from suite.trace import Request
from workloads.parts.clients import Client, Whose
from workloads.parts.dealing import dealt
from workloads.parts.streams import stream
from workloads.reading.wording import Wording


@dataclass(frozen=True, slots=True)
class _Row:
    question: Annotated[str, Field(min_length=1)]
    answer: Annotated[str, Field(min_length=1)]


class Problem(NamedTuple):
    """A question behind its examples, and the recorded answer to it."""

    text: str
    answer: str


class Mathematics(Wording, ABC):
    """Questions behind `shots` examples, which are rows that nobody is asked.

    `head` says whose the examples are: each client's own, or the same for all (`shared`). The other rows are
    dealt to clients, none twice.
    """

    REPOSITORY: ClassVar[str] = "openai/gsm8k"
    CONFIG: ClassVar[str | None] = "main"
    LICENCE: ClassVar[str] = "MIT"
    COLUMNS: ClassVar[type] = _Row

    shots: Annotated[int, Field(ge=0, le=100, strict=True)] = 8
    head: Whose = "client"

    def choices(self) -> dict[str, Any]:
        """What every data set says, and how rows were dealt, in words."""
        return super().choices() | {
            "client_rule": "rows are shuffled; the first are examples, the others are dealt out in "
            "proportion to the clients' rates"
        }

    def problems(self, client: Client, seed: int) -> list[Problem]:
        """What the client asks. Raises `BadInput` if the examples leave no rows."""
        rows, heads = self._rows, 1 if self.head == "shared" else len(self.resolved)
        order = [int(number) for number in stream(seed, "examples").permutation(len(rows))]
        examples, others = order[: heads * self.shots], order[heads * self.shots :]
        if not others:
            raise BadInput(f"{self.place()}: {len(rows)} rows, all of them examples; lower `shots`")
        place = 0 if self.head == "shared" else [one.name for one in self.resolved].index(client.name)
        mine = examples[place * self.shots :][: self.shots]
        head = "".join(f"Question: {rows[i].question}\nAnswer: {rows[i].answer}\n\n" for i in mine)
        asked = dealt(others, "questions", self.resolved, seed)[client.name]
        return [Problem(f"{head}Question: {rows[i].question}\nAnswer:", rows[i].answer) for i in asked]

    def none_left(self, client: Client, problems: Sequence[Problem]) -> BadInput:
        """The error when a client needs more questions than it was dealt."""
        return BadInput(
            f"workload {self.name!r}: client {client.name!r} asks more than the {len(problems)} questions "
            f"dealt to it; raise `limit`, or lower the rate, load or duration"
        )

    @cached_property
    def _rows(self) -> list[_Row]:
        return self.rows()


class GSM8K(Mathematics):
    """Few-shot questions, each on its own, answered at the length of the recorded answer."""

    def sessions(self, client: Client, seed: int) -> Iterator[list[Request]]:
        """The client's questions. Raises `BadInput` when there is none left."""
        problems = self.problems(client, seed)
        for number, (text, answer) in enumerate(problems):
            id = f"{client.name}/{number}"
            yield [Request(id, client.name, 0.0, (self.asked(text),), self.length(answer))]
        raise self.none_left(client, problems)
