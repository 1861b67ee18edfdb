"""What all engines that run as servers share: starting them, asking them, keeping them between runs."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, Self
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import psutil

import baselines
import suite
from suite import plugins
from suite.backends.base import KEPT
from suite.dialect import API_KEY
from suite.errors import BadInput
from suite.processes import Server, Stoppable

ENGINE_BYTES = 1_500_000_000
"""Memory an engine takes besides weights and KV pool: the process with its libraries, or the GPU's context
and activations. Measured 1.4 GB for vLLM 0.32 with the `tiny` model on the CPU."""

_LOOK = 0.1
"""Seconds between two looks at something that is waited for."""
_FOREIGN = ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", API_KEY)
"""Variables that an engine's process does not get: they are about the suite's environment, or secret."""

_OPENER = build_opener(ProxyHandler({}))  # loopback is never asked by way of a proxy


class Running(Protocol):
    """A server that runs, on this machine or another."""

    log: Path

    def alive(self) -> str | None:
        """None while it runs, else how it ended."""
        ...

    def stop(self) -> None:
        """End it and all it has started."""
        ...


@dataclass
class Replica:
    """One server. It writes its logs into `folder`, under a new number with each run.

    `events` is the ZeroMQ address at which it tells what enters and leaves its prefix cache, if it does.
    """

    name: str
    server: Running
    url: str
    folder: Path
    events: str | None = None
    run: int = 0

    def __post_init__(self) -> None:
        self.service_log = self.folder / f"service-{self.run}.jsonl"
        """Where the service log of the run in force is."""

    def refresh(self) -> None:
        """Bring its logs here up to date: nothing to do where it writes them itself."""

    def begin_run(self) -> None:
        """The engine has begun a run, and a new log."""
        self.run += 1
        self.service_log = self.folder / f"service-{self.run}.jsonl"

    def began_another(self) -> bool:
        """Whether the engine has begun a further run, unasked."""
        return (self.folder / f"service-{self.run + 1}.jsonl").exists()

    def keep(self, folder: Path) -> Path:
        """Move the logs of the run in force into a folder and return where the service log is then.

        The engine goes on writing into them.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for kind in ("decisions", "service"):
            (self.folder / f"{kind}-{self.run}.jsonl").replace(folder / f"{kind}.jsonl")
        self.service_log = folder / "service.jsonl"
        return self.service_log


def replica_name(number: int) -> str:
    """What replica `number` is called everywhere."""
    return f"replica-{number}"


@dataclass
class Replicas:
    """The servers of one engine under one scheduler."""

    all: list[Replica] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)

    def add(
        self,
        command: Sequence[str],
        variables: Mapping[str, str],
        folder: Path,
        url: str,
        events: str | None,
    ) -> None:
        """Start one more."""
        server = self._stack.enter_context(Server(command, variables, folder / "server.log"))
        self.all.append(Replica(replica_name(len(self.all)), server, url, folder, events))

    def take(self, replica: Replica) -> None:
        """Have one more, which was started elsewhere."""
        self._stack.callback(replica.server.stop)
        self.all.append(replica)

    def stage(self, plugin: Plugin | None = None) -> Path:
        """`packages` for as long as the servers live."""
        return self._stack.enter_context(packages(plugin))

    def scratch(self) -> Path:
        """A folder for what the servers put aside and may leave behind; it is removed after them."""
        return Path(
            self._stack.enter_context(TemporaryDirectory(prefix="suite-", ignore_cleanup_errors=True))
        )

    def alive(self) -> str | None:
        """None while all run, else how the first that does not has ended."""
        return next((reason for one in self.all if (reason := one.server.alive())), None)

    def stop(self) -> None:
        """End all."""
        self._stack.close()


