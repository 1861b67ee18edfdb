"""The HTTP side of the front: takes requests, passes each to where the router says, streams the replies."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import aiohttp
import orjson
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader

from baselines.router import Request
from suite.backends import said
from suite.backends.front import stamp
from suite.backends.front.cluster import Cluster, Flight, Replica
from suite.backends.front.config import Engine
from suite.backends.front.identity import Caller, Refused, Register
from suite.backends.front.prompts import prompt

ROUTED = ("/v1/completions", "/v1/chat/completions", "/generate")
"""Requests that are routed: POST to one of these."""

_LARGEST = 2**26
"""Bytes of a request."""
_SAID = 500
"""Bytes of a worker's error that are passed on in ours."""
_STREAM = "text/event-stream"

_ON = ("Accept", "traceparent", "tracestate")
"""Headers of a request that the worker gets, ..."""
_ON_BELIEVED = (*_ON, "Authorization", "X-Request-Id")
"""... or these, where the front does not itself look who is who, ..."""
_BACK = ("Content-Type", "Cache-Control", "Retry-After", "X-Request-Id")
"""... and those of a reply that the client gets."""


class _Stream(web.StreamResponse):
    """A streamed reply whose head goes out with its first chunk, in one packet."""

    _send_headers_immediately = False


class Broken(Exception):
    """A worker gave no reply, or no whole one. `refused` if nobody listens at its address."""

    def __init__(self, replica: Replica, problem: str, *, refused: bool = False) -> None:
        super().__init__(f"{replica.name} {problem}")
        self.refused = refused


class Asked(NamedTuple):
    """A request on its way through the front, with what a worker gets of it."""

    incoming: web.BaseRequest
    request: Request
    body: bytes
    headers: Mapping[str, str]


