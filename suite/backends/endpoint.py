"""Any server that speaks the OpenAI API and is already running, as a backend.

Its scheduler is its own. What it does inside is not seen: the service log is reconstructed from what the
client saw, and says so.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

import aiohttp
import orjson
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from suite import dialect
from suite.backends.base import Outcome, Progress
from suite.content import Content, replied
from suite.dialect import Target
from suite.errors import BadInput, did_you_mean
from suite.policies import SchedulerSpec
from suite.replay import Replayed, replay
from suite.results import REQUEST_COLUMNS, SERVICE_COLUMNS
from suite.trace import Trace

_FIRST_ANSWER = 10.0
"""Seconds that a server has to name its models."""


class Endpoint(BaseModel):
    """Settings of a server that is already running, and the `Backend` that replays a trace against it.

    The API key, if the server wants one, comes from the environment variable SUITE_API_KEY alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    exclusive: ClassVar[bool] = True

    kind: Literal["endpoint"] = "endpoint"
    url: str
    """Root of the API, with or without /v1."""
    model: str | None = None
    """By default the one model the server has."""
    dialect: Literal["vllm", "openai"] = "openai"
    """`vllm` also asks for exact output lengths and names the client of each request to the server."""
    route: Literal["completions", "chat"] = "completions"
    prompts: Literal["tokens", "text"] = "text"
    """Token ids keep the trace's lengths to the token; text works everywhere, with about a token a word."""
    vocabulary: int = Field(default=32_000, ge=16)
    """Token ids in prompts stay below it. The default fits all common models; a tiny one may have fewer."""
    processes: int = Field(default=1, ge=1)
    """Client processes."""
    timeout_s: float = Field(default=600.0, gt=0, allow_inf_nan=False)
    """A request without an end after so many seconds has failed."""

    @field_validator("url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no URL of a server; write http://HOST:PORT")
        _ = parts.port  # raises ValueError if it is none
        if parts.username or parts.password or "?" in url or "#" in url:
            raise ValueError(f"leave out all but http://HOST:PORT/PATH; a key goes into {dialect.API_KEY}")
        return url

    @model_validator(mode="after")
    def _can_work(self) -> Self:
        if self.route == "chat" and self.prompts == "tokens":
            raise ValueError("a chat takes no token ids; write `prompts: text`")
        return self

    def run(self, trace: Trace, scheduler: SchedulerSpec, logs: Path, progress: Progress) -> Outcome:
        """Replay the trace; what each request gave is also kept in `logs/client.jsonl` as it ends."""
        if scheduler.name != "stock":
            raise BadInput("the endpoint's scheduler is its own; write `schedulers: [stock]`")
        if self.prompts == "tokens" and self.dialect == "openai" and replied(trace.requests):
            raise BadInput(
                "prompts: the trace feeds replies back, and only `dialect: vllm` gives them as token ids; "
                "write `prompts: text`"
            )
        target = Target(self.url, self._served(), self.dialect, self.route, self.prompts)
        replayed = replay(
            trace, Content.of(trace, self.vocabulary), target,
            processes=self.processes, journal=logs / "client.jsonl", progress=progress,
            timeout_s=self.timeout_s,
        )  # fmt: skip
        other = _other_lengths(trace, replayed.requests)
        return outcome(replayed, {"url": self.url, "model": target.model, "replies_of_other_length": other})

    def _served(self) -> str:
        """The name of the model to ask for. Raises `BadInput` if the server cannot be used."""
        try:
            names = asyncio.run(_models(Target(self.url, "", self.dialect, self.route, self.prompts)))
        except (aiohttp.ClientError, OSError) as error:
            said = f"no answer in {_FIRST_ANSWER:g} s" if isinstance(error, TimeoutError) else str(error)
            raise BadInput(f"url: {self.url}: {dialect.shown(said)}; is the server up?") from None
        if self.model is None and len(names) != 1:
            raise BadInput(f"model: missing; the server has: {', '.join(names) or 'none that it names'}")
        if self.model is not None and names and self.model not in names:
            raise BadInput(f"model: the server has no {self.model!r}; {did_you_mean(self.model, names)}")
        return self.model or names[0]


