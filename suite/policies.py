"""Schedulers by name, by `path/to/file.py:Class`, or from entry points; checked parameters.

A name is that of a `Scheduler` class in a module of the `baselines` package or of an installed entry point in
the group `suite.schedulers`. Nothing is registered: a new file in `baselines` is found by looking.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, PydanticUserError, create_model

import baselines
from baselines.scheduler import Scheduler
from suite.errors import BadInput, did_you_mean
from suite.validation import assignments, at, validated

ENTRY_POINTS = "suite.schedulers"

STOCK = {
    "vllm": ("fcfs", "priority"),
    "sglang": ("fcfs", "lpm", "dfs-weight", "lof", "hrrn", "random", "shortest-prefill-first"),
}
"""The engines' own policies, as the engines name them. Each is a scheduler "ENGINE:POLICY" of that engine
alone; SGLang has hrrn and shortest-prefill-first in later releases than 0.5.15."""

_BY_PATH = re.compile(r"(?P<target>[^:]+\.py(:\w+)?)(:(?P<parameters>.*))?", re.DOTALL)


@dataclass(frozen=True)
class SchedulerSpec:
    """A scheduler chosen by a user: its bare name, where its class lives, the parameters given.

    `target` is "module:Class" or "path/to/file.py:Class". A spec is made of plain data, so it travels to
    other processes; the class is loaded where it is needed.
    """

    name: str
    target: str
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """As shown to people and accepted by `parse`: the name and the parameters that were given."""
        given = ",".join(f"{key}={shown(value)}" for key, value in sorted(self.parameters.items()))
        return f"{self.name}:{given}" if given else self.name

    @property
    def file(self) -> Path:
        """The file that holds the class."""
        return _file(_load(self.target))

    @property
    def source_digest(self) -> str:
        """SHA-256 of the file that holds the class."""
        return hashlib.sha256(self.file.read_bytes()).hexdigest()

    @property
    def full_parameters(self) -> dict[str, Any]:
        """All parameters of the constructor as plain data, defaults filled in."""
        return validated(_signature(_load(self.target)), self.parameters).model_dump(mode="json")

    @property
    def summary(self) -> str:
        """The first line of the class's docstring."""
        return (inspect.getdoc(_load(self.target)) or "").partition("\n")[0]

    @property
    def place(self) -> str:
        """Where it runs, in words."""
        return "runs on every backend but an endpoint, whose own is `stock`"

    @property
    def work_conserving(self) -> bool:
        """True if the class says that it offers some request whenever one waits."""
        return _load(self.target).work_conserving

    def build(self) -> Scheduler:
        """A fresh instance."""
        return _load(self.target)(**self.parameters)

    def with_parameters(self, extra: Mapping[str, Any]) -> SchedulerSpec:
        """The same scheduler with more parameters, or other values. Raises `BadInput` as `parse` does."""
        return _spec(self.target, self.name, {**self.parameters, **extra})


class Stock(SchedulerSpec):
    """A scheduler that is an engine's own: a policy of `STOCK` by name, or "stock", whatever runs there."""

    def __init__(self, engine: str = "", policy: str = "") -> None:
        target = f"{engine}:{policy}" if engine else ""
        super().__init__(target or "stock", target)

    @property
    def engine(self) -> str:
        """The engine whose policy it is; empty if it is not known."""
        return self.target.partition(":")[0]

    @property
    def policy(self) -> str:
        """The policy's name in the engine; empty if it is not known."""
        return self.target.partition(":")[2]

    @property
    def file(self) -> Path:
        """None is known."""
        return Path()

    @property
    def source_digest(self) -> str:
        """None is known."""
        return ""

    @property
    def full_parameters(self) -> dict[str, Any]:
        """It has none."""
        return {}

    @property
    def place(self) -> str:
        """Where it runs, in words."""
        if self.engine:
            return f"runs on backend {self.engine} only, in real time"
        return "is an endpoint's own, while those of engines are named like vllm:fcfs and sglang:lpm"

    def build(self) -> Scheduler:
        """It cannot be built: raises `BadInput`."""
        raise BadInput(f"scheduler {self.name!r}: {self.place}; name one of ours")

    def with_parameters(self, extra: Mapping[str, Any]) -> SchedulerSpec:
        """Itself; raises `BadInput` if there are any."""
        if extra:
            raise BadInput(f"scheduler {self.name!r}: takes no parameters, got {', '.join(extra)}")
        return self


