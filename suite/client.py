"""One event loop that sends requests when they are due and follows their replies; see `suite.replay`."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from io import BytesIO
from math import nan
from typing import Literal, TypeAlias

import aiohttp
import numpy as np

from suite import dialect
from suite.content import Content
from suite.dialect import Replies, Target
from suite.stream import Counts, Ending, Floats, Stream
from suite.trace import Request

Status: TypeAlias = Literal["finished", "rejected", "failed", "cancelled"]

LEAD = 1.0
"""Seconds before it is due that a request's body is made, so that making it delays nothing."""
TICK = 0.01
"""Seconds between two looks at how late the event loop is."""
IDLE = 2.0
"""Seconds an idle connection is kept: uvicorn closes it after 5 s, maybe just as we send."""
BUFFER = 2**20
"""Bytes that may wait unread before reading pauses; aiohttp's 64 KiB stall long streams (vllm#39963)."""
LONGEST = 2**26
"""Bytes that are kept of a reply: no server shall fill our memory."""


@dataclass(frozen=True)
class Job:
    """What a process has to send: requests, parents first; to whom; whose replies are needed."""

    requests: tuple[Request, ...]
    target: Target
    content: Content
    wanted: frozenset[str]
    timeout_s: float


@dataclass(frozen=True)
class Ready:
    """The process can start."""


@dataclass(frozen=True)
class Record:
    """What became of a request. Times are seconds since the start, NaN where it never happened.

    `times` and `tokens` have one row for each chunk that brought tokens. `prompt_tokens` and `cached_tokens`
    are None where the server does not tell; `counted` says whether it told the output tokens.
    """

    id: str
    status: Status
    error: str | None = None
    sent: float = nan
    lag: float = nan
    first_token: float = nan
    finish: float = nan
    output_tokens: int = 0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    counted: bool = False
    times: Floats = field(default_factory=lambda: np.empty(0))
    tokens: Counts = field(default_factory=lambda: np.empty(0, np.int64))


@dataclass(frozen=True)
class Health:
    """How a client process fared: its share of one core, and how late its event loop was, in seconds."""

    cpu_share: float
    loop_lag_p99: float
    loop_lag_max: float