async def _models(target: Target) -> list[str]:
    """The models a server says it has; none if it does not list them."""
    timeout = aiohttp.ClientTimeout(total=_FIRST_ANSWER)
    async with (
        aiohttp.ClientSession(headers=dialect.headers(), timeout=timeout) as session,
        session.get(f"{target.root}/models", allow_redirects=False) as response,
    ):
        if response.status in (401, 403):
            said = dialect.message(await response.read())
            raise BadInput(f"url: {target.root}: HTTP {response.status}: {said}; set {dialect.API_KEY}")
        if response.status != 200:
            return []
        answer = await response.read()
    try:
        listed = orjson.loads(answer)
    except orjson.JSONDecodeError:
        raise BadInput(f"url: {target.root}: gives no JSON at /models; is it an OpenAI API?") from None
    data = listed.get("data") if isinstance(listed, dict) else None
    models = data if isinstance(data, list) else []
    return [str(model["id"]) for model in models if isinstance(model, dict) and "id" in model]


def outcome(replayed: Replayed, engine: dict[str, Any]) -> Outcome:
    """What a replay against a server gave whose inside is not seen; `engine` is what is known of it.

    `service_log` "client" says that times are the client's: a request counts as admitted when it was sent,
    its extend tokens when its first token came. `cached_tokens` says whether the server reported them; they
    count as 0 otherwise, and all of a prompt as extend tokens.
    """
    told = replayed.health["cached_tokens_reported"]
    word = {
        **engine,
        "service_log": "client",
        "cached_tokens": "reported" if told else "not reported, counted as 0",
        "client": replayed.health,
    }
    invalid = (*replayed.invalid, *_losses(replayed.requests))
    return Outcome(_requests(replayed), service_log(replayed), word, replayed.streams, invalid)


def service_log(replayed: Replayed) -> pd.DataFrame:
    """A service log of `suite.results.SERVICE_COLUMNS` made of what the client saw.

    A prompt is charged when its first token came; output tokens when their chunk came.
    """
    requests = replayed.requests
    started = requests[requests["first_token"].notna()]
    prompts = pd.DataFrame(
        {
            "time": started["first_token"],
            "client": started["client"],
            "extend": started["prompt_tokens"] - started["cached_tokens"],
            "cached": started["cached_tokens"],
        }
    )
    client = requests.set_index("id")["client"]
    outputs = pd.DataFrame(
        {
            "time": replayed.streams["time"],
            "client": replayed.streams["id"].map(client),
            "output": replayed.streams["tokens"],
        }
    )
    log = pd.concat([prompts, outputs]).assign(worker=None, recomputed=0)
    counts = ["extend", "cached", "output"]
    log[counts] = log[counts].fillna(0).astype("int64")
    return log.sort_values("time", kind="stable", ignore_index=True)[list(SERVICE_COLUMNS)]


def _requests(replayed: Replayed) -> pd.DataFrame:
    frame = replayed.requests.assign(worker=None, recomputed_tokens=0, preemptions=0)
    frame["admitted"] = frame["arrival"].where(frame["first_token"].notna())
    return frame[list(REQUEST_COLUMNS)]


def _other_lengths(trace: Trace, requests: pd.DataFrame) -> int:
    """How many replies are not as long as the trace asks for."""
    asked = [request.output_tokens for request in trace.requests]
    return int(((requests["status"] == "finished") & (requests["output_tokens"] != asked)).sum())


def _losses(requests: pd.DataFrame) -> Iterator[str]:
    """One reason for all requests that failed, with the most common error."""
    errors = Counter(requests.loc[requests["status"] == "failed", "error"])
    if errors:
        error, times = errors.most_common(1)[0]
        yield f"{errors.total()} of {len(requests)} requests failed, {times} of them: {error}"
