"""LLM as a judge: a program that judges an article by several dimensions at once, then sums up.

Branch, solve, merge, as in the DLPM paper (Table 2, Fig. 6) and in the benchmark of SGLang that it took this
from: one request for each dimension, all on the same article, and a last one on the article and all replies.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Annotated

from numpy.random import Generator
from pydantic import Field

from suite.trace import REPLY, Request, Segment
from workloads.family import Synthetic
from workloads.parts.clients import Client
from workloads.parts.lengths import Lengths
from workloads.parts.streams import stream


class LLMJudge(Synthetic):
    """Judgements, each a session on an article of its own. Lengths are in tokens.

    The prompt of a dimension is the article and an instruction; that of the verdict has the replies of all
    dimensions between the two, and is sent when the last of them has ended. A longer prefix is a longer
    article; a bigger program has more dimensions.
    """

    dimensions: Annotated[int, Field(ge=1, le=10_000, strict=True)] = 2
    article_tokens: Lengths
    instruction_tokens: Lengths
    output_tokens: Lengths

    def requests_per_session(self, factor: float = 1.0) -> float:
        """One for each dimension, and the verdict."""
        return round(self.dimensions * factor) + 1.0

    def sessions(self, client: Client, seed: int) -> Iterator[list[Request]]:
        """The client's judgements."""
        for number in count():
            session = f"{client.name}/{number}"
            rng = stream(seed, "judgement", session)
            article = Segment(f"article:{session}", client.prefix(self.article_tokens.draw(rng)))
            solved = [
                self._request(client, session, f"{dimension}", (article,), (), rng)
                for dimension in range(client.program(self.dimensions))
            ]
            yield [*solved, self._verdict(client, session, article, solved, rng)]

    def _verdict(
        self, client: Client, session: str, article: Segment, solved: list[Request], rng: Generator
    ) -> Request:
        replies = (Segment(f"{REPLY}{one.id}", one.output_tokens) for one in solved)
        after = tuple(one.id for one in solved)
        return self._request(client, session, "verdict", (article, *replies), after, rng)

    def _request(
        self,
        client: Client,
        session: str,
        what: str,
        prompt: tuple[Segment, ...],
        after: tuple[str, ...],
        rng: Generator,
    ) -> Request:
        id = f"{session}/{what}"
        instruction = Segment(f"instruction:{id}", self.instruction_tokens.draw(rng))
        output = self.output_tokens.draw(rng)
        return Request(id, client.name, 0.0, (*prompt, instruction), output, session, after)
