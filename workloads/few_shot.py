"""Few-shot prompting: questions of a few tasks, each behind the examples of its task.

As benchmarks of language models are run (GSM8K with 8 examples, MMLU with 5 for each of 57 subjects): the
examples are one head that every prompt of the task shares.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from itertools import count
from typing import Annotated, Self

from pydantic import Field, model_validator

from suite.trace import Request, Segment
from workloads.family import Synthetic
from workloads.parts.clients import Client, Whose, zipf
from workloads.parts.lengths import Lengths
from workloads.parts.part import Count, NonNegative
from workloads.parts.streams import stream


class FewShot(Synthetic):
    """Questions behind `shots` examples of their task. Lengths are in tokens, one draw for each example.

    Each client asks within `tasks` tasks; how often is Zipf with exponent `popularity` (0: equally). The
    first, and so most popular, `common_tasks` of them are the same for all clients. A longer prefix is longer
    examples.
    """

    tasks: Count
    common_tasks: Annotated[int, Field(ge=0, strict=True)] = 0
    popularity: NonNegative = 0.0
    shots: Annotated[int, Field(ge=1, le=1000, strict=True)]
    example_tokens: Lengths
    question_tokens: Lengths
    output_tokens: Lengths

    @model_validator(mode="after")
    def _no_more_common_than_all(self) -> Self:
        if self.common_tasks > self.tasks:
            raise ValueError(f"common_tasks: {self.common_tasks} of {self.tasks} tasks")
        return self

    def sessions(self, client: Client, seed: int) -> Iterator[list[Request]]:
        """The client's questions, each on its own."""
        head = cache(partial(self._head, client, seed))
        chances = zipf(self.tasks, self.popularity)
        rng = stream(seed, "questions", client.name)
        for number in count():
            id = f"{client.name}/{number}"
            examples = head(int(rng.choice(self.tasks, p=chances)))
            question = Segment(f"question:{id}", self.question_tokens.draw(rng))
            yield [Request(id, client.name, 0.0, (*examples, question), self.output_tokens.draw(rng))]

    def _head(self, client: Client, seed: int, task: int) -> tuple[Segment, ...]:
        whose: Whose = "shared" if task < self.common_tasks else "client"
        return tuple(
            client.prefix_segment(f"example:{task}:{shot}", whose, self.example_tokens, seed)
            for shot in range(self.shots)
        )
