"""Other projects' routers before the replicas, as they are: started, and ended again.

Both are in environments of their own (`suite engines install sglang-router`) and keep their defaults; what is
set is where they listen, on loopback, and how long a reply may take.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from suite import environments
from suite.backends.front.config import WorkerAddress
from suite.backends.servers import RouterProcess, ask, variables
from suite.catalogue import ENGINES
from suite.environments import Environment
from suite.errors import BadInput
from suite.policies import PeerRouter
from suite.processes import Server, check_port, free_port

LOG = "peer.log"
START = 60.0
"""Seconds a router may take to know all replicas."""
GRACE = 2.0
"""Seconds it may take to end."""

_NO_PROXY = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
"""Both obey the variables that name proxies, also for replicas on loopback."""


class Peer(RouterProcess):
    """A running router of another project. Leaving the context ends it."""

    def __init__(self, router: PeerRouter, environment: Environment, server: Server, url: str) -> None:
        self.url = url
        super().__init__(router.name, server)
        self._router = router
        self._environment = environment

    @classmethod
    def start(
        cls,
        router: PeerRouter,
        workers: Sequence[WorkerAddress],
        *,
        logs: Path,
        port: int | None = None,
        timeout_s: float = 3600.0,
    ) -> Self:
        """Start it before `workers` and return when it knows them all; its log is in `logs`.

        A request may take `timeout_s` seconds. Raises `BadInput` if it is not installed, or does not start.
        """
        environment = environments.find(router.program, "cpu")
        if port is not None:
            check_port(port)
        port = port or free_port()
        command = _command(environment, router, workers, port, timeout_s)
        server = Server(command, variables(environment.variables | _NO_PROXY), logs / LOG, grace=GRACE)
        peer = cls(router, environment, server, f"http://127.0.0.1:{port}")
        return peer._begun(lambda: peer._wait_until_it_knows(workers))

    def word(self) -> dict[str, Any]:
        """What the manifest says of it."""
        about = {"name": self._router.label, "version": self._environment.version}
        return {"router": about, "eviction_reports": f"none: {self._router.program} asks for none"}

    def _wait_until_it_knows(self, workers: Sequence[WorkerAddress]) -> None:
        begin = time.monotonic()
        if not self._wait_for(lambda: len(self._known()) == len(workers), START):
            raise BadInput(
                f"{self._router.name} knows {len(self._known())} of {len(workers)} replicas after "
                f"{time.monotonic() - begin:.0f} s (log: {self._server.log})"
            )

    def _known(self) -> list[str]:
        """The replicas that it knows and takes for well."""
        try:
            told = ask(f"{self.url}/workers")["workers"]
        except OSError:
            return []
        return [worker["url"] for worker in told if worker["is_healthy"]]


def _command(
    environment: Environment,
    router: PeerRouter,
    workers: Sequence[WorkerAddress],
    port: int,
    timeout_s: float,
) -> list[str]:
    flags = {
        "host": "127.0.0.1",
        "port": port,
        "policy": router.policy,
        "prometheus-host": "127.0.0.1",
        "prometheus-port": free_port(),
        "worker-startup-check-interval": 1,
        "request-timeout-secs": math.ceil(timeout_s),
    }
    words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    module = f"{ENGINES[router.program].module}.launch_router"
    urls = [worker.url for worker in workers]
    return [str(environment.python), "-m", module, *words, "--worker-urls", *urls]
