"""What engines publish of their prefix caches, turned into eviction reports for the router.

vLLM and SGLang (both: `--kv-events-config`) publish over ZeroMQ, in msgpack, which blocks were stored and
which removed. A removed block is named by its hash alone, so what was stored is remembered: hash, the hash
before it, token ids. Read are the events of vLLM 0.32 (`vllm/distributed/kv_events.py`) and SGLang 0.5.23
(`sglang/srt/disaggregation/kv_events.py`), which are the same where it matters here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TypeAlias

import msgspec
import zmq
import zmq.asyncio

from suite.backends.front.prompts import keys

Hash: TypeAlias = bytes | int
Eviction: TypeAlias = tuple[Sequence[Hashable], int]
"""Blocks of a prefix, and how many of them are still held."""

_QUEUED = 100_000
"""Messages that may wait to be read, as many as the publisher keeps; beyond them some are missed."""
_AT_ONCE = 64
"""Evictions that are told to the router before others get their turn."""
_OWN_MEMORY = (None, "GPU")
"""Where the blocks are that a router can count on; those on slower tiers are left out."""


class BlockStored(msgspec.Struct, tag=True):
    """Blocks that follow each other, and `parent_block_hash`."""

    block_hashes: list[Hash]
    parent_block_hash: Hash | None
    token_ids: list[int]
    block_size: int
    medium: str | None = None


class BlockRemoved(msgspec.Struct, tag=True):
    """Blocks that are no longer held."""

    block_hashes: list[Hash]
    medium: str | None = None


class AllBlocksCleared(msgspec.Struct, tag=True):
    """The cache is empty."""


class Batch(msgspec.Struct, array_like=True):
    """One message."""

    ts: float
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]


class Held:
    """What one worker's prefix cache holds, by its own word, in blocks of `block_tokens` tokens.

    vLLM may hold a block twice and tells each removal by the same hash, but tells a block as stored also when
    it is used again: so a block is gone with its first copy, until a request finds the other.
    """

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._blocks: dict[Hash, tuple[Hash | None, bytes]] = {}
        self.unlike = 0
        """Blocks of another size, which are left out."""

    def __len__(self) -> int:
        return len(self._blocks)

    def forget(self) -> None:
        """Nothing is known any more."""
        self._blocks.clear()

    def apply(self, batch: Batch) -> Iterator[Eviction]:
        """Take in what has happened; gives what is to be told of it, of each prefix the shortest."""
        removed: set[Hash] = set()
        for event in batch.events:
            match event:
                case AllBlocksCleared():
                    yield from [((key,), 0) for parent, key in self._blocks.values() if parent is None]
                    self._blocks.clear()
                    removed.clear()
                case BlockStored(medium=medium) if medium in _OWN_MEMORY:
                    self._store(event)
                    removed.difference_update(event.block_hashes)
                case BlockRemoved(medium=medium) if medium in _OWN_MEMORY:
                    removed.update(event.block_hashes)
        yield from self._remove(removed)

    def _store(self, event: BlockStored) -> None:
        if event.block_size != self._block_tokens:
            self.unlike += len(event.block_hashes)
            return
        parent = event.parent_block_hash
        for block, key in zip(event.block_hashes, keys(event.token_ids, self._block_tokens), strict=False):
            self._blocks[block] = parent, key
            parent = block

    def _remove(self, removed: set[Hash]) -> list[Eviction]:
        """What goes on from a removed block is out of reach, so only the first of them is told."""
        known = [block for block in removed if block in self._blocks]
        prefixes = [self._prefix(block) for block in known if self._blocks[block][0] not in removed]
        for block in known:
            del self._blocks[block]
        return [(prefix, len(prefix) - 1) for prefix in prefixes if prefix]

    def _prefix(self, block: Hash | None) -> Sequence[Hashable]:
        """The keys up to a block; none if it cannot be told where it belongs."""
        found: list[Hashable] = []
        for _ in range(len(self._blocks)):
            if block not in self._blocks:
                return ()
            block, key = self._blocks[block]
            found.append(key)
            if block is None:
                return found[::-1]
        return ()


class Listener:
    """Listens to one worker's events, and tells `evicted` of each eviction.

    Messages are numbered, so missed ones are noticed; what they said is not made up for. A block whose prefix
    is not known is left out when it goes, and one whose removal was missed stays in this account; the
    router's own bounded memory forgets it in time.
    """

    def __init__(
        self, address: str, block_tokens: int, evicted: Callable[[Sequence[Hashable], int], None]
    ) -> None:
        self.held = Held(block_tokens)
        self.messages = 0
        self.missed = 0
        self.unreadable = 0
        self._address = address
        self._evicted = evicted
        self._decode = msgspec.msgpack.Decoder(Batch).decode
        self._next: int | None = None

    async def listen(self, context: zmq.asyncio.Context) -> None:
        """Connect, and again whenever the worker comes back. For ever."""
        with context.socket(zmq.SUB) as socket:
            socket.set_hwm(_QUEUED)
            socket.subscribe(b"")
            socket.connect(self._address)
            while True:
                await self.take(await socket.recv_multipart())
                await asyncio.sleep(0)  # what waits already is received without a pause

    async def take(self, frames: Sequence[bytes]) -> None:
        """Take in one message: topic, number, batch."""
        self.messages += 1
        try:
            _, number, data = frames
            batch = self._decode(data)
        except (ValueError, msgspec.MsgspecError):
            self.unreadable += 1
            return
        self._count(int.from_bytes(number, "big"))
        for told, (blocks, kept) in enumerate(self.held.apply(batch)):
            self._evicted(blocks, kept)
            if told % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)

    def problem(self) -> str | None:
        """Why its word cannot be used, if it cannot."""
        if not self.messages:
            return "nothing was heard"
        if self.unreadable:
            return f"{self.unreadable} messages could not be read"
        if self.held.unlike and not len(self.held):
            return "its blocks have another size"
        return None

    def word(self) -> dict[str, int]:
        """Counts for the manifest."""
        return {"messages": self.messages, "missed": self.missed, "unreadable": self.unreadable}

    def _count(self, number: int) -> None:
        """A number that goes back means that the worker was started anew."""
        if self._next is not None and number < self._next:
            self.held.forget()
        elif self._next is not None:
            self.missed += number - self._next
        self._next = number + 1
