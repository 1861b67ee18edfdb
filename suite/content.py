"""What stands in a prompt: the segments of a trace turned into token ids or text.

The tokens of a segment are those that the trace carries or, for a made-up one, a function of the trace's seed
and the segment's id alone: two processes, two machines, two years give the same ones.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import shake_128
from itertools import groupby
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from suite.errors import BadInput
from suite.trace import REPLY, Request, Segment, Trace

Tokens: TypeAlias = NDArray[np.int32]

CACHED_TOKENS = 4_000_000
"""Tokens of the segments used last that are kept, so that a shared document is made once."""

_COMMON = (
    "time year people way day man thing woman life child world school state family student group country "
    "problem hand part place case week company system program question work number night point home water "
    "room mother area money story fact month lot right study book eye job word business issue side kind "
    "head house service friend father power hour game line end member law car city community name team "
    "minute idea body information back parent face level office door health person art war history party "
    "result change morning reason research girl moment air teacher force education foot boy age policy "
    "music market sense nation plan college interest death experience effect use class control"
)
WORDS = tuple(_COMMON.split())
"""Common words: one token each, with the space before, in the usual vocabularies."""
SPECIAL = ("<unk>", "<s>", "</s>")
"""How the tokenizers of the models that the suite makes write the ids 0, 1, 2."""


@dataclass
class Content:
    """Prompts for the requests of one trace.

    Made-up token ids lie in [first, vocabulary): `first` spares the special tokens that most vocabularies
    begin with. `real` holds the ids of the segments that have real ones. Raises `BadInput` if no id is left
    to make up, or if a real one lies beyond the vocabulary.
    """

    seed: int
    vocabulary: int
    first: int = 3
    real: Mapping[str, Tokens] = field(default_factory=dict, repr=False)
    _cache: OrderedDict[str, Tokens] = field(default_factory=OrderedDict, init=False, repr=False)
    _cached: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.vocabulary:
            raise BadInput(f"vocabulary: {self.vocabulary} tokens leave none from {self.first} on; give more")
        for id, tokens in self.real.items():
            if tokens.max() >= self.vocabulary:
                raise BadInput(
                    f"segment {id!r}: token id {tokens.max()} lies beyond the served model's vocabulary of "
                    f"{self.vocabulary} tokens; make the trace with that model's tokenizer, or correct the "
                    f"endpoint's `vocabulary`"
                )

    @classmethod
    def of(cls, trace: Trace, vocabulary: int, first: int = 3) -> Content:
        """Prompts for the requests of this trace."""
        return cls(trace.header.seed, vocabulary, first, trace.tokens)

    def needed_by(self, requests: Iterable[Request]) -> Content:
        """The same prompts for these requests alone, without the real ids of other requests' segments."""
        ids = {segment.id for request in requests for segment in request.prompt}
        return replace(self, real={id: self.real[id] for id in ids & self.real.keys()})

    def segment(self, id: str, tokens: int) -> Tokens:
        """The first `tokens` tokens of the endless stream named `id`, shape (tokens,), read-only."""
        if id in self.real:
            given = self.real[id][:tokens]
            given.flags.writeable = False
            return given
        known = self._cache.pop(id, None)
        if known is None or len(known) < tokens:
            self._cached += tokens - (0 if known is None else len(known))
            known = self._made(id, tokens)
        self._cache[id] = known
        while self._cached > CACHED_TOKENS:
            self._cached -= len(self._cache.popitem(last=False)[1])
        return known[:tokens]

    def _made(self, id: str, tokens: int) -> Tokens:
        """SHAKE-128 of seed and id as a stream of little-endian 32-bit numbers, modulo the vocabulary."""
        digest = shake_128(f"{self.seed}\0{id}".encode()).digest(4 * tokens)
        made = np.frombuffer(digest, "<u4") % np.uint32(self.vocabulary - self.first) + np.uint32(self.first)
        made.flags.writeable = False
        return made.view(np.int32)

    def prompt(self, request: Request, replies: Mapping[str, Sequence[int] | Tokens]) -> list[int]:
        """The token ids of a request's prompt; `replies` are those of earlier requests by request id."""
        parts = [
            np.asarray(replies[_source(segment)], np.int32) if _is_reply(segment) else self.segment(*segment)
            for segment in request.prompt
        ]
        ids: list[int] = np.concatenate(parts).tolist()
        return ids

    def text(self, ids: Sequence[int] | Tokens) -> str:
        """One short word with a space before it for each token: texts share a prefix as far as ids do.

        How many tokens an engine makes of it is for its tokenizer to say; about one a word. Real ids are no
        exception: what they spell is not known here.
        """
        return "".join(f" {WORDS[id % len(WORDS)]}" for id in ids)

    def prompt_text(self, request: Request, replies: Mapping[str, str]) -> str:
        """A request's prompt as text; replies stand in it as the engine wrote them."""
        return "".join(self._text_of(segment, replies) for segment in request.prompt)

    def messages(self, request: Request, replies: Mapping[str, str]) -> list[dict[str, str]]:
        """A request's prompt as chat messages: a reply is the assistant's, all else the user's.

        Replies at the very end are the user's too, as a chat ends with the user's word.
        """
        own = [i for i, segment in enumerate(request.prompt) if not _is_reply(segment)]
        spoken = {i for i in range(max(own, default=0)) if i not in own}
        parts = ((i in spoken, self._text_of(segment, replies)) for i, segment in enumerate(request.prompt))
        return [
            {"role": "assistant" if by_engine else "user", "content": "".join(text for _, text in texts)}
            for by_engine, texts in groupby(parts, key=lambda part: part[0])
        ]

    def _text_of(self, segment: Segment, replies: Mapping[str, str]) -> str:
        return replies[_source(segment)] if _is_reply(segment) else self.text(self.segment(*segment))


def word(id: int) -> str:
    """How the tokenizers of the models that the suite makes write a token."""
    return SPECIAL[id] if id < len(SPECIAL) else f"w{id}"


def spelled(ids: Sequence[int]) -> str:
    """A text of which those tokenizers make exactly these tokens."""
    return " ".join(map(word, ids))


def replied(requests: Sequence[Request]) -> frozenset[str]:
    """Ids of the requests whose reply stands in the prompt of another."""
    return frozenset(_source(part) for request in requests for part in request.prompt if _is_reply(part))


def _is_reply(segment: Segment) -> bool:
    return segment.id.startswith(REPLY)


def _source(segment: Segment) -> str:
    return segment.id.removeprefix(REPLY)
