"""Retrieval-augmented generation: a system prompt, the documents found for a question, and the question.

Two prompts share as many documents as they begin with in common, so the order in which a retriever puts them
decides what a prefix cache can keep: the contrast of `shuffled` and `ranked`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, partial
from itertools import count
from typing import Literal, Self

import numpy as np
from numpy.random import Generator
from pydantic import model_validator

from suite.trace import Request, Segment
from workloads.parts.clients import Client, Whose, zipf
from workloads.parts.lengths import Lengths
from workloads.parts.part import Count
from workloads.parts.streams import stream
from workloads.shared_document import SharedDocument


class Retrieval(SharedDocument):
    """Questions on `retrieved` different documents of a corpus of `documents`.

    They are drawn one after the other, each by the popularity of those that are left (Zipf with exponent
    `popularity`), and stand in the prompt in any order (`shuffled`) or the most popular first (`ranked`); the
    documents of a request are the same under both. The first, and so most popular, `common_documents` of the
    corpus are the same for all clients. A longer prefix is a longer system prompt and longer documents.
    """

    system: Whose = "shared"
    system_tokens: Lengths
    retrieved: Count
    order: Literal["shuffled", "ranked"] = "shuffled"

    @model_validator(mode="after")
    def _enough_to_retrieve(self) -> Self:
        if self.retrieved > self.documents:
            raise ValueError(f"retrieved: {self.retrieved} of {self.documents} documents")
        if not zipf(self.documents, self.popularity)[self.retrieved - 1]:
            raise ValueError(
                f"popularity: at {self.popularity:g} the most popular documents are all that is ever found, "
                f"fewer than {self.retrieved}; take a smaller one"
            )
        return self

    def sessions(self, client: Client, seed: int) -> Iterator[list[Request]]:
        """The client's questions, each on its own."""
        system = client.prefix_segment("system", self.system, self.system_tokens, seed)
        document = cache(partial(self._document, client, seed))
        chances = zipf(self.documents, self.popularity)
        rng = stream(seed, "questions", client.name)
        for number in count():
            id = f"{client.name}/{number}"
            found = map(document, self._found(chances, rng))
            question = Segment(f"question:{id}", self.question_tokens.draw(rng))
            output = self.output_tokens.draw(rng)
            yield [Request(id, client.name, 0.0, (system, *found, question), output)]

    def _found(self, chances: np.ndarray, rng: Generator) -> Sequence[int]:
        """The ranks of a request's documents, in the order of the prompt."""
        drawn = rng.choice(self.documents, size=self.retrieved, replace=False, p=chances)
        shuffled: list[int] = rng.permutation(drawn).tolist()
        return shuffled if self.order == "shuffled" else sorted(shuffled)
