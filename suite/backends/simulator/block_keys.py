"""What a router's index knows blocks of tokens by, made of content without any token being made."""

from __future__ import annotations

from collections.abc import Hashable

from suite.backends.simulator.tree import Content


def block_keys(content: Content, block: int) -> list[Hashable]:
    """A key for each full block of `block` tokens: two are equal if and only if the blocks' tokens are.

    A block within one piece is known by its address; one across pieces by the parts of them in it. In
    `content` no piece goes on where the one before it ends.
    """
    keys: list[Hashable] = []
    crossing: Content = ()
    missing = 0
    for address, tokens in content:
        if missing:
            taken = min(missing, tokens)
            crossing = (*crossing, (address, taken))
            address, tokens, missing = address + taken, tokens - taken, missing - taken
            if missing:
                continue
            keys.append(crossing)
        whole = tokens // block * block
        keys.extend(range(address, address + whole, block))
        if whole < tokens:
            crossing = ((address + whole, tokens - whole),)
            missing = block - (tokens - whole)
    return keys
