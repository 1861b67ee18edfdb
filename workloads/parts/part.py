"""The base of every piece of a workload spec, and the kinds of numbers that specs are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from suite.errors import did_you_mean
from suite.trace import HEAVIEST, LIGHTEST, MOST_TOKENS

MOST_REQUESTS = 10_000_000
"""Requests that a spec may make, about."""

LEAST = 1e-30
"""The least positive number: products and quotients of a few such neither vanish nor overflow."""


def _no_crumb(value: float) -> float:
    if value < LEAST:
        raise ValueError(f"{value:g} is as good as nothing; take {LEAST:g} or more")
    return value


Positive = Annotated[float, Field(gt=0, le=1e12, strict=True), AfterValidator(_no_crumb)]
NonNegative = Annotated[float, Field(ge=0, le=1e12, strict=True)]
Variation = Annotated[float, Field(ge=0, le=100, strict=True)]
Weight = Annotated[float, Field(ge=LIGHTEST, le=HEAVIEST, strict=True)]
Fraction = Annotated[float, Field(ge=0, le=1, strict=True)]
Count = Annotated[int, Field(ge=1, le=MOST_TOKENS, strict=True)]
Clientele = Annotated[int, Field(ge=1, le=100_000, strict=True)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


class Part(BaseModel):
    """A validated, immutable piece of a spec. An unknown key is refused and the nearest known one named."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys_only(cls, data: Any) -> Any:
        for key in data if isinstance(data, Mapping) else ():
            if key not in cls.model_fields:
                raise ValueError(f"unknown key {key!r}; {did_you_mean(str(key), cls.model_fields)}")
        return data


def _with_kind(data: Any) -> Any:
    return {"kind": "(none)", **data} if isinstance(data, Mapping) else data


ByKind = (Field(discriminator="kind"), BeforeValidator(_with_kind))
"""Annotations of a union of parts that differ in their `kind`; a missing kind is met with the known ones."""
