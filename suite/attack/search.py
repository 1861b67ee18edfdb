"""Searching the unit cube for the point with the largest score: CMA-ES, or at random.

Both ask for points in batches, so that processes can share the work and their number changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import numpy as np
from cmaes import CMA

from suite.attack.space import AXES
from suite.errors import BadInput, did_you_mean

BATCH = 16
_STEP = 0.3
"""CMA-ES's first standard deviation, as a share of each parameter's range."""

Point = Sequence[float]


class Strategy(Protocol):
    """Proposes points of the unit cube and is told their scores."""

    def ask(self) -> list[Point]:
        """The next `BATCH` points."""

    def tell(self, points: Sequence[Point], scores: Sequence[float]) -> None:
        """The scores of the points last asked for; -inf where there is none."""


class Random:
    """Evenly distributed points: what any search has to beat."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def ask(self) -> list[Point]:
        """Points that depend on the seed alone."""
        return [row.tolist() for row in self._rng.random((BATCH, len(AXES)))]

    def tell(self, points: Sequence[Point], scores: Sequence[float]) -> None:
        """Nothing is learnt."""


class CMAES:
    """CMA-ES within the cube, begun anew from a random place when it has converged.

    Source: Hansen, The CMA Evolution Strategy: A Tutorial, arXiv 1604.00772; the library `cmaes`.
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._cma = self._begun(np.full(len(AXES), 0.5))

    def ask(self) -> list[Point]:
        """One generation."""
        return [self._cma.ask().tolist() for _ in range(BATCH)]

    def tell(self, points: Sequence[Point], scores: Sequence[float]) -> None:
        """Learn from the generation; CMA-ES looks at the order of scores alone."""
        self._cma.tell([(np.asarray(p), -s) for p, s in zip(points, scores, strict=True)])
        if self._cma.should_stop():
            self._cma = self._begun(self._rng.random(len(AXES)))

    def _begun(self, mean: np.ndarray) -> CMA:
        bounds = np.tile([0.0, 1.0], (len(AXES), 1))
        seed = int(self._rng.integers(2**31))
        return CMA(mean=mean, sigma=_STEP, bounds=bounds, population_size=BATCH, seed=seed)


STRATEGIES: Mapping[str, Callable[[int], Strategy]] = MappingProxyType({"cma": CMAES, "random": Random})
"""By name: what makes a search of a seed."""


def checked(name: str) -> str:
    """The name of a strategy. Raises `BadInput` if there is none of that name."""
    if name not in STRATEGIES:
        raise BadInput(f"--search: no search {name!r}; {did_you_mean(name, STRATEGIES)}")
    return name
