"""Misbehaviour: which clients do something wrong, what it is, and what it makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag

from suite.errors import did_you_mean
from suite.trace import Segment
from workloads.parts.arrivals import SHORTEST, ClosedLoop, Phase, Phases, PhaseSeconds
from workloads.parts.clients import Client
from workloads.parts.part import ByKind, Count, Name, Part

_Factor = Annotated[float, Field(ge=1, le=1e6, strict=True)]


class Misbehaving(Part):
    """The client that does something wrong: by name, or by place in the list from 0."""

    client: Annotated[int, Field(ge=0, strict=True)] | Name


class Excess(Misbehaving):
    """Too much of something (the DLPM paper's Table 3).

    `more_requests`: it sends `factor` times the requests it would. `bigger_program`: it begins no more
    sessions, but each is `factor` times as large in what makes it large (turns of a chat, branches of a tree,
    dimensions of a judgement, steps of an agent). `longer_prefix`: its system prompts, documents, heads,
    examples, questions of trees and articles are `factor` times as long.
    """

    kind: Literal["more_requests", "bigger_program", "longer_prefix"]
    factor: _Factor


class RecoveringFlood(Misbehaving):
    """Until `until` seconds `factor` times the requests it would send, then as many as if it behaved.

    Its arrival process begins anew at `until`. The course of client 2 in the DLPM paper's Fig. 8.
    """

    kind: Literal["recovering_flood"] = "recovering_flood"
    factor: _Factor
    until: PhaseSeconds


class AddedPrefix(Misbehaving):
    """The same `tokens` tokens before each of its prompts (Table 3, LLM judge), so that each has a match."""

    kind: Literal["added_prefix"] = "added_prefix"
    tokens: Count


Wrong: TypeAlias = Excess | RecoveringFlood | AddedPrefix
"""What one client does wrong."""
_Wrong = Annotated[Wrong, *ByKind]
_Wrongs = Annotated[tuple[_Wrong, ...], Field(min_length=1, max_length=100_000)]

Misbehaviour = Annotated[
    Annotated[_Wrong, Tag("one")] | Annotated[_Wrongs, Tag("several")],
    Discriminator(lambda data: "several" if isinstance(data, list | tuple) else "one"),
]
"""What one client does wrong, told apart by `kind`; or a list, for several clients."""


def wrongs(misbehaviour: Wrong | Sequence[Wrong] | None) -> Sequence[Wrong]:
    """What is done wrong, one after the other."""
    if misbehaviour is None:
        return ()
    return [misbehaviour] if isinstance(misbehaviour, Wrong) else misbehaviour


def misbehaving(clients: Sequence[Client], does: Sequence[Wrong], duration: float) -> tuple[Client, ...]:
    """The clients of a workload of `duration` seconds, some of them worse than they were.

    Raises `ValueError` if there is no such client, or it cannot do that.
    """
    made = list(clients)
    for how in does:
        place = _culprit(made, how)
        made[place] = replace(_worse(made[place], how, duration), misbehaves=True)
    return tuple(made)


def _worse(bad: Client, how: Wrong, duration: float) -> Client:
    match how:
        case RecoveringFlood():
            return _flooding(bad, how, duration)
        case AddedPrefix(tokens=tokens):
            return replace(bad, added=(Segment(f"added:{bad.name}", tokens),))
        case Excess(kind="more_requests", factor=factor):
            return replace(bad, rate=bad.rate * factor, share=bad.share * factor)
        case Excess(kind="bigger_program", factor=factor):
            return replace(bad, program_factor=factor)
        case Excess(factor=factor):
            return replace(bad, prefix_factor=factor)


def _flooding(bad: Client, how: RecoveringFlood, duration: float) -> Client:
    usual = duration - how.until
    if usual < SHORTEST:
        raise ValueError(
            f"misbehaviour.until: {how.until:g} s is not before the end at {duration:g} s; the flood would "
            f"never recover: take more_requests"
        )
    if isinstance(bad.arrivals, ClosedLoop | Phases):
        raise ValueError(
            f"misbehaviour: recovering_flood does not go with arrivals of kind {bad.arrivals.kind}; write "
            f"the flood as phases of this client's own `arrivals`"
        )
    flood = Phase(seconds=how.until, rate=how.factor, arrivals=bad.arrivals)
    after = Phase(seconds=usual, arrivals=bad.arrivals)
    times = (how.factor * how.until + usual) / duration
    return replace(
        bad, rate=bad.rate * times, share=bad.share * times, arrivals=Phases(phases=(flood, after))
    )


def _culprit(clients: Sequence[Client], how: Misbehaving) -> int:
    """The place of the client that `how` names."""
    names = [client.name for client in clients]
    if isinstance(how.client, str) and how.client not in names:
        raise ValueError(f"misbehaviour.client: no client {how.client!r}; {did_you_mean(how.client, names)}")
    place = names.index(how.client) if isinstance(how.client, str) else how.client
    if place >= len(names):
        raise ValueError(f"misbehaviour.client: {place} is not below the {len(names)} clients; from 0")
    if clients[place].misbehaves:
        raise ValueError(f"misbehaviour: {names[place]!r} stands twice; a client does one thing wrong")
    return place
