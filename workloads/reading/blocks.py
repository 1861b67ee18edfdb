"""Prompts given as hash ids of token blocks: equal ids stand for equal tokens after equal beginnings."""

from __future__ import annotations

from collections.abc import Sequence

from suite.trace import Segment


class Blocks:
    """The prompts of one trace, cut into blocks of `size` tokens.

    Each hash id becomes a segment, so prompts share exactly the prefixes they share in the trace. Only the
    last block of a prompt may be partial; it has an id of its own.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._whole: dict[int, Segment] = {}

    def prompt(self, hash_ids: Sequence[int], tokens: int) -> tuple[Segment, ...]:
        """The segments of a prompt of `tokens` tokens."""
        *whole, last = hash_ids
        return (*map(self._block, whole), Segment(f"block:{last}", tokens - self.size * len(whole)))

    def problem(self, hash_ids: Sequence[int], tokens: int) -> str | None:
        """What is wrong if the ids are not as many as the prompt has blocks."""
        blocks = -(-tokens // self.size)
        if len(hash_ids) == blocks:
            return None
        return (
            f"hash_ids: {len(hash_ids)} ids, but input_length {tokens} makes {blocks} blocks of {self.size}"
        )

    def _block(self, id: int) -> Segment:
        if id not in self._whole:
            self._whole[id] = Segment(f"block:{id}", self.size)
        return self._whole[id]
