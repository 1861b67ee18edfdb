"""Engine environments: engines run in environments of their own, never in the suite's.

There is one folder for each engine, release and device, such as `vllm-0.32.0-cpu`. It is whole once the
marker `engine.json` is in it, which is written last:

    {"engine": "vllm", "version": "0.32.0", "device": "cpu", "torch": "2.13.0+cpu"}

An environment made by hand counts as well, such as a venv on a GPU machine whose `.pth` file names the
folders of the packages that are there and of unpacked wheels: `adopt` it, or put its folder with such a
marker below `root()`.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from suite import installer
from suite.catalogue import ENGINES, TORCH
from suite.errors import BadInput, did_you_mean
from suite.files import write_atomically, writing

Say = Callable[[str], None]
"""Is told what is being done, a line each."""

MARKER = "engine.json"
DATA = Path(__file__).with_name("engines")
"""Pins, overrides, shims, and the probe that an environment's Python runs."""
PATIENCE = 300
"""Seconds an environment may take to import its engine; the first time it compiles every file."""


@dataclass(frozen=True)
class Environment:
    """An engine that is installed. Versions are those found when it was installed or adopted."""

    engine: str
    version: str
    device: str
    folder: Path
    torch: str = ""
    python_version: str = ""
    pinned: bool = False
    """True if the suite installed it with its pins; what was adopted has versions of its own choice."""

    @property
    def name(self) -> str:
        """Its name below `root()`."""
        return self.folder.name

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def variables(self) -> dict[str, str]:
        """What to add to the variables of the engine's processes; its own programs come first in PATH."""
        path = os.pathsep.join([str(self.folder / "bin"), os.environ.get("PATH", os.defpath)])
        return {"PATH": path, **ENGINES[self.engine].variables[self.device]}


def root() -> Path:
    """Where environments are: $SUITE_ENGINES, else `engines` inside the suite's own environment."""
    return Path(os.environ.get("SUITE_ENGINES") or Path(sys.prefix) / "engines").expanduser().absolute()


def releases(engine: str, device: str) -> list[str]:
    """The releases that can be installed, newest first. Raises `BadInput` for an unknown engine or device."""
    _check(engine, device)
    prefix = f"{engine}-{device}-"
    found = (path.stem.removeprefix(prefix) for path in DATA.glob(f"{prefix}*.txt"))
    return sorted(found, key=Version, reverse=True)


def installed() -> list[Environment]:
    """All whole environments, by name. Raises `BadInput` naming a marker that cannot be used."""
    return [_read(marker.parent) for marker in sorted(root().glob(f"*/{MARKER}"))]


def unfinished() -> list[Path]:
    """Folders of environments whose installation broke off, by name."""
    return [folder for folder in _folders() if not (folder / MARKER).exists()]


def find(engine: str, device: str, version: str | None = None) -> Environment:
    """The newest release of an engine that is installed for a device, or the one asked for.

    Raises `BadInput` with the command that installs it.
    """
    _check(engine, device)
    fit = [
        e for e in installed() if (e.engine, e.device) == (engine, device) and version in (None, e.version)
    ]
    if not fit:
        release = version and _offered(engine, device, version)
        wanted = f"{engine} {release}" if release else engine
        raise BadInput(
            f"{wanted} is not installed for {device}; run: {install_command(engine, device, release)}"
        )
    newest = max(fit, key=lambda environment: Version(environment.version))
    if not newest.python.exists():
        raise BadInput(
            f"{newest.folder}: its Python is gone; run: suite engines remove {newest.name}, "
            f"then {install_command(engine, device, version)}"
        )
    return newest


def install_command(engine: str, device: str, version: str | None = None) -> str:
    """The command line that installs an engine."""
    where = f" --device {device}" if len(ENGINES[engine].packages) > 1 else ""
    release = f" --version {version}" if version else ""
    return f"suite engines install {engine}{where}{release}"


def device_for(engine: str, given: str | None) -> str:
    """The device that was given, else the only one it runs on. Raises `BadInput` if there are several."""
    known = tuple(ENGINES[engine].packages) if engine in ENGINES else ()
    if given is None and len(known) > 1:
        raise BadInput(f"{engine}: name the device too: --device {' or --device '.join(known)}")
    return given or next(iter(known), "")


