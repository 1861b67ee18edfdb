"""Tree of thoughts: a program that asks in branches and goes on from every reply (Yao et al., 2023).

Run as in the DLPM paper (Table 2, Fig. 6): from a question grow `branches` steps, from each of these as many
again, `height` times over, so that a tree of height 4 is 30 requests with two branches and 340 with four.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator, Sequence
from itertools import chain, count
from typing import Annotated

from numpy.random import Generator
from pydantic import Field

from suite.trace import REPLY, Request, Segment
from workloads.family import Synthetic
from workloads.parts.clients import Client
from workloads.parts.lengths import Lengths
from workloads.parts.streams import stream


class Trees(Synthetic, ABC):
    """Trees, each a session that grows from a question. Lengths are in tokens.

    The prompt of a step is the question, then an instruction and the reply of each step above it, then its
    own instruction; it is sent when the step above has ended. Siblings send the same prompt and get replies
    of their own. A bigger program has more branches.
    """

    branches: Annotated[int, Field(ge=1, le=100, strict=True)] = 2
    height: Annotated[int, Field(ge=1, le=20, strict=True)] = 4
    instruction_tokens: Lengths
    output_tokens: Lengths

    def requests_per_session(self, factor: float = 1.0) -> float:
        """The steps of a tree."""
        branches = round(self.branches * factor)
        return float(sum(branches**depth for depth in range(1, self.height + 1)))

    def tree(self, client: Client, session: str, question: Segment, rng: Generator) -> list[Request]:
        """The steps of one tree, those above before those below."""
        return list(chain.from_iterable(self._levels(client, session, question, rng)))

    def _levels(
        self, client: Client, session: str, question: Segment, rng: Generator
    ) -> Iterator[Sequence[Request]]:
        ids = (f"{session}/{number}" for number in count())
        above: list[tuple[tuple[Segment, ...], tuple[str, ...]]] = [((question,), ())]
        for depth in range(self.height):
            instruction = Segment(f"instruction:{session}:{depth}", self.instruction_tokens.draw(rng))
            level = [
                Request(
                    next(ids), client.name, 0.0, (*history, instruction), self.output_tokens.draw(rng),
                    session, after,
                )
                for history, after in above
                for _ in range(client.program(self.branches))
            ]  # fmt: skip
            yield level
            above = [
                ((*step.prompt, Segment(f"{REPLY}{step.id}", step.output_tokens)), (step.id,))
                for step in level
            ]


class TreeOfThoughts(Trees):
    """Trees on made-up questions, each of its own. A longer prefix is a longer question."""

    question_tokens: Lengths

    def sessions(self, client: Client, seed: int) -> Iterator[list[Request]]:
        """The client's trees."""
        for number in count():
            session = f"{client.name}/{number}"
            rng = stream(seed, "tree", session)
            question = Segment(f"tree:{session}", client.prefix(self.question_tokens.draw(rng)))
            yield self.tree(client, session, question, rng)