class Proxy:
    """Serves the routes of the front.

    An error that it does not know is a bug, of ours or of the router's, and goes to `fatal`.
    """

    def __init__(
        self,
        cluster: Cluster,
        session: aiohttp.ClientSession,
        register: Register,
        engine: Engine,
        block_tokens: int,
        fatal: Callable[[Exception], None],
    ) -> None:
        self._cluster = cluster
        self._session = session
        self._register = register
        self._engine: Engine = engine
        self._block_tokens = block_tokens
        self._fatal = fatal
        self._on = _ON_BELIEVED if register.believed else _ON
        self._numbers = itertools.count()

    def server(self) -> web.Server:
        """The HTTP server, to be bound to an address."""
        return web.Server(self._handle, handler_cancellation=True, request_factory=_sized, access_log=None)

    async def _handle(self, incoming: web.BaseRequest) -> web.StreamResponse:
        try:
            if incoming.method == "POST" and incoming.path in ROUTED:
                return await self._routed(incoming)
            return await self._other(incoming)
        except Refused as error:
            return _failure(error.status, error.message)
        except ConnectionError:
            return web.Response()  # the client has gone: nobody will read it, and nothing needs to be logged
        except Exception as error:
            self._fatal(error)
            return _failure(500, "the front failed; see its log")

    async def _other(self, incoming: web.BaseRequest) -> web.StreamResponse:
        """The front's own health, and what any worker can tell."""
        up = [replica for replica in self._cluster.replicas.values() if replica.up]
        match incoming.method, incoming.path:
            case "GET", "/health":
                return web.Response(status=200 if up else 503)
            case "GET", "/v1/models" if up:
                self._register.caller(incoming.headers)
                return await self._models(incoming, up[0])
            case "GET", "/v1/models":
                return _failure(503, "no worker is up")
        return _failure(404, f"no such route; there are POST {', '.join(ROUTED)}, GET /v1/models, /health")

    async def _models(self, incoming: web.BaseRequest, replica: Replica) -> web.StreamResponse:
        try:
            url = f"{replica.address.url}/v1/models"
            async with self._session.get(url, headers=self._kept(incoming)) as answer:
                return _whole(answer, await answer.read())
        except aiohttp.ClientError as error:
            return _failure(502, f"{replica.name} {_reason(error)}")

    # -- requests that are routed ----------------------------------------------------------------------------

    async def _routed(self, incoming: web.BaseRequest) -> web.StreamResponse:
        """Try one replica after the other, each once, until one begins to reply."""
        asked = self._asked(incoming, await _body(incoming))
        tried: list[Replica] = []
        reply: web.StreamResponse | None = None
        while flight := self._cluster.send(asked.request, tried):
            tried.append(flight.replica)
            reply = await self._flown(asked, flight)
            if flight.begun or reply.status < 500:
                return reply
        return reply or _failure(503, "no worker is up")

    def _asked(self, incoming: web.BaseRequest, raw: bytes) -> Asked:
        """Read a request. Raises `Refused` if it cannot be passed on."""
        caller = self._register.caller(incoming.headers)
        body = stamp.parsed(raw)
        try:
            letter = stamp.stamped(self._engine, incoming.path, raw, body, caller)
            request = self._request(incoming.path, body, caller)
        except (orjson.JSONEncodeError, RecursionError):
            raise Refused(400, "the body is nested too deeply") from None
        return Asked(incoming, request, letter.body, {**self._kept(incoming), **letter.headers})

    def _request(self, path: str, body: stamp.Body, caller: Caller) -> Request:
        """The request as a router sees it."""
        about = stamp.claims(self._engine, path, body) if self._register.believed else {}
        found = prompt(path, body, self._block_tokens)
        return Request(
            said.name(about.get("request_id"), f"front-{next(self._numbers)}"),
            caller.client,
            time.monotonic(),
            found.tokens,
            found.blocks,
            self._block_tokens,
            said.weight(about.get("weight")) if caller.weight is None else caller.weight,
        )

    def _kept(self, incoming: web.BaseRequest) -> dict[str, str]:
        own = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        return own | _chosen(incoming.headers, self._on)

    # -- a request at a replica ------------------------------------------------------------------------------

    async def _flown(self, asked: Asked, flight: Flight) -> web.StreamResponse:
        """Pass the request to the replica it was routed to, and the reply back."""
        try:
            with self._watched(flight):
                answer, data = await self._begun(asked, flight.replica)
        except Broken as error:
            self._gave_up(flight, error)
            return _failure(502, str(error))
        async with answer:
            if answer.status >= 500:
                self._cluster.end(flight, "returned")
                return _failure(
                    answer.status, f"{flight.replica.name}: {data[:_SAID].decode(errors='replace')}"
                )
            if answer.status >= 400:
                self._cluster.end(flight, "returned")  # refused, not started
                return _whole(answer, data)
            self._cluster.begin(flight)
            if _streams(answer):
                return await self._streamed(asked.incoming, flight, answer, data)
            flight.tokens.feed(data)
            self._cluster.end(flight, "stop")
            return _whole(answer, data)

    async def _begun(self, asked: Asked, replica: Replica) -> tuple[aiohttp.ClientResponse, bytes]:
        """The worker's answer with its first bytes, or all of them where it does not stream."""
        url = f"{replica.address.url}{asked.incoming.path}"
        try:
            answer = await self._session.post(
                url, data=asked.body, headers=asked.headers, allow_redirects=False
            )
        except (aiohttp.ClientError, OSError) as error:
            refused = isinstance(getattr(error, "os_error", error), ConnectionRefusedError)
            raise Broken(replica, _reason(error), refused=refused) from None
        try:
            if _streams(answer):
                return answer, await _next(answer, replica)
            return answer, b"".join([chunk async for chunk in _chunks(answer, replica)])
        except BaseException:
            answer.close()
            raise

    async def _streamed(
        self, incoming: web.BaseRequest, flight: Flight, answer: aiohttp.ClientResponse, chunk: bytes
    ) -> web.StreamResponse:
        """Pass the reply on as it comes: no faster than the client takes it, and no further than it stays."""
        response = _Stream(status=answer.status, headers=_back(answer))
        flight.tokens.feed(chunk)
        try:
            with self._watched(flight):
                await response.prepare(incoming)
                while not answer.content.at_eof():
                    await response.write(chunk)
                    chunk = await _next(answer, flight.replica)
                    flight.tokens.feed(chunk)
            self._cluster.end(flight, "stop")
        except Broken as error:
            self._gave_up(flight, error)
            chunk = b"\n\ndata: " + _said(502, str(error)) + b"\n\n"
            response.force_close()
        await response.write_eof(chunk)
        return response

    @contextmanager
    def _watched(self, flight: Flight) -> Iterator[None]:
        """Tell the two cancellations apart: the client has gone, or the replica was lost (`Broken`)."""
        try:
            yield
        except asyncio.CancelledError:
            if flight.over and not flight.task.uncancel():
                raise Broken(flight.replica, "was lost") from None
            self._cluster.end(flight, "abort")
            raise
        except ConnectionError:  # the client has gone, and writing to it showed that
            self._cluster.end(flight, "abort")
            raise

    def _gave_up(self, flight: Flight, error: Broken) -> None:
        """The replica failed this request; whether it is dead altogether is found out at once."""
        self._cluster.end(flight, "abort" if flight.begun else "returned")
        if error.refused:
            self._cluster.lose(flight.replica)
        flight.replica.doubt.set()


