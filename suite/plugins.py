"""What schedulers and routers share: classes found by name, by file or from entry points; checked parameters.

A name is that of a class in a module of the `baselines` package or of an installed entry point. Nothing is
registered: a new file in `baselines` is found by looking.
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
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Generic, Self, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, PydanticUserError, create_model

import baselines
from suite.errors import BadInput, did_you_mean
from suite.validation import assignments, at, validated

T = TypeVar("T")

_BY_PATH = re.compile(r"(?P<target>[^:]+\.py(:\w+)?)(:(?P<parameters>.*))?", re.DOTALL)


@dataclass(frozen=True)
class Kind(Generic[T]):
    """One kind of plug-in.

    `word` is what people call it, `base` the class it derives from, `group` that of its entry points,
    `method` the one that it must have, and `task` what that does. `foreign` holds the policies that programs
    have of their own, by program: each is named "PROGRAM:POLICY".
    """

    word: str
    base: type[T]
    group: str
    method: str
    task: str
    foreign: Mapping[str, tuple[str, ...]]

    def available(self) -> dict[str, str]:
        """Targets of all that have a name, by name: the baselines', then those of entry points."""
        found = {cls.name: f"{cls.__module__}:{cls.__name__}" for cls in self._baselines()}
        for entry in entry_points(group=self.group):
            if found.setdefault(entry.name, entry.value) != entry.value:
                raise BadInput(
                    f"entry point {entry.name!r} ({entry.value}): the name is taken by {found[entry.name]}; "
                    f"give it another"
                )
        return found

    def load(self, target: str) -> type[T]:
        """The class at "module:Class" or "path/to/file.py:Class"."""
        place, _, name = target.rpartition(":")
        module = self._module_at(Path(place)) if place.endswith(".py") else _module_named(place)
        cls = getattr(module, name, None)
        if cls is None:
            raise BadInput(f"{place}: has no class {name!r}; {did_you_mean(name, self._classes(module))}")
        if not (isinstance(cls, type) and issubclass(cls, self.base)):
            base = self.base.__name__
            raise BadInput(f"{place}: {name} is no {base}; derive it from {self.base.__module__}.{base}")
        return cls

    def with_class(self, reference: str) -> str:
        """The reference to a file, which must name the class too."""
        path, _, name = reference.partition(":")
        if name:
            return reference
        known = ", ".join(self._classes(self._module_at(Path(path)))) or f"no {self.base.__name__}"
        raise BadInput(f"{path}: name the class too, {path}:CLASS; it has: {known}")

    def check(self, cls: Any) -> None:
        """Raise `BadInput` if the class lacks what every one of its kind has."""
        if not isinstance(cls.name, str) or "+" in cls.name:
            raise BadInput(f"{_file(cls)}: {cls.__name__}.name must be text without '+', not {cls.name!r}")
        method = getattr(cls, self.method)
        if method is getattr(self.base, self.method) or not callable(method):
            raise BadInput(
                f"{_file(cls)}: {cls.__name__} has no method `{self.method}`; give it one that {self.task}"
            )

    def _baselines(self) -> Iterator[Any]:
        for info in pkgutil.iter_modules(baselines.__path__, "baselines."):
            for cls in self._classes(_module_named(info.name)).values():
                if cls.name:
                    self.check(cls)
                    yield cls

    def _classes(self, module: ModuleType) -> dict[str, Any]:
        """The classes of this kind that are defined in a module, not merely imported there."""
        return {
            name: cls
            for name, cls in inspect.getmembers(module, inspect.isclass)
            if issubclass(cls, self.base) and cls.__module__ == module.__name__ and cls is not self.base
        }

    def _module_at(self, path: Path) -> ModuleType:
        """Import a file once per process, under a name of its own that cannot hide another module."""
        name = f"_plugin_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
        if name in sys.modules:
            return sys.modules[name]
        if not path.is_file():
            raise BadInput(
                f"{path}: no such file; a {self.word} of your own is given as path/to/file.py:Class"
            )
        return _imported(name, path, f"a {self.word}'s file must import cleanly")


