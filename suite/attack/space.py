"""The workloads that an attack may choose from: fourteen parameters, each within bounds, as a unit cube.

The bounds make a finding fair game: traffic that a real service could see, on an engine that can serve all of
it. A point of the cube is a workload spec of one of three families, so a finding is a workload, with as many
traces as there are seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from workloads.parts.clients import zipf

Parameters = Mapping[str, Any]

THINK = 2.0
"""Mean seconds between a reply and the next message of a chat."""


@dataclass(frozen=True)
class Axis:
    """One parameter: from `low` to `high`, evenly or evenly in its logarithm, perhaps in whole numbers."""

    name: str
    low: float
    high: float
    scale: Literal["linear", "log"] = "linear"
    whole: bool = False

    def at(self, place: float) -> float | int:
        """The value at a place from 0 to 1."""
        if self.whole and self.scale == "linear":
            return int(min(self.high, self.low + place * (self.high - self.low + 1) // 1))
        if self.scale == "log":
            value = self.low * math.exp(place * math.log(self.high / self.low))
        else:
            value = self.low + place * (self.high - self.low)
        return round(value) if self.whole else round(value, 4)


@dataclass(frozen=True)
class Choice:
    """One parameter that is one of several words."""

    name: str
    options: tuple[str, ...]

    def at(self, place: float) -> str:
        """The option at a place from 0 to 1."""
        return self.options[min(int(place * len(self.options)), len(self.options) - 1)]


AXES: tuple[Axis | Choice, ...] = (
    Choice("family", ("multi_turn_chat", "shared_document", "mixed_prefix")),
    Choice("misbehaviour", ("none", "more_requests", "longer_prefix")),
    Axis("factor", 1, 4, "log"),  # of the misbehaviour
    Axis("clients", 2, 6, whole=True),
    Axis("skew", 0, 1.5),  # Zipf exponent of the clients' shares
    Axis("requests", 60, 200, whole=True),  # in all, about
    Axis("pressure", 0.5, 3, "log"),  # rate relative to what the engine serves in FCFS order
    Axis("burstiness", 0.3, 3, "log"),  # coefficient of variation of the gaps between arrivals
    Axis("prefix_tokens", 200, 4000, "log", whole=True),  # of a document, a head, a system prompt: the mean
    Axis("prefixes", 1, 12, whole=True),  # documents or heads of each client; turns of a chat
    Axis("unevenness", 0, 1),  # documents: Zipf exponent / 2; heads: share of requests without one, x 2
    Axis("common", 0, 1),  # share of documents, or of requests' system prompts, that all clients share
    Axis("own_tokens", 20, 1000, "log", whole=True),  # of a question, a tail, a message: the mean
    Axis("output_tokens", 8, 400, "log", whole=True),  # the mean
)


def parameters(point: Sequence[float]) -> dict[str, Any]:
    """The parameters at a point of the unit cube, by name."""
    return {axis.name: axis.at(place) for axis, place in zip(AXES, point, strict=True)}


def spec(found: Parameters, duration: float) -> dict[str, Any]:
    """The parameters as a workload spec that lasts `duration` seconds; see `workloads.spec.load`."""
    return {
        "family": found["family"],
        "name": "found",
        "duration": duration,
        "rate": found["requests"] / duration / _growth(found),
        "clients": {"count": found["clients"], "skew": found["skew"]},
        "arrivals": {"kind": "gamma", "cv": found["burstiness"]},
        "misbehaviour": _misbehaviour(found),
        "output_tokens": _lengths(found["output_tokens"], 0.5),
        **_FAMILIES[found["family"]](found),
    }


def _misbehaviour(found: Parameters) -> dict[str, Any] | None:
    if found["misbehaviour"] == "none":
        return None
    return {"client": 0, "kind": found["misbehaviour"], "factor": found["factor"]}


def _growth(found: Parameters) -> float:
    """By what the misbehaviour multiplies the rate of all clients together."""
    if found["misbehaviour"] != "more_requests":
        return 1.0
    share = zipf(found["clients"], found["skew"])[0]  # of client 0, who misbehaves
    return float(1 + (found["factor"] - 1) * share)


def _chat(found: Parameters) -> dict[str, Any]:
    return {
        "system": "shared" if found["common"] > 0.5 else "client",
        "system_tokens": found["prefix_tokens"],
        "turns": found["prefixes"],
        "user_tokens": _lengths(found["own_tokens"], 0.5),
        "think": {"mean": THINK, "cv": 1},
    }


def _document(found: Parameters) -> dict[str, Any]:
    return {
        "documents": found["prefixes"],
        "common_documents": round(found["common"] * found["prefixes"]),
        "popularity": 2 * found["unevenness"],
        "document_tokens": _lengths(found["prefix_tokens"], 0.3),
        "question_tokens": _lengths(found["own_tokens"], 0.5),
    }


def _mixed(found: Parameters) -> dict[str, Any]:
    return {
        "system_fraction": found["common"],
        "unique_fraction": found["unevenness"] / 2,
        "heads": found["prefixes"],
        "system_tokens": found["prefix_tokens"],
        "head_tokens": _lengths(found["prefix_tokens"], 0.3),
        "tail_tokens": _lengths(found["own_tokens"], 0.5),
        "unique_tokens": _lengths(found["prefix_tokens"], 0.3),
    }


_FAMILIES = {"multi_turn_chat": _chat, "shared_document": _document, "mixed_prefix": _mixed}


def _lengths(mean: float, cv: float) -> dict[str, Any]:
    return {"kind": "lognormal", "mean": mean, "cv": cv}
