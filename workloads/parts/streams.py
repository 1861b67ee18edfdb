"""Random streams by name: what one part of a workload draws never depends on what another part draws."""

from __future__ import annotations

import hashlib
import json

from numpy.random import PCG64, Generator, SeedSequence


def stream(seed: int, *names: str) -> Generator:
    """The generator named `names` under `seed` (>= 0): the same on every machine and in every process."""
    digest = hashlib.sha256(json.dumps(names).encode()).digest()
    return Generator(PCG64(SeedSequence([seed, int.from_bytes(digest[:16], "big")])))