@dataclass(frozen=True)
class Plugin:
    """One chosen by a user: its bare name, where its class lives, the parameters given.

    `target` is "module:Class" or "path/to/file.py:Class". It is made of plain data, so it travels to other
    processes; the class is loaded where it is needed.
    """

    kind: ClassVar[Kind[Any]]

    name: str
    target: str
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """As shown to people: the name and the parameters that were given."""
        return self._with_given(self.name)

    @property
    def reference(self) -> str:
        """As it can be chosen again: the label, but a file and its class in the place of their name."""
        return self._with_given(self.target if ".py:" in self.target else self.name)

    @property
    def file(self) -> Path:
        """The file that holds the class."""
        return _file(self._cls)

    @property
    def source_digest(self) -> str:
        """SHA-256 of the file that holds the class."""
        return hashlib.sha256(self.file.read_bytes()).hexdigest()

    @property
    def full_parameters(self) -> dict[str, Any]:
        """All parameters of the constructor as plain data, defaults filled in."""
        return validated(_signature(self._cls), self.parameters).model_dump(mode="json")

    @property
    def summary(self) -> str:
        """The first line of the class's docstring."""
        return (inspect.getdoc(self._cls) or "").partition("\n")[0]

    @property
    def record(self) -> dict[str, Any]:
        """What a manifest keeps of it."""
        return {
            "name": self.name,
            "target": self.target,
            "parameters": self.full_parameters,
            "source": self.source_digest,
        }

    def with_parameters(self, extra: Mapping[str, Any]) -> Self:
        """The same with more parameters, or other values.

        They are converted to the types of the constructor's signature. Raises `BadInput` for an unknown one,
        a value of the wrong type, or a class that cannot be used.
        """
        with at(f"{self.kind.word} {self.name!r}"):
            model = validated(_signature(self._cls), {**self.parameters, **extra})
            given = {key: getattr(model, key) for key in sorted(model.model_fields_set)}
            chosen = replace(self, parameters=given)
            chosen._check_builds()
        return chosen

    def _with_given(self, name: str) -> str:
        given = ",".join(f"{key}={shown(value)}" for key, value in sorted(self.parameters.items()))
        return f"{name}:{given}" if given else name

    @property
    def _cls(self) -> type[Any]:
        return self.kind.load(self.target)

    def _check_builds(self) -> None:
        try:
            self._cls(**self.parameters)
        except ValueError as error:
            raise BadInput(str(error)) from None
        except (Exception, SystemExit) as error:
            raise BadInput(f"{blame(error, self.file)} (while it was constructed)") from None
        try:
            _ = self.full_parameters
        except ValueError as error:  # pydantic's own, when a default is no plain data
            problem = str(error).partition("\n")[0]
            raise BadInput(
                f"{self.file}: a default cannot be recorded: {problem}; use numbers, text, lists or None"
            ) from None


class Foreign(Plugin):
    """One that is no class of ours but a policy of another program, named in `target` as "PROGRAM:POLICY"."""

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

    def with_parameters(self, extra: Mapping[str, Any]) -> Self:
        """Itself; raises `BadInput` if there are any."""
        if extra:
            raise BadInput(f"{self.kind.word} {self.name!r}: takes no parameters, got {', '.join(extra)}")
        return self


def find(kind: Kind[Any], other: Kind[Any], reference: str) -> tuple[str, str]:
    """Name and target of what is referred to by name, or by "path/to/file.py:Class".

    A name belongs to one kind only, as it stands in labels and in the keys of a sweep: one of the `other`
    kind is refused. Raises `BadInput` too for an unknown name and for a class that cannot be used.
    """
    by_path = _BY_PATH.fullmatch(reference)
    target = kind.with_class(reference) if by_path else _known(kind, other, reference)
    cls = kind.load(target)
    kind.check(cls)
    name = (cls.name or cls.__name__) if by_path else reference
    if name in other.available():
        raise BadInput(f"{_file(cls)}: the name {name!r} is that of a {other.word}; give it another")
    return name, target


