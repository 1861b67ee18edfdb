"""Who sends a request: by a header that is believed, or by an API key."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field

from suite.backends.front.config import Identity
from suite.backends.said import ANONYMOUS, LONGEST_NAME, WEIGHTS
from suite.errors import BadInput
from suite.validation import at, read_yaml, validated


class Refused(Exception):
    """A request that the front answers itself, with an HTTP status and a sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Caller(NamedTuple):
    """Who sends a request. `weight` is None where the request may say that itself."""

    client: str
    weight: float | None = None


class _Entry(BaseModel):
    """A client in a table of keys."""

    model_config = ConfigDict(extra="forbid")

    client: str = Field(min_length=1, max_length=LONGEST_NAME)
    weight: float = Field(default=1.0, ge=WEIGHTS[0], le=WEIGHTS[1])


class Register(Protocol):
    """Knows who is who."""

    @property
    def believed(self) -> bool:
        """Whether a request may say more of itself than who sends it: its id, weight and priority."""

    def caller(self, headers: Mapping[str, str]) -> Caller:
        """Who sends a request with these headers. Raises `Refused` if that cannot be told."""


def register(identity: Identity) -> Register:
    """As the configuration has it. Raises `BadInput` naming the file of keys and what is wrong with it."""
    return _ByHeader(identity.header) if identity.keys is None else _ByKey(identity.keys)


@dataclass(frozen=True)
class _ByHeader:
    header: str
    believed: bool = True

    def caller(self, headers: Mapping[str, str]) -> Caller:
        found = [value for name, value in headers.items() if name.lower() == self.header.lower()]
        if len(found) > 1:
            raise Refused(400, f"{self.header}: stands twice; send it once")
        name = found[0] if found and found[0] else ANONYMOUS
        if not (name.isprintable() and len(name) <= LONGEST_NAME):
            raise Refused(
                400, f"{self.header}: a client's name is printable and has {LONGEST_NAME} characters at most"
            )
        return Caller(name)


class _ByKey:
    """Keeps digests of the keys, not the keys."""

    believed = False

    def __init__(self, table: Path) -> None:
        entries = enumerate(read_yaml(table).items(), 1)
        self._callers = dict(_entry(f"{table}: entry {number}", *entry) for number, entry in entries)

    def caller(self, headers: Mapping[str, str]) -> Caller:
        scheme, _, key = headers.get("Authorization", "").partition(" ")
        found = self._callers.get(_digest(key.strip())) if scheme.lower() == "bearer" else None
        if found is None:
            raise Refused(401, "no API key that is known here; send the header Authorization: Bearer KEY")
        return found


def _entry(place: str, key: Any, said: Any) -> tuple[bytes, Caller]:
    """The digest of a key and its client: a name alone, or {client, weight}. No error shows the key."""
    with at(place):
        if not isinstance(key, str):
            raise BadInput("the key is no text; put it between quotes")
        if not isinstance(said, str | Mapping):
            raise BadInput("no client; write KEY: CLIENT, or KEY: {client: CLIENT, weight: NUMBER}")
        found = validated(_Entry, {"client": said} if isinstance(said, str) else said)
    return _digest(key), Caller(found.client, found.weight)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
