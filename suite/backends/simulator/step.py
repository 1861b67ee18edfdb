"""What one step of an engine may hold, and what it computes of prompts."""

from __future__ import annotations

from dataclasses import dataclass

from suite.backends.simulator.live import Live

CLIP = 4096
"""Of a request's coming output, SGLang reserves at most this many tokens (its default)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a step may hold: running requests, and tokens computed in it (for SGLang, of prefill only).

    `block` is the size of a block of vLLM's KV cache in tokens; SGLang's holds one. `clip` is what SGLang's
    admission reserves for a request's output at most.
    """

    running: int
    tokens: int
    block: int = 16
    clip: int = CLIP


class Prefill:
    """The prefill work of one step: which requests compute how many tokens."""

    __slots__ = ("attended", "chunks", "read", "tokens")

    def __init__(self) -> None:
        self.chunks: list[tuple[Live, int]] = []
        self.tokens = self.attended = self.read = 0

    def add(self, live: Live, chunk: int) -> None:
        """Compute the next `chunk` tokens of a request."""
        self.chunks.append((live, chunk))
        self.tokens += chunk
        self.attended += chunk * live.computed + chunk * (chunk + 1) // 2
        self.read += live.computed + chunk


NO_WORK = Prefill()
"""Of a step that only decodes."""