def _known(kind: Kind[Any], other: Kind[Any], name: str) -> str:
    known = kind.available()
    if name in known:
        return known[name]
    if name in other.available():
        raise BadInput(
            f"{name!r} is a {other.word}, not a {kind.word}; write ROUTER+SCHEDULER, the {kind.word} one of "
            f"{', '.join(sorted(known))}"
        )
    if "+" in name:
        raise BadInput(
            f"{name!r}: not ROUTER+SCHEDULER; write d2lpm+dlpm, without blanks, or {{name: dlpm, "
            f"router: d2lpm}}"
        )
    hint = did_you_mean(name, known)
    raise BadInput(f"unknown {kind.word} {name!r}; {hint} (a file of your own: path/to/file.py:Class)")


def is_foreign(kind: Kind[Any], reference: str) -> bool:
    """Whether another program's own policy is referred to. Raises `BadInput` for one that it has not."""
    program, _, policy = reference.partition(":")
    if program not in kind.foreign:
        return False
    if policy not in kind.foreign[program]:
        hint = did_you_mean(policy, kind.foreign[program])
        raise BadInput(f"{program} has no policy {policy!r} of its own; {hint}")
    return True


def read(kind: Kind[Any], choice: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """What is referred to, and the parameters given, of "NAME:KEY=VALUE,..." or {name: NAME, KEY: VALUE}."""
    return _read_text(kind, choice) if isinstance(choice, str) else _read_mapping(kind, choice)


def _read_text(kind: Kind[Any], text: str) -> tuple[str, dict[str, Any]]:
    by_path = _BY_PATH.fullmatch(text)
    if by_path:
        reference, given = by_path["target"], by_path["parameters"] or ""
    else:
        reference, given = _named(kind, text)
    with at(f"{kind.word} {text!r}"):
        return reference, assignments(filter(None, given.split(",")))


def _named(kind: Kind[Any], text: str) -> tuple[str, str]:
    """The name and what stands behind it; the name of a program's own policy has a colon itself."""
    head, _, rest = text.partition(":")
    if head not in kind.foreign:
        return head, rest
    policy, _, given = rest.partition(":")
    return f"{head}:{policy}", given


def _read_mapping(kind: Kind[Any], choice: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    parameters = {str(key): value for key, value in choice.items() if key != "name"}
    if not isinstance(choice.get("name"), str):
        raise BadInput(f"name: missing; a {kind.word} is written {{name: NAME, PARAMETER: VALUE, ...}}")
    return choice["name"], parameters


# -- for people ------------------------------------------------------------------------------------------


def shown(value: Any) -> str:
    """A parameter's value as people write it: 2000 for 2000.0."""
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def blame(error: BaseException, *files: Path) -> str:
    """One line for an error out of user code: its place, in `files` if possible, its type and message."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    whose = {file.resolve() for file in files}
    own = [frame for frame in frames if Path(frame.filename).resolve() in whose]
    place = f"{(own or frames)[-1].filename}:{(own or frames)[-1].lineno}" if frames else str(files[0])
    return f"{place}: {type(error).__name__}: {error}".removesuffix(": ")


# -- classes ---------------------------------------------------------------------------------------------


def _signature(cls: type[Any]) -> type[BaseModel]:
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


def _module_named(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise BadInput(f"{name}: cannot be imported: {type(error).__name__}: {error}") from None


def _imported(name: str, path: Path, rule: str) -> ModuleType:
    """Import a file under a name; `rule` is told with what goes wrong."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise BadInput(f"{blame(error, path)} ({rule})") from None
    return module


def _file(cls: type[Any]) -> Path:
    return Path(inspect.getfile(cls))