def install(engine: str, device: str, version: str | None, say: Say) -> Environment:
    """Install a release, by default the newest, with exactly the pinned packages. What is whole stays.

    PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS and PIP_CERT are obeyed; a torch wheel in a folder of
    PIP_FIND_LINKS is used, else the build that fits the device is fetched. An environment that was left
    unfinished is begun anew. Raises `BadInput` that names the installer's log.
    """
    version = _offered(engine, device, version or releases(engine, device)[0])
    folder = root() / f"{engine}-{version}-{device}"
    with _alone(say):
        if (folder / MARKER).exists():
            say(f"{folder.name} is installed already, in {folder}")
            return _read(folder)
        say(f"installing {folder.name} into {folder}")
        return _install(Environment(engine, version, device, folder, pinned=True))


def adopt(folder: Path, engine: str, device: str) -> Environment:
    """Take in an environment that was made by hand. Its release is asked of its own Python.

    The folder stays where it is, and gets the marker; below `root()` there will be a link to it. Raises
    `BadInput` if the engine cannot be imported there.
    """
    _check(engine, device)
    folder = folder.expanduser().absolute()
    draft = Environment(engine, "", device, folder)
    answer = _ask(draft)
    if not answer.version:
        raise BadInput(f"{folder}: {answer.error}; give a virtual environment that can import it")
    release = _public(answer.version)
    place = folder if folder.parent == root() else root() / f"{engine}-{release}-{device}"
    if os.path.lexists(place) and place.resolve() != folder.resolve():
        raise BadInput(f"{place}: is there already; run: suite engines remove {place.name}")
    _write(draft, release, answer)
    if not place.exists():
        with writing(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(folder)
    return _read(place)


def remove(name: str) -> Path:
    """Remove an environment, whole or not, and return where it was; of an adopted one only the link goes."""
    folders = {folder.name: folder for folder in _folders()}
    if name not in folders:
        hint = did_you_mean(name, folders) if folders else f"there is none in {root()}"
        raise BadInput(f"no environment {name!r}; {hint}")
    folder = folders[name]
    with writing(folder):
        if folder.is_symlink():
            folder.unlink()
        else:
            shutil.rmtree(folder)
    return folder


def problems(environment: Environment) -> list[str]:
    """What is wrong with an environment, a line each; it takes as long as importing the engine."""
    answer = _ask(environment)
    found = [answer.error] if answer.error else []
    if answer.version and _public(answer.version) != environment.version:
        found.append(f"the engine is {answer.version}, not {environment.version}")
    if answer.packages and environment.engine not in answer.packages:
        found.append(f"no metadata of {environment.engine!r}, which its command line asks for")
    if environment.pinned:
        found += _unlike_pins(environment, answer.packages) + _unlike_shims(environment)
    return found


# -- parts -----------------------------------------------------------------------------------------------


class _Marker(BaseModel):
    model_config = ConfigDict(extra="forbid")

    engine: str
    version: str
    device: str
    torch: str = ""
    python: str = ""
    pinned: bool = False

    @model_validator(mode="after")
    def _known(self) -> Self:
        _check(self.engine, self.device)
        _public(self.version)
        return self


class _Answer(BaseModel):
    """What `engines/probe.py` printed; empty where it could not be run, with the reason in `error`."""

    python: str = ""
    version: str = ""
    packages: dict[str, str] = {}
    error: str = ""

    @field_validator("packages")
    @classmethod
    def _canonical(cls, packages: dict[str, str]) -> dict[str, str]:
        return {canonicalize_name(name): version for name, version in packages.items()}


def _check(engine: str, device: str) -> None:
    if engine not in ENGINES:
        raise BadInput(f"unknown engine {engine!r}; {did_you_mean(engine, ENGINES)}")
    if device not in ENGINES[engine].packages:
        raise BadInput(f"unknown device {device!r}; {did_you_mean(device, ENGINES[engine].packages)}")


def _offered(engine: str, device: str, version: str) -> str:
    known = releases(engine, device)
    if version not in known:
        raise BadInput(f"{engine} {version} is not offered for {device}; known: {', '.join(known)}")
    return version


def _public(version: str) -> str:
    """A release without its local part: 0.32.0 for 0.32.0+cpu."""
    try:
        return Version(version).public
    except InvalidVersion:
        raise BadInput(f"{version!r} is no release; it must be written like 0.32.0") from None


def _folders() -> list[Path]:
    """What below the root is an environment, by name: whole or not, or a link to one that may be gone."""
    found = {folder for engine in ENGINES for folder in root().glob(f"{engine}-*")}
    return sorted(folder for folder in found if folder.is_dir() or folder.is_symlink())


def _install(environment: Environment) -> Environment:
    engine, device, version = environment.engine, environment.device, environment.version
    package = ENGINES[engine].packages[device]
    overrides = DATA / f"{engine}-{device}.overrides"
    recipe = installer.Recipe(
        requirement=f"{package}=={version}",
        besides=ENGINES[engine].besides.get(device, ()),
        constraints=_pins(environment),
        overrides=overrides if overrides.exists() else None,
        torch=TORCH[device],
        files=_shims(environment),
    )
    installer.build(environment.folder, recipe)
    if package != engine:
        installer.add_metadata(environment.folder, engine, f"{version}+{device}")
    answer = _ask(environment)
    if not answer.version:
        raise BadInput(f"{environment.folder}: {answer.error}; see {environment.folder / installer.LOG}")
    _write(environment, version, answer)
    return _read(environment.folder)


def _write(environment: Environment, version: str, answer: _Answer) -> None:
    marker = _Marker(
        engine=environment.engine,
        version=version,
        device=environment.device,
        torch=answer.packages.get("torch", ""),
        python=answer.python,
        pinned=environment.pinned,
    )
    text = marker.model_dump_json(indent=1) + "\n"
    write_atomically(environment.folder / MARKER, lambda path: path.write_text(text))


def _read(folder: Path) -> Environment:
    path = folder / MARKER
    try:
        marker = _Marker.model_validate_json(path.read_bytes())
    except (OSError, ValidationError, BadInput) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise BadInput(f"{path}: {reason}; mend it, or run: suite engines remove {folder.name}") from None
    return Environment(
        marker.engine,
        _public(marker.version),
        marker.device,
        folder,
        marker.torch,
        marker.python,
        marker.pinned,
    )


def _ask(environment: Environment) -> _Answer:
    """Let the environment's Python tell what it has, and import the engine."""
    engine = ENGINES[environment.engine]
    command = [str(environment.python), str(DATA / "probe.py")]
    command += [engine.module, engine.core, environment.device]
    variables = os.environ | environment.variables | {"VLLM_LOGGING_LEVEL": "ERROR"}
    try:
        done = subprocess.run(
            command, env=variables, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE
        )
        return _Answer.model_validate_json(done.stdout.splitlines()[-1] if done.stdout else b"")
    except OSError:
        return _Answer(error="bin/python cannot be run")
    except subprocess.TimeoutExpired:
        return _Answer(error=f"{engine.core} is not imported after {PATIENCE} s")
    except ValidationError:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        return _Answer(error=f"its Python ended with code {done.returncode}: {last}".removesuffix(": "))


def _pins(environment: Environment) -> Path:
    return DATA / f"{environment.engine}-{environment.device}-{environment.version}.txt"


def _unlike_pins(environment: Environment, packages: Mapping[str, str]) -> list[str]:
    """A line for the packages that are there in another version than the pinned one."""
    pinned = [Requirement(line) for line in _pins(environment).read_text().splitlines()]
    found = [(pin, packages.get(canonicalize_name(pin.name))) for pin in pinned]
    wrong = [
        f"{pin.name} {version} (not {pin.specifier})"
        for pin, version in found
        if version and (pin.marker is None or pin.marker.evaluate()) and version not in pin.specifier
    ]
    return [f"unlike the pins: {', '.join(wrong)}"] if wrong else []


def _shims(environment: Environment) -> list[Path]:
    """The suite's own files that stand for packages its device does not have; most engines need none."""
    return sorted((DATA / f"{environment.engine}_{environment.device}").glob("suite_*"))


def _unlike_shims(environment: Environment) -> list[str]:
    """A line for the suite's own files that are not there as they are now."""
    wrong = []
    for file in _shims(environment):
        there = environment.folder.glob(f"lib/python*/site-packages/{file.name}")
        if file.read_bytes() not in [copy.read_bytes() for copy in there]:
            wrong.append(file.name)
    return [f"without the suite's {', '.join(wrong)}; remove it and install it again"] if wrong else []


@contextmanager
def _alone(say: Say) -> Iterator[None]:
    """Hold the lock under which one installation runs at a time; it falls when the process ends."""
    lock = root() / ".lock"
    with writing(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = lock.open("w")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another installation to end")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
