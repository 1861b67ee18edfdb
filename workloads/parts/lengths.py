"""Distributions of lengths: tokens of a prompt or an output, turns of a session.

They are whole numbers from 1 to 10,000,000.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from bisect import bisect_right
from functools import cached_property
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.random import Generator
from pydantic import BeforeValidator, Field, model_validator

from suite.trace import MOST_TOKENS
from workloads.parts.part import ByKind, Count, NonNegative, Part, Variation


class _Distribution(Part):
    @abstractmethod
    def draw(self, rng: Generator) -> int:
        """One length, from 1 to `MOST_TOKENS`."""

    @abstractmethod
    def expected(self) -> float:
        """The mean of the distribution."""


class Constant(_Distribution):
    """Always `value`."""

    kind: Literal["constant"] = "constant"
    value: Count

    def draw(self, rng: Generator) -> int:
        return self.value

    def expected(self) -> float:
        return float(self.value)


class Uniform(_Distribution):
    """Every whole number from `low` to `high`, both included, equally likely."""

    kind: Literal["uniform"] = "uniform"
    low: Count
    high: Count

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) is above high ({self.high}); swap them")
        return self

    def draw(self, rng: Generator) -> int:
        return int(rng.integers(self.low, self.high, endpoint=True))

    def expected(self) -> float:
        return (self.low + self.high) / 2


class LogNormal(_Distribution):
    """Log-normal with the given mean and coefficient of variation (of the lengths, not of their logs).

    Draws are rounded to whole numbers and clipped to the bounds of lengths, so both hold closely for means
    well within them.
    """

    kind: Literal["lognormal"] = "lognormal"
    mean: Annotated[float, Field(ge=1, le=MOST_TOKENS, strict=True)]
    cv: Annotated[Variation, Field(gt=0)]

    def draw(self, rng: Generator) -> int:
        return max(1, round(min(rng.lognormal(*self._of_logs), MOST_TOKENS)))

    @cached_property
    def _of_logs(self) -> tuple[float, float]:
        """Mean and standard deviation of the lengths' logarithms."""
        variance = math.log1p(self.cv**2)
        return math.log(self.mean) - variance / 2, math.sqrt(variance)

    def expected(self) -> float:
        return self.mean


class Empirical(_Distribution):
    """One of `values`, each as likely as the others or in proportion to its entry in `weights`."""

    kind: Literal["empirical"] = "empirical"
    values: Annotated[tuple[Count, ...], Field(min_length=1)]
    weights: tuple[NonNegative, ...] | None = None

    @model_validator(mode="after")
    def _one_weight_each(self) -> Self:
        if self.weights is not None and len(self.weights) != len(self.values):
            raise ValueError(f"weights has {len(self.weights)} entries for {len(self.values)} values")
        if self.weights is not None and sum(self.weights) == 0:
            raise ValueError("weights are all 0; make at least one positive")
        return self

    def draw(self, rng: Generator) -> int:
        if self.weights is None:
            return self.values[rng.integers(len(self.values))]
        return self.values[bisect_right(self._up_to, rng.random())]

    def expected(self) -> float:
        return float(np.average(self.values, weights=None if self.weights is None else self._chances))

    @cached_property
    def _chances(self) -> np.ndarray:
        weights = self.weights or (1.0,) * len(self.values)
        return np.asarray(weights) / math.fsum(weights)

    @cached_property
    def _up_to(self) -> list[float]:
        """The chance of each value or one before it."""
        summed = np.cumsum(self._chances)
        up_to: list[float] = (summed / summed[-1]).tolist()
        return up_to


def _bare_number(data: Any) -> Any:
    return {"kind": "constant", "value": data} if isinstance(data, int | float) else data


Lengths = Annotated[Constant | Uniform | LogNormal | Empirical, *ByKind, BeforeValidator(_bare_number)]
"""Any of the distributions, told apart by `kind`; a bare whole number is a constant."""
