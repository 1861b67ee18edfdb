"""Questions on real documents: what the data sets of long-context question answering have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain, zip_longest
from typing import Any, Literal, NamedTuple

from suite.errors import BadInput
from suite.trace import Request
from workloads.parts.clients import Client
from workloads.parts.dealing import dealt
from workloads.parts.part import Count
from workloads.parts.streams import stream
from workloads.reading.wording import Wording


class Question(NamedTuple):
    """A question on a document, and the recorded answer to it."""

    document: str
    question: str
    answer: str


class Documents(Wording, ABC):
    """Questions on the documents of a data set; none is asked twice.

    Documents are dealt to clients, so that each is of one client. `order` says in which order a client asks:
    all questions on one document, then those on the next (`grouped`), one on each document in turn
    (`round_robin`), or at random (`shuffled`, seeded): it decides which scheduler finds its documents cached.
    Documents of more than `longest` tokens are left out, and counted in the header.
    """

    order: Literal["grouped", "round_robin", "shuffled"] = "shuffled"
    longest: Count | None = None

    @abstractmethod
    def questions(self) -> Iterator[Question]:
        """All questions, as the rows have them; equal documents are one."""

    def choices(self) -> dict[str, Any]:
        """What every data set says, how documents were dealt, in words, and how many there were."""
        documents, left_out = self._library
        return super().choices() | {
            "client_rule": "documents are shuffled and dealt out in proportion to the clients' rates",
            "counts": {"documents": len(documents), "documents_too_long": left_out},
        }

    def sessions(self, client: Client, seed: int) -> Iterator[list[Request]]:
        """The client's questions, each on its own. Raises `BadInput` when there is none left."""
        documents = dealt(self._library.documents, "documents", self.resolved, seed)[client.name]
        asked = self._ordered(documents, client, seed)
        for number, one in enumerate(asked):
            prompt = self.asked(f"{one.document}\n\n{one.question}")
            output = self.length(one.answer)
            yield [Request(f"{client.name}/{number}", client.name, 0.0, (prompt,), output)]
        raise BadInput(
            f"workload {self.name!r}: client {client.name!r} asks more than the {len(asked)} questions on "
            f"the {len(documents)} documents dealt to it; raise `limit`, or lower the rate, load or duration"
        )

    def _ordered(self, documents: Sequence[Sequence[Question]], client: Client, seed: int) -> list[Question]:
        if self.order == "round_robin":
            return [one for turn in zip_longest(*documents) for one in turn if one is not None]
        grouped = [*chain.from_iterable(documents)]
        if self.order == "grouped":
            return grouped
        return [grouped[place] for place in stream(seed, "questions", client.name).permutation(len(grouped))]

    @cached_property
    def _library(self) -> _Library:
        asked: defaultdict[str, list[Question]] = defaultdict(list)
        for one in self.questions():
            asked[one.document].append(one)
        kept = [questions for document, questions in asked.items() if self._fits(document)]
        if not kept:
            raise BadInput(
                f"{self.place()}: all {len(asked)} documents have more than {self.longest} tokens; raise "
                f"`longest`"
            )
        return _Library(kept, len(asked) - len(kept))

    def _fits(self, document: str) -> bool:
        return self.longest is None or len(self.served_tokenizer.ids(document)) <= self.longest


class _Library(NamedTuple):
    documents: list[list[Question]]
    """The documents that are not too long, each as the questions on it."""
    left_out: int
