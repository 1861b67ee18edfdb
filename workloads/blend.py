"""Blends: several workloads at once, each of them one client or a group of clients.

family: blend
parts:
  - {name: support, spec: chat, clients: 1, rate: 1, misbehaviour: null}
  - {name: judge, family: llm_judge, duration: 180, rate: 1, clients: 2, ...}
  - {name: log, spec: recorded.parquet}
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import cached_property
from heapq import merge
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from suite.errors import BadInput
from suite.trace import REPLY, Header, Request, Segment, Trace, checked
from suite.validation import at
from workloads.family import Family
from workloads.parts.part import Name
from workloads.parts.streams import stream
from workloads.spec import load

_specs: ContextVar[tuple[str, ...]] = ContextVar("the specs around the part that is loaded", default=())


@contextmanager
def _around(spec: str | None) -> Iterator[None]:
    """Load a part within. Raises `BadInput` if its spec holds the same spec again."""
    if spec in _specs.get():
        raise BadInput(f"{spec} is a part of itself; take it out")
    token = _specs.set((*_specs.get(), spec) if spec else _specs.get())
    try:
        yield
    finally:
        _specs.reset(token)


class Ingredient(BaseModel):
    """A part of a blend: a workload as `workloads.spec.load` takes it, and what is different about it here.

    It is a `spec` (the name of a ready one, a path, a finished trace) or of a `family`. The other keys are
    its parameters, or replace those of the spec; they may be dotted ("document_tokens.mean").
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    name: Name
    spec: Name | None = None
    family: Name | None = None

    @model_validator(mode="after")
    def _can_be_loaded(self) -> Self:
        if set(self.name) & set("/:"):
            raise ValueError(f"{self.name!r}: the name of a part holds no '/' and no ':'; take another")
        if (self.spec is None) == (self.family is None):
            raise ValueError(f"{self.name!r}: give a `spec` or a `family`, one of the two")
        try:
            with _around(self.spec):
                _ = self.workload
        except BadInput as error:
            raise ValueError(f"{self.name!r}: {error}") from None
        return self

    @cached_property
    def workload(self) -> Family:
        """The workload, on its own. Raises `BadInput`."""
        return load(self.spec or {"family": self.family}, self.model_extra or {})

    def trace(self, seed: int) -> Trace:
        """Its trace within a blend under `seed`; its own seed hangs on that and on its name alone."""
        own = int(stream(seed, "blend", self.name).integers(2**31))
        return _renamed(self.workload.generate(own), self.name)


class Blend(Family):
    """The requests of all `parts`, each as if it were alone, in order of their arrivals.

    The client of a part with one client has the name of the part; of more clients, each is PART/CLIENT. Ids
    of requests, sessions and segments begin with PART/ too, so parts share no prefix (only an engine that is
    sent real text may find some in two of them). A part may be a blend.
    """

    parts: Annotated[tuple[Ingredient, ...], Field(min_length=1, max_length=1000)]

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [part.name for part in self.parts]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"parts: the name {name!r} stands twice; names must be unique")
        return self

    def unshaped(self, seed: int) -> Trace:
        """The traces of all parts in one. Its header holds what those of the parts say."""
        traces = [self._trace(part, seed) for part in self.parts]
        requests = tuple(merge(*(trace.requests for trace in traces), key=lambda request: request.arrival))
        choices = {
            "parts": {part.name: _said(trace.header) for part, trace in zip(self.parts, traces, strict=True)}
        }
        misbehaving = tuple(name for trace in traces for name in trace.header.misbehaving)
        header = Header(self.name, seed, Path(self.family).stem, choices, misbehaving)
        tokens = {id: ids for trace in traces for id, ids in trace.tokens.items()}
        with at(f"workload {self.name!r}"):
            return checked(Trace(header, requests, tokens))

    def requests(self, seed: int) -> Sequence[Request]:
        """The requests of all parts."""
        return self.unshaped(seed).requests

    def _trace(self, part: Ingredient, seed: int) -> Trace:
        with at(f"workload {self.name!r}, part {part.name!r}"):
            return part.trace(seed)


def _said(header: Header) -> dict[str, Any]:
    """What the header of a part says of it, in that of the blend."""
    return {
        "name": header.name,
        "seed": header.seed,
        "generator": header.generator,
        "choices": header.choices,
    }


def _renamed(trace: Trace, part: str) -> Trace:
    """The trace with every name in it made that part's."""
    alone = len(trace.clients) == 1
    clients = {client: part if alone else _name(client, part) for client in trace.clients}
    misbehaving = tuple(clients[client] for client in trace.header.misbehaving)
    return Trace(
        replace(trace.header, misbehaving=misbehaving),
        tuple(_request(request, clients[request.client], part) for request in trace.requests),
        {_segment(id, part): ids for id, ids in trace.tokens.items()},
    )


def _request(request: Request, client: str, part: str) -> Request:
    return replace(
        request,
        id=_name(request.id, part),
        client=client,
        prompt=tuple(Segment(_segment(id, part), tokens) for id, tokens in request.prompt),
        session=None if request.session is None else _name(request.session, part),
        after=tuple(_name(id, part) for id in request.after),
    )


def _segment(id: str, part: str) -> str:
    """The id of a segment in the blend: of a reply, that of the reply to the request renamed."""
    return REPLY + _name(id.removeprefix(REPLY), part) if id.startswith(REPLY) else _name(id, part)


def _name(name: str, part: str) -> str:
    return f"{part}/{name}"
