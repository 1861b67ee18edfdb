"""A Ray cluster to work on: one that is running, or one of our own on this machine that ends with us."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING, Any

from suite import workers
from suite.errors import BadInput

if TYPE_CHECKING:
    from suite.runner import Job

LOCAL = "local"
"""The address that starts a cluster on this machine."""
PATIENCE = 5.0
"""Seconds in which a cluster must answer; Ray itself would wait for two minutes, then end the process."""

_STORE = 256 * 2**20
"""Bytes of the local cluster's object store; what is more goes to the disk."""
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_IGNORE_UNHANDLED_ERRORS": "1"}
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Makes Ray know this machine as 127.0.0.1 and listen nowhere else, as it does on a laptop. Read when Ray is
imported."""


def run(
    task: workers.Task, jobs: Sequence[Job], address: str, cpus: int
) -> Generator[workers.Event, None, None]:
    """Like `workers.run(task, jobs, cpus)`, on a cluster; see `connected` and `suite.ray_cells`."""
    if not jobs:
        return
    with connected(address, cpus):
        from suite import ray_cells  # here, as Ray is optional, and reads our variables when it is imported

        yield from ray_cells.run(task, jobs)


@contextmanager
def connected(address: str, cpus: int) -> Iterator[None]:
    """Be a driver of the cluster at "HOST:PORT" (or "auto", as Ray finds it) as long as the context lasts.

    "local" starts one with so many CPUs, which listens on loopback only and ends with the context. Raises
    `BadInput` if Ray is not installed, or the cluster cannot be reached or is of another release.
    """
    _check_address(address)
    own = address == LOCAL
    os.environ.update(_QUIET | _LOOPBACK if own else _QUIET)
    ray = _ray()
    terminate = signal.getsignal(signal.SIGTERM)  # Ray puts its own in the place
    with TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        options = _own(cpus, folder) if own else {}
        try:
            _connect(ray, address, options)
            signal.signal(signal.SIGTERM, terminate)
            yield
        finally:
            ray.shutdown()


def _own(cpus: int, folder: str) -> dict[str, Any]:
    return {
        "num_cpus": cpus,
        "include_dashboard": False,
        "object_store_memory": _STORE,
        "_temp_dir": folder,
    }


def _connect(ray: ModuleType, address: str, options: dict[str, Any]) -> None:
    ray._private.worker._worker_logs_enabled = False  # else raylets' troubles are printed among our results
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error", **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise BadInput(f"--ray {address}: {' '.join(str(error).split())}") from None


def _check_address(address: str) -> None:
    if address in (LOCAL, "auto"):
        return
    host, colon, port = address.rpartition(":")
    if "/" in address or not (colon and host and port.isdigit()):
        raise BadInput(f"--ray {address}: write HOST:PORT as `ray start` prints it, or local")
    try:
        socket.create_connection((host, int(port)), PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise BadInput(
            f"--ray {address}: nobody answers there: {error}; start a cluster with `ray start --head`, or "
            f"write local"
        ) from None


def _ray() -> ModuleType:
    try:
        import ray
    except ImportError:
        raise BadInput("--ray: Ray is not installed; where the suite is: pip install '.[ray]'") from None
    return ray