class Client:
    """The event loop's side. `tell` is called with each `Record`; it must not block."""

    def __init__(self, job: Job, tell: Callable[[Record], None]) -> None:
        self._job = job
        self._target = job.target
        self._tell = tell
        self._start = nan
        self._stopped = "the run was stopped"
        self._tasks: dict[str, asyncio.Task[Record]] = {}
        self._replies = Replies()
        self._lags = array("d")
        self._bodies = {
            request.id: self._body(request)
            for request in job.requests
            if request.arrival <= LEAD and not request.after
        }

    async def run(self, start: float) -> Health:
        """Send everything; `start` is trace time zero on the monotonic clock."""
        self._start = start
        began, used = time.monotonic(), time.process_time()
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE)
        async with aiohttp.ClientSession(
            connector=connector,
            headers=dialect.headers(),
            timeout=aiohttp.ClientTimeout(total=None),
            read_bufsize=BUFFER,
            cookie_jar=aiohttp.DummyCookieJar(),
        ) as self._session:
            for request in self._job.requests:
                self._tasks[request.id] = asyncio.create_task(self._serve(request))
            gc.freeze()
            watch = asyncio.create_task(self._watch())
            await asyncio.wait(self._tasks.values())
            watch.cancel()
        for task in self._tasks.values():
            _ = task.cancelled() or task.result()  # a defect of ours shall not pass silently
        share = (time.process_time() - used) / (time.monotonic() - began)
        lags = np.frombuffer(self._lags) if self._lags else np.zeros(1)
        return Health(share, float(np.percentile(lags, 99)), float(lags.max()))

    def stop(self, reason: str) -> None:
        """Give up what is not finished; what has been sent fails for `reason`."""
        self._stopped = reason
        for task in self._tasks.values():
            task.cancel()

    async def _serve(self, request: Request) -> Record:
        record = await self._lived(request)
        self._tell(record)
        return record

    async def _lived(self, request: Request) -> Record:
        """The life of one request."""
        due = request.arrival
        if request.after:
            parents = await self._parents(request)
            if lost := next((p for p in parents if p.status != "finished"), None):
                return Record(
                    request.id, "cancelled", f"{lost.id!r}, which it comes after, was {lost.status}"
                )
            due = max(due, max(parent.finish for parent in parents) + request.think)
        await self._until(due - LEAD)
        body = self._bodies.pop(request.id, None) or self._body(request)
        await self._until(due)
        return await self._sent(request, body, due)

    async def _parents(self, request: Request) -> list[Record]:
        tasks = [self._tasks[parent] for parent in request.after]
        await asyncio.wait(tasks)
        return [task.result() for task in tasks]

    async def _sent(self, request: Request, body: bytes, due: float) -> Record:
        stream = Stream(chat=self._target.route == "chat", keep=request.id in self._job.wanted)
        sent = self._now()
        status, error = await self._outcome(request, body, stream)
        ending = stream.ending()
        if status == "finished" and (error := self._shortfall(request, stream, ending)):
            status = "rejected" if dialect.never_fits(ending.status, error) else "failed"
        if status == "rejected":
            return Record(request.id, status, error, sent=sent, lag=sent - due)
        record = self._record(request.id, status, error, stream, ending)
        return replace(record, sent=sent, lag=sent - due)

    async def _outcome(self, request: Request, body: bytes, stream: Stream) -> tuple[Status, str | None]:
        """Post and follow the reply to its end, good or bad."""
        try:
            async with asyncio.timeout(self._job.timeout_s):
                return await self._post(dialect.client_headers(request, self._target), body, stream)
        except TimeoutError:
            return "failed", f"no end of the reply after {self._job.timeout_s:g} s"
        except asyncio.CancelledError:
            return "failed", self._stopped
        except (aiohttp.ClientError, OSError) as problem:
            return "failed", dialect.shown(_cause(problem, self._target))

    async def _post(
        self, headers: Mapping[str, str], body: bytes, stream: Stream
    ) -> tuple[Status, str | None]:
        posted = self._session.post(
            self._target.endpoint, data=BytesIO(body), headers=headers, allow_redirects=False
        )
        async with posted as response:
            if response.status != 200:
                said = dialect.message(await response.content.read(BUFFER))
                said = said or dialect.shown(response.reason or "")
                refused = dialect.never_fits(response.status, said)
                return "rejected" if refused else "failed", f"HTTP {response.status}: {said}"
            async for chunk in response.content.iter_any():
                stream.feed(chunk, time.monotonic())
                if stream.held > LONGEST:
                    return "failed", f"the reply is longer than {LONGEST >> 20} MiB"
        return "finished", None

    def _shortfall(self, request: Request, stream: Stream, ending: Ending) -> str | None:
        """Why a reply that came to its end is not what was asked for; keeps what later prompts need."""
        if ending.error:
            return dialect.shown(ending.error)
        if not ending.done:
            return "the reply was cut: its stream ended without [DONE]"
        if self._target.dialect != "openai" and ending.output_tokens != request.output_tokens:
            return f"{ending.output_tokens} tokens came of the {request.output_tokens} asked for"
        prompt = request.prompt_tokens if ending.prompt_tokens is None else ending.prompt_tokens
        if (ending.cached_tokens or 0) > prompt:
            return f"the server counts {ending.cached_tokens} cached tokens in a prompt of {prompt}"
        if request.id not in self._job.wanted:
            return None
        if self._target.prompts == "text":
            self._replies.texts[request.id] = stream.text()
            return None
        ids = self._replies.tokens[request.id] = np.array(stream.ids(), np.int32)
        if len(ids) != ending.output_tokens:
            return (
                f"{len(ids)} token ids came with {ending.output_tokens} tokens; later prompts need them all "
                f"(vLLM: `return_token_ids`)"
            )
        return None

    def _record(self, id: str, status: Status, error: str | None, stream: Stream, ending: Ending) -> Record:
        times, tokens = stream.rows(ending)
        times = times - self._start
        finished = status == "finished"
        none = self._now() if finished else nan  # a reply without a token begins and ends with its end
        return Record(
            id, status, error,
            first_token=float(times[0]) if len(times) else none,
            finish=float(times[-1]) if finished and len(times) else none,
            output_tokens=int(tokens.sum()),
            prompt_tokens=ending.prompt_tokens,
            cached_tokens=ending.cached_tokens,
            counted=ending.output_tokens is not None,
            times=times, tokens=tokens,
        )  # fmt: skip

    def _body(self, request: Request) -> bytes:
        wanted = request.id in self._job.wanted
        return dialect.body(request, self._target, self._job.content, self._replies, wanted=wanted)

    def _now(self) -> float:
        return time.monotonic() - self._start

    async def _until(self, due: float) -> None:
        while (left := due - self._now()) > 0:
            await asyncio.sleep(left)

    async def _watch(self) -> None:
        """Note how much later than asked the loop gets round to things."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(TICK)
            self._lags.append(max(time.monotonic() - before - TICK, 0.0))


def _cause(problem: Exception, target: Target) -> str:
    """What went wrong with a connection, in words."""
    match problem:
        case aiohttp.ClientConnectorDNSError():
            return f"{target.root}: the host's name cannot be resolved: {_reason(problem.os_error)}"
        case aiohttp.ClientConnectorError():
            return f"{target.root}: cannot connect: {_reason(problem.os_error)}"
        case aiohttp.ClientPayloadError():
            return "the reply was cut: the connection broke"
        case aiohttp.ServerDisconnectedError():
            return "the server closed the connection without an answer"
        case OSError():
            return f"the connection broke: {_reason(problem)}"
    return f"{type(problem).__name__}: {problem}".removesuffix(": ")


def _reason(error: OSError) -> str:
    """The system's own words: asyncio puts the address into an error's text."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.strerror or error)