def parse(choice: str | Mapping[str, Any]) -> SchedulerSpec:
    """The scheduler named by "dlpm", "dlpm:quantum=2000", "my.py:Mine:knob=3" or {name: dlpm, quantum: 2000}.

    "sglang:lpm" is an engine's own policy, "stock" what an endpoint does by itself.

    Parameters are converted and checked against the constructor's signature. Raises `BadInput` for an unknown
    name or parameter, a value of the wrong type, or a file or class that cannot be used.
    """
    reference, parameters = _read_text(choice) if isinstance(choice, str) else _read_mapping(choice)
    if _BY_PATH.fullmatch(reference):
        return _spec(_with_class(reference), "", parameters)
    if stock := _stock(reference):
        return stock.with_parameters(parameters)
    known = available()
    if reference not in known:
        hint = did_you_mean(reference, known)
        raise BadInput(f"unknown scheduler {reference!r}; {hint} (a file of your own: path/to/file.py:Class)")
    return _spec(known[reference], reference, parameters)


def available() -> dict[str, str]:
    """Targets of all schedulers that have a name, by name: the baselines', then those of entry points."""
    found = {cls.name: f"{cls.__module__}:{cls.__name__}" for cls in _baselines()}
    for entry in entry_points(group=ENTRY_POINTS):
        if found.setdefault(entry.name, entry.value) != entry.value:
            raise BadInput(
                f"entry point {entry.name!r} ({entry.value}): the name is taken by {found[entry.name]}; "
                f"give it another"
            )
    return found


def shown(value: Any) -> str:
    """A parameter's value as people write it: 2000 for 2000.0."""
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def blame(error: BaseException, file: Path) -> str:
    """One line for an error out of user code: its place, in `file` if possible, its type and message."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).resolve() == file.resolve()]
    place = f"{(own or frames)[-1].filename}:{(own or frames)[-1].lineno}" if frames else str(file)
    return f"{place}: {type(error).__name__}: {error}".removesuffix(": ")


# -- reading what the user wrote -------------------------------------------------------------------------


def _read_text(text: str) -> tuple[str, dict[str, Any]]:
    by_path = _BY_PATH.fullmatch(text)
    if by_path:
        reference, given = by_path["target"], by_path["parameters"] or ""
    else:
        reference, given = _named(text)
    with at(f"scheduler {text!r}"):
        return reference, assignments(filter(None, given.split(",")))


def _named(text: str) -> tuple[str, str]:
    """The name and what stands behind it; the name of an engine's own policy has a colon itself."""
    head, _, rest = text.partition(":")
    if head not in STOCK:
        return head, rest
    policy, _, given = rest.partition(":")
    return f"{head}:{policy}", given


def _stock(reference: str) -> Stock | None:
    """The engine's own scheduler that is named so, if any. Raises `BadInput` for one that it has not."""
    engine, _, policy = reference.partition(":")
    if engine not in STOCK:
        return Stock() if reference == Stock().name else None
    if policy not in STOCK[engine]:
        raise BadInput(f"{engine} has no policy {policy!r} of its own; {did_you_mean(policy, STOCK[engine])}")
    return Stock(engine, policy)


