"""ShareGPT conversations as token rows (casys-kaist/LLMServingSim, `workloads/sharegpt-*.jsonl`).

A row holds the token ids of a prompt, how many tokens the reply has, and an arrival time. A row whose prompt
begins with the whole prompt of another is a later turn of its conversation. The file names no clients, and
its arrivals are a Poisson process of its makers'; so conversations are dealt to clients here, and begin when
the spec says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from suite.errors import BadInput
from suite.trace import Request, Segment
from suite.validation import first_problem
from workloads.family import Synthetic
from workloads.parts.arrivals import ThinkTime
from workloads.parts.clients import Client
from workloads.parts.part import Count
from workloads.parts.streams import stream
from workloads.reading.recorded import Recorded


class Turn(NamedTuple):
    """One row of the file: the tokens its prompt adds to that of the turn before it, and those of its reply.

    `before` is the place of that turn in the conversation; None for the first.
    """

    tokens: int
    output_tokens: int
    before: int | None


class LLMServingSim(Recorded, Synthetic):
    """Recorded conversations, replayed as sessions; `file` is looked up as for every recorded trace.

    Each session is a conversation drawn from the file, as often as need be, and shares nothing with any other
    session. A later turn is sent `think` seconds after the reply to the one before. A longer prefix is a
    longer first prompt.
    """

    SOURCE: ClassVar[str] = "casys-kaist/LLMServingSim, workloads"
    LICENCE: ClassVar[str] = "MIT (texts of ShareGPT)"

    think: ThinkTime

    def choices(self) -> dict[str, Any]:
        """The parameters, the digest of the file, and what was made up, in words."""
        return super().choices() | {
            "client_rule": "a session of a client is a conversation of the file drawn with replacement",
            "arrival_rule": "times of the file are not used; sessions begin as the arrival process says",
            "prefix_rule": "turns of a session share what they share in the file; sessions share nothing",
        }

    def requests_per_session(self, factor: float = 1.0) -> float:
        """The mean number of turns; `factor` makes no recorded conversation longer."""
        return sum(map(len, self._conversations)) / len(self._conversations)

    def sessions(self, client: Client, seed: int) -> Iterator[list[Request]]:
        """The client's conversations."""
        rng = stream(seed, "conversations", client.name)
        for number in count():
            conversation = self._conversations[rng.integers(len(self._conversations))]
            thinks = [self.think.draw(rng) for _ in conversation]
            yield _session(client, f"{client.name}/{number}", conversation, thinks)

    @cached_property
    def _conversations(self) -> list[list[Turn]]:
        return conversations(self.path)


def _session(client: Client, id: str, turns: Sequence[Turn], thinks: Sequence[float]) -> list[Request]:
    made: list[Request] = []
    for number, (turn, think) in enumerate(zip(turns, thinks, strict=True)):
        before = None if turn.before is None else made[turn.before]
        tokens = turn.tokens if before else client.prefix(turn.tokens)
        prompt = (*(before.prompt if before else ()), Segment(f"turn:{id}/{number}", tokens))
        after, pause = ((before.id,), think) if before else ((), 0.0)
        name = f"{id}/{number}"
        made.append(Request(name, client.name, 0.0, prompt, turn.output_tokens, id, after, pause))
    return made


# -- the file ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    input_tok_ids: Annotated[list[int], Field(min_length=1)]
    output_toks: Count


def conversations(path: Path) -> list[list[Turn]]:
    """The conversations of a file, each with a turn before those that go on from it."""
    rows = sorted(_rows(path), key=lambda row: row.input_tok_ids)
    found: list[list[Turn]] = []
    open_turns: list[tuple[list[int], int]] = []  # prompts that each begin the next, and their places
    for row in rows:
        prompt = row.input_tok_ids
        while open_turns and not _goes_on(prompt, open_turns[-1][0]):
            open_turns.pop()
        before, place = open_turns[-1] if open_turns else ([], None)
        if place is None:
            found.append([])
        open_turns.append((prompt, len(found[-1])))
        found[-1].append(Turn(len(prompt) - len(before), row.output_toks, place))
    return found


def _goes_on(prompt: list[int], before: list[int]) -> bool:
    return len(prompt) > len(before) and prompt[: len(before)] == before


_row = TypeAdapter(_Row)


def _rows(path: Path) -> Iterator[_Row]:
    with path.open("rb") as file:
        number = 0
        for number, line in enumerate(file, start=1):
            try:
                yield _row.validate_json(line)
            except ValidationError as error:
                raise BadInput(f"{path}:{number}: {first_problem(error)}") from None
        if not number:
            raise BadInput(f"{path}: holds no rows; a conversation file has one row for each prompt")
