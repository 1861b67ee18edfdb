"""Real text in synthetic sessions: questions of a data set, sent when and as a spec says.

The prompt of a question is the chat template of the served model over it, in its own token ids; what prompts
share is found in the ids. Text is read only for the requests that a seed makes.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from suite.trace import Request, Segment
from workloads.parts.dealing import Verbatim
from workloads.reading.hub import Hub
from workloads.reading.text import Exchange, found

_ASKED = "asked:"


class Wording(Hub, Verbatim, ABC):
    """A synthetic workload whose sessions ask in the words of a data set.

    What `asked` gives stands in the prompts of `sessions` where its text comes.
    """

    def asked(self, text: str) -> Segment:
        """A stand-in for the prompt in which the user says `text`."""
        id = f"{_ASKED}{sha256(text.encode()).hexdigest()}"
        self._said[id] = text
        return Segment(id, 1)

    def length(self, text: str) -> int:
        """The tokens of a recorded answer, at least 1."""
        return max(1, len(self.served_tokenizer.ids(text)))

    def choices(self) -> dict[str, Any]:
        """What every data set says, and where prefixes come from, in words."""
        return super().choices() | {"prefix_rule": "found in the token ids of the prompts"}

    def requests(self, seed: int) -> Iterator[Request]:
        """The requests of all clients, with their text."""
        planned, prompts, _ = self._written(seed)
        for request in planned:
            parts = (prompts.get(segment.id, (segment,)) for segment in request.prompt)
            yield replace(request, prompt=tuple(part for some in parts for part in some))

    def tokens(self, seed: int) -> Mapping[str, NDArray[np.int32]]:
        """The token ids of the prompts under `seed`."""
        return self._written(seed).tokens

    @cached_property
    def _said(self) -> dict[str, str]:
        """The texts by their stand-ins."""
        return {}

    @cached_property
    def _memory(self) -> dict[int, _Written]:
        return {}

    def _written(self, seed: int) -> _Written:
        if seed not in self._memory:
            self._memory[seed] = self._write(list(super().requests(seed)))
        return self._memory[seed]

    def _write(self, planned: list[Request]) -> _Written:
        ids = {segment.id for one in planned for segment in one.prompt if segment.id.startswith(_ASKED)}
        exchanges = [Exchange(id, self._prompt(self._said[id])) for id in sorted(ids)]
        shared = found(exchanges)
        prompts = {one.id: prompt for one, prompt in zip(exchanges, shared.prompts, strict=True)}
        return _Written(planned, prompts, shared.tokens)

    def _prompt(self, text: str) -> list[int]:
        return self.served_tokenizer.chat([{"role": "user", "content": text}])


class _Written(NamedTuple):
    """The requests before text, the prompt of each placeholder, and the ids of segments of text."""

    planned: list[Request]
    prompts: dict[str, tuple[Segment, ...]]
    tokens: Mapping[str, NDArray[np.int32]]
