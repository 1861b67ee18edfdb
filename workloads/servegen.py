"""ServeGen (alibaba/ServeGen, NSDI '26): how often each client of a production model sends, and how much.

A folder holds two files for each client N. `chunk-N-trace.csv` has a row for each 600 s: time (s), rate
(requests/s), coefficient of variation of the gaps, their law (Gamma, Weibull, or none) and its parameters,
shape and scale. `chunk-N-dataset.json` maps some of the times to the distributions of `input_tokens` and
`output_tokens`, each the text "{tokens: probability, ...}". Requests are drawn from these by seed.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from math import fsum
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.random import Generator
from pydantic import model_validator

from suite.trace import Request, Segment
from workloads.parts.part import MOST_REQUESTS, NonNegative, Positive
from workloads.parts.streams import stream
from workloads.reading.recorded import NOTHING_SHARED, Recorded
from workloads.reading.servegen_files import Lengths, Rate, lengths, rates

_FILE = re.compile(r"chunk-(\d+)-trace\.csv")


class Span(NamedTuple):
    """The part of a row's time that is wanted: seconds from the start of the trace, and how many."""

    law: Rate
    begin: float
    seconds: float


class ServeGen(Recorded):
    """The clients of one model for `seconds` from `start` on, in the source's time; arrivals begin at 0.

    `rate` is what they send together on average, in requests/s; each keeps its share and its course. Without
    it the source's rates stand, which are those of a large cluster. Each 600 s begin afresh, as if their law
    had always held, so that their rate is right at any burstiness. Input and output lengths are drawn
    independently (ServeGen's own generator draws both from one number, but only the two distributions are
    known) from the client's last distributions, or its first ones before there are any; those of a client
    without any, from a client that has some, drawn for each request in proportion to its rate.
    """

    SOURCE: ClassVar[str] = "alibaba/ServeGen, data"
    LICENCE: ClassVar[str] = "Apache-2.0"
    FOLDER: ClassVar[bool] = True

    start: NonNegative = 0.0
    seconds: Positive
    rate: Positive | None = None

    def part(self) -> str:
        """Which seconds are drawn from."""
        return f"{self.seconds:g} s from {self.start:g} s on"

    def choices(self) -> dict[str, Any]:
        """What every recorded workload says, the rate of each client, and how lengths were drawn."""
        return super().choices() | {
            "client_rates": {name: round(rate * self._factor, 9) for name, rate in self._rates.items()},
            "length_rule": "input and output drawn independently, from the last distributions of the client",
            "clients_with_lengths_of_others": [name for name in self._rates if not self._lengths[name]],
            "prefix_rule": NOTHING_SHARED,
        }

    def requests(self, seed: int) -> Iterator[Request]:
        """All clients' requests, client by client."""
        for name in self._rates:
            arrivals = self._arrivals(name, stream(seed, "servegen", "arrivals", name))
            rng = stream(seed, "servegen", "lengths", name)
            for number, arrival in enumerate(arrivals):
                drawn = _at(self._lengths[name] or self._others(rng), self.start + arrival)
                prompt = Segment(f"prompt:{name}/{number}", drawn.input_tokens.draw(rng))
                output_tokens = drawn.output_tokens.draw(rng)
                yield Request(f"{name}/{number}", name, arrival, (prompt,), output_tokens)

    def _arrivals(self, name: str, rng: Generator) -> Iterator[float]:
        """Seconds from the start of the trace."""
        for law, begin, seconds in self._spans[name]:
            if law.sent:
                for time in law.times(law.sent * self._factor, seconds, rng):
                    yield round(begin + time, 6)

    def _others(self, rng: Generator) -> Sequence[Lengths]:
        """The lengths of some client that has any."""
        names, cumulated = self._donors
        return self._lengths[names[np.searchsorted(cumulated, rng.random() * cumulated[-1], side="right")]]

    # -- what the folder holds -----------------------------------------------------------------------------

    @cached_property
    def _spans(self) -> dict[str, list[Span]]:
        """The wanted part of each client's rows; of clients that send nothing in it, nothing."""
        files = (_FILE.fullmatch(path.name) for path in self.path.iterdir())
        numbers = sorted((found[1] for found in files if found), key=int)
        wanted = {
            f"client-{number}": _cut(rates(self.path / f"chunk-{number}-trace.csv"), self.start, self.seconds)
            for number in numbers
        }
        return {name: spans for name, spans in wanted.items() if any(span.law.sent for span in spans)}

    @cached_property
    def _rates(self) -> dict[str, float]:
        """Mean requests/s of each client in the source."""
        return {
            name: fsum(span.law.sent * span.seconds for span in spans) / self.seconds
            for name, spans in self._spans.items()
        }

    @property
    def _factor(self) -> float:
        return 1.0 if self.rate is None else self.rate / fsum(self._rates.values())

    @cached_property
    def _lengths(self) -> dict[str, list[Lengths]]:
        """The distributions of each client in order of time, if it has any."""
        names = {name: name.removeprefix("client-") for name in self._rates}
        return {name: lengths(self.path / f"chunk-{number}-dataset.json") for name, number in names.items()}

    @cached_property
    def _donors(self) -> tuple[list[str], np.ndarray]:
        """The clients that have lengths, and their cumulated rates."""
        names = [name for name in self._rates if self._lengths[name]]
        return names, np.cumsum([self._rates[name] for name in names])

    @model_validator(mode="after")
    def _something_to_draw(self) -> Self:
        if not self._rates:
            raise ValueError(
                f"start: no client of {self.file!r} sends anything in {self.part()}; take other seconds"
            )
        if not self._donors[0]:
            raise ValueError(f"file: no client of {self.file!r} that sends has any distributions of lengths")
        made = sum(self._rates.values()) * self._factor * self.seconds
        if made > MOST_REQUESTS:
            raise ValueError(
                f"rate: it would make about {made:.2g} requests, more than {MOST_REQUESTS:,}; make rate or "
                f"seconds smaller"
            )
        return self


def _cut(rows: Sequence[Rate], start: float, seconds: float) -> list[Span]:
    """The parts of the rows inside [start, start + seconds); the last row lasts as long as the one before."""
    ends = [later.t for _, later in pairwise(rows)] + [2 * rows[-1].t - rows[-2].t]
    inside = [
        (row, max(row.t, start), min(end, start + seconds)) for row, end in zip(rows, ends, strict=True)
    ]
    return [Span(row, begin - start, end - begin) for row, begin, end in inside if begin < end]


def _at(found: Sequence[Lengths], time: float) -> Lengths:
    """The last lengths at or before a time of the source; else the first."""
    return found[max(0, bisect_right(found, time, key=lambda one: one.t) - 1)]