class Pool:
    """Servers that are kept between runs, since an engine takes longer to start than many a run lasts.

    They end with `KEPT`, or when the memory is wanted: first those that have not been used for longest.
    """

    def __init__(self) -> None:
        self._idle: OrderedDict[str, Replicas] = OrderedDict()

    @contextmanager
    def lease(
        self,
        key: str,
        start: Callable[[], Replicas],
        renew: Callable[[Replicas], bool],
        shortage: Callable[[], str | None],
    ) -> Iterator[Replicas]:
        """The servers kept under `key` if `renew` makes them as new, else what `start` starts.

        `shortage` says what memory is lacking to start them; if that does not help, it is raised as
        `BadInput`. After an error they are stopped, as nobody knows what state they are in.
        """
        replicas = self._renewed(key, renew)
        if replicas is None:
            self._make_room(shortage)
            replicas = start()
        try:
            yield replicas
        except BaseException:
            replicas.stop()
            raise
        if not self._idle:
            KEPT.callback(self.close)
        self._idle[key] = replicas

    def close(self) -> None:
        """Stop all that are kept."""
        while self._idle:
            self._idle.popitem()[1].stop()

    def _renewed(self, key: str, renew: Callable[[Replicas], bool]) -> Replicas | None:
        replicas = self._idle.pop(key, None)
        if replicas is None:
            return None
        try:
            if renew(replicas):
                return replicas
        except BaseException:
            replicas.stop()
            raise
        replicas.stop()
        return None

    def _make_room(self, shortage: Callable[[], str | None]) -> None:
        while lacking := shortage():
            if not self._idle:
                raise BadInput(lacking)
            self._idle.popitem(last=False)[1].stop()


POOL = Pool()
"""The servers that this process keeps."""


class RouterProcess(Stoppable):
    """A router that runs before replicas, shown to people as `name`. Leaving the context ends it."""

    def __init__(self, name: str, server: Server) -> None:
        self._name = name
        self._server = server

    def alive(self) -> str | None:
        """None while it runs, else how it ended."""
        ended = self._server.alive()
        return f"{self._name} {ended}" if ended else None

    def stop(self) -> None:
        """End it."""
        self._server.stop()

    def _begun(self, wait: Callable[[], None]) -> Self:
        """Itself once `wait` has returned; it is ended if that raises."""
        try:
            wait()
        except BaseException:
            self.stop()
            raise
        return self

    def _wait_for(self, ready: Callable[[], bool], seconds: float) -> bool:
        """Whether it is ready within so many seconds. Raises `BadInput` if it ends before."""
        wait_for(lambda: self.alive() is not None or ready(), seconds)
        if ended := self.alive():
            raise BadInput(f"{ended}; it did not start")
        return ready()


@dataclass(frozen=True)
class Plugin:
    """An entry point by which an engine finds the suite's plugin, under the name `suite`.

    `distribution` is what seems to be installed, `target` "module:function".
    """

    distribution: str
    group: str
    target: str


@contextmanager
def packages(plugin: Plugin | None = None) -> Iterator[Path]:
    """A folder for PYTHONPATH from which an engine can import `suite` and `baselines`, nothing else.

    With `plugin` it looks as if a distribution that has this entry point were installed there.
    """
    with TemporaryDirectory(prefix="suite-") as name:
        folder = Path(name)
        for package in (suite, baselines):
            (folder / package.__name__).symlink_to(next(iter(package.__path__)))
        if plugin is not None:
            _distribute(plugin, folder)
        yield folder


def _distribute(plugin: Plugin, folder: Path) -> None:
    about = folder / f"{plugin.distribution}-{suite.__version__}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {plugin.distribution}\nVersion: {suite.__version__}\n"
    )
    (about / "entry_points.txt").write_text(f"[{plugin.group}]\nsuite = {plugin.target}\n")


def wanted(chosen: plugins.Plugin) -> dict[str, Any]:
    """A scheduler or router as the process that hosts it is told of it: target, all parameters.

    Raises `BadInput` if a parameter would not be the same at the other end.
    """
    place, _, name = chosen.target.rpartition(":")
    target = f"{Path(place).absolute()}:{name}" if place.endswith(".py") else chosen.target
    return {"target": target, "parameters": _arriving(chosen)}


def _arriving(chosen: plugins.Plugin) -> dict[str, Any]:
    given = chosen.full_parameters
    try:
        arriving: dict[str, Any] = json.loads(json.dumps(given, allow_nan=False))
    except ValueError:
        arriving = {}
    for key, value in given.items():
        if arriving.get(key) != value:
            raise BadInput(
                f"{chosen.kind.word} {chosen.name!r}: {key}={value!r} cannot be sent to another process; use "
                f"finite numbers, text, or lists and mappings of them"
            )
    return arriving


