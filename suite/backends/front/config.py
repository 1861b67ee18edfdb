"""What a front is told when it is started: one JSON file, checked before anything is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self, TypeAlias
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from yarl import URL

SERVING = "serving on"
"""What a front prints when it is up, followed by its port and its admin port."""

Engine: TypeAlias = Literal["vllm", "sglang", "openai"]


class Settings(BaseModel):
    """Base of all of them: a key that is not known is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RouterChoice(Settings):
    """A router: its class, "module:Class" or "path/to/file.py:Class", and the parameters it is built with."""

    target: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class WorkerAddress(Settings):
    """A replica and where it is.

    `url` is its root, without /v1; `kv_tokens` the size of its KV pool, if known; `events` the ZeroMQ address
    at which it publishes what enters and leaves its prefix cache, if it does.
    """

    name: str = Field(min_length=1, max_length=100)
    url: str
    kv_tokens: int | None = Field(default=None, ge=1)
    events: str | None = None

    @field_validator("url")
    @classmethod
    def _is_root(cls, url: str) -> str:
        bare = url.rstrip("/").removesuffix("/v1")
        if not _is_http(bare):
            raise ValueError(f"{url!r} is no HTTP address; write one such as http://127.0.0.1:8101")
        return bare

    @field_validator("events")
    @classmethod
    def _is_zeromq(cls, events: str | None) -> str | None:
        if events is not None and not _is_zeromq(events):
            raise ValueError(f"{events!r} is no ZeroMQ address; write tcp://HOST:PORT or ipc://PATH")
        return events


class Identity(Settings):
    """How a client says who it is.

    By the value of `header`, which is believed: so nobody may reach the front but a gateway of yours, or a
    harness. Or, where `keys` names a YAML table of API keys, by the key in `Authorization: Bearer KEY` alone.
    """

    header: str = "X-Client-Id"
    keys: Path | None = None


class Timeouts(Settings):
    """When a worker is given up.

    It is asked for /health every `health_s` seconds, has `answer_s` to answer, and is lost after `failures`
    answers in a row that are no success, or when nobody listens. It is lost as well when nothing at all has
    come from it for `stall_s` seconds, no answer and no part of a reply. A connection must be made within
    `connect_s`.
    """

    health_s: float = Field(default=1.0, gt=0)
    answer_s: float = Field(default=5.0, gt=0)
    failures: int = Field(default=3, ge=1)
    stall_s: float = Field(default=60.0, gt=0)
    connect_s: float = Field(default=5.0, gt=0)


class Config(Settings):
    """A front.

    Blocks are of `block_tokens` tokens; give what the engine's prefix cache has, so that its eviction reports
    can be read. A port of 0 is a free one. `log` is where each dispatch and its end is written, if anywhere.
    """

    router: RouterChoice
    engine: Engine
    block_tokens: int = Field(default=16, ge=1)
    workers: list[WorkerAddress] = Field(default_factory=list)
    port: int = Field(default=0, ge=0, le=65535)
    admin_port: int = Field(default=0, ge=0, le=65535)
    identity: Identity = Identity()
    log: Path | None = None
    timeouts: Timeouts = Timeouts()

    @model_validator(mode="after")
    def _tells_workers_apart(self) -> Self:
        names = [worker.name for worker in self.workers]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"workers: the name {twice!r} stands twice; give each one of its own")
        return self


def _is_zeromq(text: str) -> bool:
    try:
        url = urlsplit(text)
        return bool(url.scheme == "tcp" and url.hostname and url.port) or bool(
            url.scheme == "ipc" and url.path
        )
    except ValueError:
        return False


def _is_http(text: str) -> bool:
    try:
        url = URL(text)
        return url.scheme in ("http", "https") and bool(url.host) and url.path in ("", "/")
    except ValueError:
        return False
