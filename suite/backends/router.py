"""The HTTP front before replicas, as a process: started, asked, and ended again."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import orjson

from suite.backends.front.config import SERVING, Config, Engine, Identity, Timeouts, WorkerAddress
from suite.backends.front.identity import register
from suite.backends.servers import RouterProcess, ask, variables, wanted
from suite.errors import BadInput
from suite.files import writing
from suite.policies import RouterSpec
from suite.processes import Server, check_port
from suite.validation import validated

CONFIG, LOG, ROUTES = "front.json", "front.log", "routes.jsonl"
"""What a front leaves among the logs: what it was told, what it said, whom it sent where."""

_UP = re.compile(rf"^{SERVING} (\d+) (\d+)$", re.MULTILINE)

START = 30.0
"""Seconds it may take to be up."""
GRACE = 3.0
"""Seconds it may take to end."""


class Front(RouterProcess):
    """A running front. Leaving the context ends it.

    `url` is where requests go, `admin_url` where workers are added and removed and its state and metrics are.
    """

    url: str
    admin_url: str

    def __init__(self, router: RouterSpec, server: Server) -> None:
        super().__init__("the front", server)
        self._router = router

    @classmethod
    def start(
        cls,
        router: RouterSpec,
        workers: Sequence[WorkerAddress],
        *,
        engine: Engine,
        block_tokens: int,
        logs: Path,
        port: int | None = None,
        admin_port: int | None = None,
        identity: Identity = Identity(),  # noqa: B008  # frozen
        timeouts: Timeouts = Timeouts(),  # noqa: B008
    ) -> Self:
        """Start it before `workers`, with its logs in `logs`; those that are up have joined when it returns.

        Blocks are of `block_tokens` tokens, best as in the engine's prefix cache. By default the ports are
        free ones and a client is whom the header X-Client-Id names. Raises `BadInput` if it does not start.
        """
        router.build()
        register(identity)  # both once before: so that their errors are told without a process in between
        for chosen in (port, admin_port):
            if chosen is not None:
                check_port(chosen)
        settings = {
            "router": wanted(router),
            "engine": engine,
            "block_tokens": block_tokens,
            "workers": list(workers),
            "port": port or 0,
            "admin_port": admin_port or 0,
            "identity": identity,
            "log": logs.absolute() / ROUTES,
            "timeouts": timeouts,
        }
        config = validated(Config, settings)
        file = logs / CONFIG
        with writing(file):
            logs.mkdir(parents=True, exist_ok=True)
            file.write_bytes(orjson.dumps(config.model_dump(mode="json"), option=orjson.OPT_INDENT_2))
        command = [sys.executable, "-m", "suite.backends.front", str(file.absolute())]
        front = cls(router, Server(command, variables({}), logs / LOG, grace=GRACE))
        return front._begun(front._wait_until_up)

    def state(self) -> dict[str, Any]:
        """What it tells of itself: `word`, `clients` (their counts at each worker), `router` (its accounts).

        Raises `OSError` if it does not answer.
        """
        found: dict[str, Any] = ask(f"{self.admin_url}/state")
        return found

    def word(self) -> dict[str, Any]:
        """What the manifest says of it; no more than its name if it does not answer."""
        try:
            found: dict[str, Any] = self.state()["word"]
        except OSError:
            found = {}
        return {"router": {"name": self._router.label}, **found}

    def _wait_until_up(self) -> None:
        self._wait_for(lambda: self._ports() is not None, START)
        ports = self._ports()
        if ports is None:
            raise BadInput(f"the front is not up after {START:g} s (log: {self._server.log})")
        self.url, self.admin_url = (f"http://127.0.0.1:{port}" for port in ports)

    def _ports(self) -> tuple[str, str] | None:
        """Where it serves, by the word in its log; None as long as it does not."""
        found = _UP.search(self._server.log.read_text(errors="replace"))
        return (found[1], found[2]) if found else None