def variables(own: Mapping[str, str]) -> dict[str, str]:
    """The variables of an engine's process: ours, without what is about our environment, and `own`."""
    return {**{key: value for key, value in os.environ.items() if key not in _FOREIGN}, **own}


def ask(url: str, body: Mapping[str, Any] | None = None, *, post: bool = False, timeout: float = 5.0) -> Any:
    """GET a URL of a server, or POST to it, and return its answer: JSON, or text where it is none.

    Raises `OSError` if it gives no answer or one that is no success.
    """
    data = json.dumps(body).encode() if body is not None else b"" if post else None
    request = Request(url, data, {"Content-Type": "application/json"})
    try:
        with _OPENER.open(request, timeout=timeout) as answer:
            text = answer.read().decode(errors="replace")
    except HTTPError as error:
        with error:
            said = " ".join(error.read(500).decode(errors="replace").split())
        raise OSError(f"{url}: {error.code} {said}") from None
    except HTTPException as error:
        raise OSError(f"{url}: no HTTP, or cut: {error!r}") from None
    try:
        return json.loads(text)
    except ValueError:
        return text


def wait_until_up(replicas: Replicas, what: str, seconds: float, note: Callable[[str], None]) -> None:
    """Return when all servers answer on /health. Raises `BadInput` if one ends before, or takes too long."""
    begin = time.monotonic()
    waiting = list(replicas.all)
    while waiting:
        passed = time.monotonic() - begin
        if reason := replicas.alive():
            raise BadInput(f"{what} did not start: {reason}")
        if passed > seconds:
            log = waiting[0].server.log
            raise BadInput(f"{what} is not up after {seconds:g} s (log: {log}); raise start_timeout_s")
        note(f"starting {what}: {passed:.0f} s")
        waiting = [one for one in waiting if not _healthy(one.url)]
        time.sleep(_LOOK if waiting else 0)


def _healthy(url: str) -> bool:
    try:
        ask(f"{url}/health", timeout=1)
    except OSError:
        return False
    return True


def wait_for(true: Callable[[], bool], seconds: float) -> bool:
    """Whether something comes true within so many seconds."""
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(_LOOK)
    return True


def first_line(path: Path) -> list[Any] | None:
    """The first line of a log of JSON lists; None if it is not there yet, or not whole."""
    try:
        with path.open("rb") as file:
            line = file.readline()
        return list(json.loads(line)) if line.endswith(b"\n") else None
    except (OSError, ValueError, TypeError):
        return None


# -- memory ----------------------------------------------------------------------------------------------


def cpu_shortage(needed: int, what: str) -> str | None:
    """What main memory is lacking for so many bytes, if any."""
    free = psutil.virtual_memory().available
    return None if needed <= free else _shortage(what, needed, free, "of memory")


def gpu_shortage(needed: Mapping[str, int], what: str) -> str | None:
    """What GPU memory is lacking, if any; `needed` are bytes by GPU, named by index or UUID."""
    for gpu, amount in needed.items():
        free, _ = gpu_memory(gpu)
        if amount > free:
            return _shortage(what, amount, free, f"on GPU {gpu}")
    return None


def gpu_memory(gpu: str) -> tuple[int, int]:
    """Free and total bytes of a GPU, named by index or UUID. Raises `BadInput` if it is not told."""
    query = ["--query-gpu=memory.free,memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(
            ["nvidia-smi", f"--id={gpu}", *query], capture_output=True, text=True, timeout=60, check=True
        ).stdout
        free, total = (int(number) * 2**20 for number in told.split(","))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise BadInput(f"GPU {gpu}: nvidia-smi does not tell its memory: {error}") from None
    return free, total


def _shortage(what: str, needed: int, free: int, where: str) -> str:
    return (
        f"{what} needs {needed / 1e9:.1f} GB {where} and {free / 1e9:.1f} GB are free; "
        f"make kv_tokens smaller, or free memory"
    )
