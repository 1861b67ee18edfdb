"""The two files that ServeGen has for a client: how often it sends, and how long its requests are."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.random import Generator
from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

from suite.errors import BadInput
from suite.trace import MOST_TOKENS
from suite.validation import first_problem
from workloads.reading.rows import untitled_csv_rows

COLUMNS = ("t", "rate", "cv", "pattern", "shape", "scale")
_FLATTEST = 0.006
"""The least shape parameter whose Weibull law has a mean that can be computed."""


def _computable(shape: float) -> float:
    if 0 < shape < _FLATTEST:
        raise ValueError(f"must be 0 (no law) or at least {_FLATTEST}")
    return shape


@dataclass(frozen=True, slots=True)
class Rate:
    """How a client sends from `t` seconds on: `rate` requests/s, gaps by a law; without a law, nothing."""

    t: Annotated[float, Field(ge=0, le=1e9)]
    rate: Annotated[float, Field(ge=0, le=1e6)]
    pattern: Literal["Gamma", "Weibull", ""]
    shape: Annotated[float, Field(ge=0, le=1e9), AfterValidator(_computable)]

    @property
    def sent(self) -> float:
        """Requests/s that really come: none without a law."""
        return self.rate if self.pattern and self.shape else 0.0

    def times(self, rate: float, seconds: float, rng: Generator) -> Iterator[float]:
        """Times in [0, seconds) of the stationary renewal process of this law at a mean of `rate` a second.

        The first gap is the rest of one that was under way at time 0: a uniform part of a length-biased gap.
        """
        time = self._under_way(rng) * rng.random() / rate
        while time < seconds:
            yield time
            time += self._gap(rng) / rate

    def _gap(self, rng: Generator) -> float:
        """A gap of mean 1."""
        if self.pattern == "Gamma":
            return rng.gamma(self.shape, 1 / self.shape)
        return rng.weibull(self.shape) / math.gamma(1 + 1 / self.shape)

    def _under_way(self, rng: Generator) -> float:
        """The same, length-biased: Gamma with shape + 1; for Weibull, a power of a Gamma variate."""
        if self.pattern == "Gamma":
            return rng.gamma(self.shape + 1, 1 / self.shape)
        drawn = rng.gamma(1 + 1 / self.shape)
        return math.exp(math.log(drawn) / self.shape - math.lgamma(1 + 1 / self.shape))


class Distribution:
    """Numbers of tokens, and how likely each is."""

    def __init__(self, chances: dict[int, float]) -> None:
        self._tokens = np.array(list(chances))
        self._cumulated = np.cumsum(list(chances.values()))

    def draw(self, rng: Generator) -> int:
        """One number of tokens. A few are 0 in the data; they count as 1, the least a request can have."""
        place = np.searchsorted(self._cumulated, rng.random() * self._cumulated[-1], side="right")
        return max(1, int(self._tokens[place]))


class Lengths(NamedTuple):
    """What a client's requests look like from `t` seconds on."""

    t: float
    input_tokens: Distribution
    output_tokens: Distribution


def rates(path: Path) -> list[Rate]:
    """The rows of a `chunk-N-trace.csv`, in order of time. Raises `BadInput` naming line and column."""
    found = sorted(untitled_csv_rows(path, _rate, COLUMNS), key=lambda rate: rate.t)
    if len(found) < 2:
        raise BadInput(f"{path}: holds {len(found)} rows; a client has at least 2, which say how far apart")
    return found


def lengths(path: Path) -> list[Lengths]:
    """What a `chunk-N-dataset.json` holds, in order of time, without the times of which it holds nothing.

    None if there is no such file. Raises `BadInput` naming time and field.
    """
    if not path.is_file():
        return []
    try:
        found = _dataset.validate_json(path.read_bytes())
    except ValidationError as error:
        raise BadInput(f"{path}: {first_problem(error)}") from None
    return [
        Lengths(t, Distribution(one.input_tokens), Distribution(one.output_tokens))
        for t, one in sorted(found.items())
        if one.input_tokens and one.output_tokens
    ]


_ITEM = re.compile(r"(\d{1,9}): ?([0-9][0-9.eE+-]*)")


def _parsed(text: Any) -> Any:
    """The numbers in "{tokens: probability, ...}", which is Python and is not evaluated."""
    if not (isinstance(text, str) and text.startswith("{") and text.endswith("}")):
        raise ValueError('must be a text "{tokens: probability, ...}"')
    items = text[1:-1].split(", ") if text != "{}" else []
    matches = [(item, _ITEM.fullmatch(item)) for item in items]
    wrong = [item for item, match in matches if match is None]
    if wrong:
        raise ValueError(f"{wrong[0][:40]!r} must be `tokens: probability`")
    return {match[1]: match[2] for _, match in matches if match}


def _certain(chances: dict[int, float]) -> dict[int, float]:
    if chances and not math.isclose(sum(chances.values()), 1, abs_tol=1e-3):
        raise ValueError(f"the probabilities add up to {sum(chances.values()):g}; they must to 1")
    return chances


_Chances = Annotated[
    dict[Annotated[int, Field(le=MOST_TOKENS)], Annotated[float, Field(ge=0, le=1)]],
    BeforeValidator(_parsed),
    AfterValidator(_certain),
]


@dataclass(frozen=True, slots=True)
class _Record:
    input_tokens: _Chances
    output_tokens: _Chances


_rate = TypeAdapter(Rate)
_dataset = TypeAdapter(dict[Annotated[float, Field(ge=0, allow_inf_nan=False)], _Record])