def _read_mapping(choice: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    parameters = {str(key): value for key, value in choice.items() if key != "name"}
    if not isinstance(choice.get("name"), str):
        raise BadInput("name: missing; a scheduler is written {name: NAME, PARAMETER: VALUE, ...}")
    return choice["name"], parameters


def _with_class(reference: str) -> str:
    path, _, name = reference.partition(":")
    if name:
        return reference
    classes = [name for name, _ in _schedulers_of(_module_at(Path(path)))]
    raise BadInput(
        f"{path}: name the class too, {path}:CLASS; it has: {', '.join(classes) or 'no Scheduler'}"
    )


# -- classes and their parameters ------------------------------------------------------------------------


def _spec(target: str, name: str, parameters: Mapping[str, Any]) -> SchedulerSpec:
    cls = _load(target)
    _check_class(cls)
    name = name or cls.name or cls.__name__
    with at(f"scheduler {name!r}"):
        model = validated(_signature(cls), parameters)
        spec = SchedulerSpec(
            name, target, {key: getattr(model, key) for key in sorted(model.model_fields_set)}
        )
        _check_builds(spec)
    return spec


def _check_builds(spec: SchedulerSpec) -> None:
    try:
        spec.build()
    except ValueError as error:
        raise BadInput(str(error)) from None
    except (Exception, SystemExit) as error:
        raise BadInput(f"{blame(error, spec.file)} (while it was constructed)") from None
    try:
        _ = spec.full_parameters
    except ValueError as error:  # pydantic's own, when a default is no plain data
        problem = str(error).partition("\n")[0]
        raise BadInput(
            f"{spec.file}: a default cannot be recorded: {problem}; use numbers, text, lists or None"
        ) from None


def _check_class(cls: type[Scheduler]) -> None:
    """Raise `BadInput` if the class lacks what every scheduler has."""
    if not isinstance(cls.name, str):
        raise BadInput(f"{_file(cls)}: {cls.__name__}.name must be text, not {cls.name!r}")
    if cls.candidates is Scheduler.candidates or not callable(cls.candidates):
        raise BadInput(
            f"{_file(cls)}: {cls.__name__} has no method `candidates`; give it one that yields requests in "
            f"the order to try them"
        )


def _signature(cls: type[Scheduler]) -> type[BaseModel]:
    """A model of the constructor's keywords: their types and defaults."""
    try:
        hints = get_type_hints(cls.__init__)
        fields: dict[str, Any] = {
            name: (hints.get(name, Any), ... if parameter.default is parameter.empty else parameter.default)
            for name, parameter in inspect.signature(cls).parameters.items()
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        }
        return create_model(cls.__name__, __config__=ConfigDict(extra="forbid"), **fields)
    except (NameError, TypeError, PydanticUserError) as error:
        problem = str(error).partition("\n")[0]
        raise BadInput(
            f"{_file(cls)}: {cls.__name__}.__init__ has types that cannot be read: {problem}"
        ) from None


def _load(target: str) -> type[Scheduler]:
    place, _, name = target.rpartition(":")
    module = _module_at(Path(place)) if place.endswith(".py") else _module_named(place)
    cls = getattr(module, name, None)
    if cls is None:
        hint = did_you_mean(name, (known for known, _ in _schedulers_of(module)))
        raise BadInput(f"{place}: has no class {name!r}; {hint}")
    if not (isinstance(cls, type) and issubclass(cls, Scheduler)):
        raise BadInput(f"{place}: {name} is no Scheduler; derive it from baselines.scheduler.Scheduler")
    return cls


def _module_named(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise BadInput(f"{name}: cannot be imported: {type(error).__name__}: {error}") from None


def _module_at(path: Path) -> ModuleType:
    """Import a file once per process, under a name of its own that cannot hide another module."""
    name = f"_scheduler_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise BadInput(f"{path}: no such file; a scheduler of your own is given as path/to/file.py:Class")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise BadInput(f"{blame(error, path)} (a scheduler's file must import cleanly)") from None
    return module


def _baselines() -> Iterator[type[Scheduler]]:
    for info in pkgutil.iter_modules(baselines.__path__, "baselines."):
        for _, cls in _schedulers_of(_module_named(info.name)):
            if cls.name:
                _check_class(cls)
                yield cls


def _schedulers_of(module: ModuleType) -> list[tuple[str, type[Scheduler]]]:
    """The Scheduler classes that are defined in a module, not merely imported there."""
    return [
        (name, cls)
        for name, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, Scheduler) and cls.__module__ == module.__name__ and cls is not Scheduler
    ]


def _file(cls: type[Scheduler]) -> Path:
    return Path(inspect.getfile(cls))