def _streams(answer: aiohttp.ClientResponse) -> bool:
    return answer.status == 200 and answer.content_type == _STREAM


async def _next(answer: aiohttp.ClientResponse, replica: Replica) -> bytes:
    """What has come of a reply; nothing at its end."""
    try:
        chunk = await answer.content.readany()
    except (aiohttp.ClientError, OSError) as error:
        raise Broken(replica, _reason(error)) from None
    replica.heard = time.monotonic()
    return chunk


async def _chunks(answer: aiohttp.ClientResponse, replica: Replica) -> AsyncIterator[bytes]:
    while chunk := await _next(answer, replica):
        yield chunk


async def _body(incoming: web.BaseRequest) -> bytes:
    """The body of a request. Raises `Refused` if it is too large, or no HTTP."""
    if "Expect" in incoming.headers and incoming.transport is not None:
        incoming.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    try:
        return await incoming.read()
    except web.HTTPRequestEntityTooLarge:
        raise Refused(413, f"the body is larger than {_LARGEST >> 20} MiB") from None
    except (HttpProcessingError, web.RequestPayloadError) as error:
        raise Refused(400, f"the body cannot be read: {error}") from None


def _sized(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: web.RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> web.BaseRequest:
    """A request as aiohttp makes it, but for how large its body may be."""
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=_LARGEST)


def _back(answer: aiohttp.ClientResponse) -> dict[str, str]:
    return _chosen(answer.headers, _BACK)


def _chosen(headers: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """Those of the headers, but for what cannot be written again."""
    found = ((name, headers.get(name)) for name in names)
    return {name: value for name, value in found if value is not None and value.isprintable()}


def _whole(answer: aiohttp.ClientResponse, data: bytes) -> web.Response:
    return web.Response(status=answer.status, body=data, headers=_back(answer))


def _failure(status: int, message: str) -> web.Response:
    return web.Response(status=status, body=_said(status, message), content_type="application/json")


def _said(status: int, message: str) -> bytes:
    """An error as the OpenAI API has it."""
    return orjson.dumps({"error": {"message": message, "type": "front", "code": status}})


def _reason(error: Exception) -> str:
    """What is wrong with a connection, in the system's words, without its address."""
    os_error = getattr(error, "os_error", error)
    if isinstance(os_error, OSError) and os_error.errno and os_error.errno > 0:
        return f"cannot be reached: {os.strerror(os_error.errno)}"
    if isinstance(error, TimeoutError):
        return "cannot be reached: timed out"
    return "closed the connection before its reply was whole"
