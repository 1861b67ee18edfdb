"""The admin side of the front, on a port of its own: its workers, its state, its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web
from prometheus_client import exposition

from suite.backends.front.config import WorkerAddress
from suite.errors import BadInput
from suite.validation import validated

if TYPE_CHECKING:
    from suite.backends.front.server import FrontServer

_ACCOUNTS = ("accounts", "deficits", "outstanding")
"""What routers keep of their clients and workers, shown where there is such a thing."""


class Admin:
    """GET and POST /workers, DELETE /workers/NAME, GET /state, GET /metrics, GET /health."""

    def __init__(self, front: FrontServer) -> None:
        self._front = front

    def app(self) -> web.Application:
        """To be bound to an address that only the operator can reach."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/workers", self._workers),
                web.post("/workers", self._add),
                web.delete("/workers/{name}", self._remove),
                web.get("/state", self._state),
                web.get("/metrics", self._metrics),
            ]
        )
        return app

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _workers(self, _: web.Request) -> web.Response:
        return _json(
            [
                {**replica.address.model_dump(), "state": replica.state, "in_flight": len(replica.flights)}
                for replica in self._front.cluster.replicas.values()
            ]
        )

    async def _add(self, request: web.Request) -> web.Response:
        """Only for JSON that says so: a page in the operator's browser cannot send that without asking."""
        if request.content_type != "application/json":
            return _json({"error": "send it as Content-Type: application/json"}, 415)
        try:
            body = orjson.loads(await request.read())
            if not isinstance(body, dict):
                raise BadInput(
                    'write an object such as {"name": "replica-2", "url": "http://127.0.0.1:8103"}'
                )
            self._front.add(validated(WorkerAddress, body))
        except (BadInput, orjson.JSONDecodeError) as error:
            return _json({"error": str(error)}, 400)
        return _json({}, 201)

    async def _remove(self, request: web.Request) -> web.Response:
        """Takes effect at once for new requests; the answer does not wait for those that run."""
        try:
            self._front.remove(request.match_info["name"])
        except BadInput as error:
            return _json({"error": str(error)}, 404)
        return _json({}, 202)

    async def _state(self, _: web.Request) -> web.Response:
        cluster = self._front.cluster
        clients = [
            {"client": client, "worker": worker, **asdict(tally)}
            for (client, worker), tally in cluster.tallies.by.items()
        ]
        router = {
            name: plain(vars(cluster.router)[name]) for name in _ACCOUNTS if name in vars(cluster.router)
        }
        return _json({"word": self._front.word(), "clients": clients, "router": router})

    async def _metrics(self, _: web.Request) -> web.Response:
        told = exposition.generate_latest(self._front.cluster.tallies.registry)
        return web.Response(body=told, headers={"Content-Type": exposition.CONTENT_TYPE_LATEST})


def plain(value: Any) -> Any:
    """A router's accounts as JSON can hold them."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {getattr(key, "name", None) or str(key): plain(inner) for key, inner in value.items()}
    slots = getattr(value, "__slots__", ())
    return {name: plain(getattr(value, name)) for name in slots} if slots else str(value)


def _json(data: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(data), status=status, content_type="application/json")
