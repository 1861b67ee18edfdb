"""A trace as arrays, read request by request: some hundred bytes each, whatever the trace is kept in."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from suite.trace import REPLY, Request

NONE = -1
"""The number of a session for a request that belongs to none."""


@dataclass(frozen=True, eq=False)
class Columns:
    """The requests of a trace in file order; clients and sessions are numbers in order of appearance.

    `path_lengths[i]` segments of `segments` and `tokens` belong to request i: those of its prompt and, last,
    its reply. A segment's id is known by its hash alone, which is another in every process: of ten million
    ids two are taken for one with a chance of less than one in a hundred thousand.
    """

    names: list[str]
    """Of the clients."""
    weights: NDArray[np.float64]
    """Of the clients."""
    client: NDArray[np.int32]
    session: NDArray[np.int32]
    arrival: NDArray[np.float64]
    think: NDArray[np.float64]
    """Seconds; NaN where the request waits for no other."""
    generation: NDArray[np.int32]
    """How many requests the longest chain of `after` has that ends here, within the session."""
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    path_lengths: NDArray[np.int32]
    segments: NDArray[np.int64]
    tokens: NDArray[np.int32]


class _Numbers(dict[str, int]):
    """Numbers for names, from 0 in order of appearance."""

    def __missing__(self, name: str) -> int:
        self[name] = number = len(self)
        return number


def columns(requests: Iterable[Request]) -> Columns:
    """Read the requests once. They agree with one another as `suite.trace.checked` has it."""
    collector = _Collector()
    for request in requests:
        collector.add(request)
    return collector.columns()


class _Collector:
    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._clients, self._sessions = _Numbers(), _Numbers()
        self._weights: dict[int, float] = {}
        self._client, self._session, self._generation = array("i"), array("i"), array("i")
        self._arrival, self._think = array("d"), array("d")
        self._input, self._output = array("q"), array("q")
        self._path_lengths, self._path, self._tokens = array("i"), array("q"), array("i")

    def add(self, request: Request) -> None:
        session = NONE if request.session is None else self._sessions[request.session]
        client = self._clients[request.client]
        self._weights[client] = request.weight
        self._client.append(client)
        self._generation.append(self._generation_of(request, session))
        self._session.append(session)
        self._arrival.append(request.arrival)
        self._think.append(request.think if request.after else np.nan)
        self._input.append(request.prompt_tokens)
        self._output.append(request.output_tokens)
        self._rows[request.id] = len(self._rows)
        self._add_path(request)

    def _generation_of(self, request: Request, session: int) -> int:
        parents = (self._rows[id] for id in request.after)
        return 1 + max((self._generation[row] for row in parents if self._session[row] == session), default=0)

    def _add_path(self, request: Request) -> None:
        for id, tokens in request.prompt:
            self._path.append(hash(id))
            self._tokens.append(tokens)
        self._path.append(hash(f"{REPLY}{request.id}"))
        self._tokens.append(request.output_tokens)
        self._path_lengths.append(len(request.prompt) + 1)

    def columns(self) -> Columns:
        return Columns(
            list(self._clients),
            np.array(list(self._weights.values())),
            np.asarray(self._client),
            np.asarray(self._session),
            np.asarray(self._arrival),
            np.asarray(self._think),
            np.asarray(self._generation),
            np.asarray(self._input),
            np.asarray(self._output),
            np.asarray(self._path_lengths),
            np.asarray(self._path),
            np.asarray(self._tokens),
        )
