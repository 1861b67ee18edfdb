"""Replicas of engines on the machines of a Ray cluster.

A cell whose engine has replicas runs in a placement group: the replay client and the router in its first
bundle, each replica in a bundle of its own with its GPUs. A replica is held by an actor, which starts the
very server that would be started here and ends it when it ends itself. What a server writes is copied to the
client's machine when it is asked for, so that everything else works as with servers of this machine.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from suite.backends.base import KEPT
from suite.backends.engine import EngineBackend
from suite.backends.kinds import backend_of
from suite.backends.launch import ELSEWHERE
from suite.backends.servers import Replica, Replicas, replica_name
from suite.errors import BadInput
from suite.files import unpack
from suite.policies import SchedulerSpec
from suite.ray_workers import MachineLost
from suite.validation import at

_LOST = "its machine, or the process that holds it there, was lost"


def bundles(settings: Mapping[str, Any]) -> list[dict[str, float]]:
    """What a cell with these backend settings needs at once: for the client and the first replica, the second
    replica, ..."""
    backend = backend_of(settings)
    if not isinstance(backend, EngineBackend):
        return [{"CPU": 1}]
    one = {"CPU": 1.0} | ({"GPU": float(backend.tensor_parallel)} if backend.device == "cuda" else {})
    return [{**one, "CPU": 2.0}, *[one] * (backend.replicas - 1)]


@dataclass(frozen=True)
class Home:
    """What an actor needs to start a replica as it would be started by the client.

    `place` is the client's working directory below its `root`. `files` are those that lie there, by path
    below the root; an actor on another machine makes the same root, so that paths mean the same.
    """

    settings: dict[str, Any]
    scheduler: SchedulerSpec
    root: Path
    place: Path
    files: ray.ObjectRef[dict[Path, bytes]]


@contextmanager
def replicas_away(home: Home, group: PlacementGroup) -> Iterator[None]:
    """Within the context, engines' replicas are started in the bundles of the placement group.

    Raises `MachineLost` at the end if one of them was lost, whatever came of it.
    """
    servers: list[_Server] = []

    def start(number: int, folder: Path) -> Replica:
        folder.mkdir(parents=True, exist_ok=True)
        server = _Server(_holder(home.settings, group, number), folder / "server.log")
        servers.append(server)
        return _Away(replica_name(number), server, server.start(home), folder)

    token = ELSEWHERE.set(start)
    try:
        yield
    finally:
        KEPT.close()
        ELSEWHERE.reset(token)
        if any(server.lost for server in servers):
            raise MachineLost(_LOST)


def _holder(settings: Mapping[str, Any], group: PlacementGroup, number: int) -> Any:
    """The actor for replica `number`, in its bundle."""
    gpus = bundles(settings)[number].get("GPU", 0)
    holder: Any = ray.remote(Holder)
    strategy = PlacementGroupSchedulingStrategy(group, number)
    return holder.options(num_cpus=1, num_gpus=gpus, scheduling_strategy=strategy).remote()


# -- on the client's machine -----------------------------------------------------------------------------


@dataclass
class _Server:
    """A server that an actor holds; `log` is the copy of its log. What asks the actor raises `OSError` if
    that was lost."""

    actor: Any
    log: Path
    lost: bool = False

    def start(self, home: Home) -> str:
        """Start it and return its address."""
        url, self._theirs = self._answer(self.actor.start.remote(home))
        return str(url)

    def alive(self) -> str | None:
        """None while it runs, else how it ended."""
        try:
            reason: str | None = self._answer(self.actor.alive.remote())
            if reason:
                self.copy(self.log.name, self.log)
        except OSError as error:
            return str(error)
        return reason and reason.replace(str(self._theirs), str(self.log.parent))

    def copy(self, name: str, path: Path) -> None:
        """Add to the copy of a file what was written since."""
        size = path.stat().st_size if path.exists() else 0
        if more := self._answer(self.actor.read.remote(name, size)):
            with path.open("ab") as file:
                file.write(more)

    def stop(self) -> None:
        """End it and all it has started."""
        with suppress(OSError):
            self._answer(self.actor.stop.remote())
            self.copy(self.log.name, self.log)
            self._answer(self.actor.leave.remote())
        ray.kill(self.actor)

    def _answer(self, coming: Any) -> Any:
        try:
            return ray.get(coming)
        except RayTaskError as error:
            raise error.cause from None
        except RayError:
            self.lost = True
            raise OSError(_LOST) from None


class _Away(Replica):
    """A replica on another machine; its folder here holds copies of what it has written there."""

    def refresh(self) -> None:
        """Copy what it has written since."""
        for path in (self.service_log, self._beside("decisions")):
            self._server.copy(f"{path.stem.partition('-')[0]}-{self.run}.jsonl", path)
        self._server.copy(self._server.log.name, self._server.log)

    def began_another(self) -> bool:
        """Whether the engine has begun a further run, unasked."""
        further = self.folder / f"service-{self.run + 1}.jsonl"
        self._server.copy(further.name, further)
        return further.exists()

    def keep(self, folder: Path) -> Path:
        """Move the copies into a folder; what is written later is added to them there."""
        self.refresh()
        self._beside("decisions").touch()
        return super().keep(folder)

    @property
    def _server(self) -> _Server:
        return cast(_Server, self.server)

    def _beside(self, kind: str) -> Path:
        return self.service_log.with_name(self.service_log.name.replace("service", kind))


# -- on a replica's machine ------------------------------------------------------------------------------


class Holder:
    """Starts one replica where it is, and offers what it writes."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._replicas = Replicas()

    def start(self, home: Home) -> tuple[str, Path]:
        """Its address, and its folder. Raises `BadInput`, leaving nothing, if it cannot work here."""
        try:
            return self._started(home)
        except BaseException:
            self.stop()
            self.leave()
            raise

    def _started(self, home: Home) -> tuple[str, Path]:
        self.settle(home)
        here = str(ray.util.get_node_ip_address())
        self._folder = Path(self._stack.enter_context(TemporaryDirectory(dir=home.root.parent)))
        with at(here):
            backend = cast(EngineBackend, backend_of({**home.settings, "replicas": 1, "gpus": None}))
            launch = replace(backend.launch(home.scheduler), host=here)
            if lacking := launch.shortage():
                raise BadInput(lacking)
            launch.add(self._replicas, self._folder, self._replicas.stage(launch.plugin))
        return self._replicas.all[0].url, self._folder

    def settle(self, home: Home) -> None:
        """Make the client's root, unless this is its machine, and go to its working directory."""
        if not home.root.exists():
            self._stack.callback(_remove, home.root)
            files = ray.get(home.files)
            unpack(files, home.root)
            home.place.mkdir(parents=True, exist_ok=True)
        os.chdir(home.place)

    def alive(self) -> str | None:
        """None while the server runs, else how it ended."""
        return self._replicas.alive()

    def read(self, name: str, start: int) -> bytes:
        """What stands in a file of the folder from a byte on; nothing if it is not there."""
        with suppress(FileNotFoundError), (self._folder / name).open("rb") as file:
            file.seek(start)
            return file.read()
        return b""

    def stop(self) -> None:
        """End the server; its files stay."""
        self._replicas.stop()

    def leave(self) -> None:
        """Remove its files, and the root if it was made here."""
        self._stack.close()


def _remove(root: Path) -> None:
    """Remove a root and, unless another replica has its folder there, the folder it is in."""
    shutil.rmtree(root, ignore_errors=True)
    with suppress(OSError):
        root.parent.rmdir()
