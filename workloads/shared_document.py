"""Shared document: many questions on few long documents, as in long-context question answering.

A request is one of its client's documents followed by a question of its own.
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


class SharedDocument(Synthetic):
    """Questions on documents. Lengths are in tokens, one draw for each document.

    Each client asks about `documents` documents; how often is Zipf with exponent `popularity` (0: equally).
    The first, and so most popular, `common_documents` of them are the same for all clients.
    """

    documents: Count
    common_documents: Annotated[int, Field(ge=0, strict=True)] = 0
    popularity: NonNegative = 0.0
    document_tokens: Lengths
    question_tokens: Lengths
    output_tokens: Lengths

    @model_validator(mode="after")
    def _no_more_common_than_all(self) -> Self:
        if self.common_documents > self.documents:
            raise ValueError(f"common_documents: {self.common_documents} of {self.documents} documents")
        return self

    def sessions(self, client: Client, seed: int) -> Iterator[list[Request]]:
        """The client's questions, each on its own."""
        document = cache(partial(self._document, client, seed))
        chances = zipf(self.documents, self.popularity)
        rng = stream(seed, "questions", client.name)
        for number in count():
            id = f"{client.name}/{number}"
            asked = document(int(rng.choice(self.documents, p=chances)))
            question = Segment(f"question:{id}", self.question_tokens.draw(rng))
            yield [Request(id, client.name, 0.0, (asked, question), self.output_tokens.draw(rng))]

    def _document(self, client: Client, seed: int, number: int) -> Segment:
        whose: Whose = "shared" if number < self.common_documents else "client"
        return client.prefix_segment(f"document:{number}", whose, self.document_tokens, seed)
