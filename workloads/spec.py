"""The one door to workloads: a ready spec, a spec file, a mapping, or a finished trace.

load("chat").generate(seed=0)
load("my.yaml", {"load": 2, "document_tokens.mean": 4000}).generate(seed=1)
load("done.jsonl.gz").generate(seed=0)
load("done.jsonl.gz", {"shape.stretch": 2}).generate(seed=0)
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from pydantic import ValidationError

import workloads
from suite.errors import BadInput, did_you_mean
from suite.validation import read_yaml, said
from workloads import finished
from workloads.family import Family

SPECS = Path(__file__).parent / "specs"
"""Where the ready specs are."""


def ready() -> list[str]:
    """The names of the ready specs."""
    return sorted(path.stem for path in SPECS.glob("*.yaml"))


def load(
    source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] = MappingProxyType({})
) -> Family:
    """The workload that `source` describes, with some of its parameters replaced.

    `source` is the name of a ready spec, the path of a YAML spec, a spec as a mapping, or the path of a
    finished trace. Keys of `overrides` are dotted paths into the spec ("clients.count"); each replaces what
    stands there. Raises `BadInput` naming file and field.
    """
    if isinstance(source, Mapping):
        return _workload("workload", {"name": Path(str(source.get("family"))).stem, **source}, overrides)
    if str(source).endswith(finished.ENDINGS):
        return _workload(str(source), _finished(Path(source)), overrides)
    path = _spec_file(str(source))
    return _workload(str(source), {"name": path.stem, **read_yaml(path)}, overrides)


def _finished(path: Path) -> dict[str, Any]:
    """The spec of a finished trace, named as its file is without the ending."""
    name = path.name.split(".jsonl")[0].removesuffix(".parquet")
    return {"name": name, "family": "finished", "file": str(path)}


def _spec_file(source: str) -> Path:
    if source in ready():
        return SPECS / f"{source}.yaml"
    path = Path(source)
    if not path.is_file():
        hint = "the file is not there" if path.suffix else did_you_mean(source, ready())
        raise BadInput(f"{source}: no such workload; {hint}")
    return path


def _workload(place: str, spec: Mapping[str, Any], overrides: Mapping[str, Any]) -> Family:
    data = deepcopy(dict(spec))
    for key, value in overrides.items():
        _override(place, data, key, value)
    family = _family(place, data.get("family"))
    try:
        return family.model_validate(data)
    except ValidationError as error:
        raise BadInput(f"{place}: {_first_problem(error, data)}") from None


# -- overrides ---------------------------------------------------------------------------------------------


def _override(place: str, data: dict[str, Any], key: str, value: Any) -> None:
    *path, last = (int(part) if part.isdigit() else part for part in str(key).split("."))
    node: Any = data
    try:
        for part in path:
            node = node.setdefault(part, {}) if isinstance(node, dict) else node[part]
        node[last] = value
    except (TypeError, IndexError):
        raise BadInput(
            f"{place}: cannot override {key!r}: the spec has nothing that holds it; override the whole of "
            f"{str(key).split('.')[0]!r}"
        ) from None


# -- families ----------------------------------------------------------------------------------------------


def families() -> dict[str, type[Family]]:
    """The families of the package by name: every module of it that defines one."""
    names = (module.name for module in pkgutil.iter_modules(workloads.__path__))
    return {name: found for name in names if (found := _family_named(name))}


def _family(place: str, name: Any) -> type[Family]:
    if isinstance(name, str) and name.endswith(".py"):
        return _family_at(place, Path(name))
    if not isinstance(name, str):
        raise BadInput(f"{place}: family: give one of {', '.join(families())}, or the path of a .py file")
    found = _family_named(name)
    if found is None:
        raise BadInput(f"{place}: family: no family {name!r}; {did_you_mean(name, families())}")
    return found


def _family_named(name: str) -> type[Family] | None:
    here = name in (module.name for module in pkgutil.iter_modules(workloads.__path__))
    return _family_in(importlib.import_module(f"workloads.{name}")) if here else None


def _family_at(place: str, path: Path) -> type[Family]:
    name = f"workload_family_{sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise BadInput(f"{place}: family: no such file: {path}")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise BadInput(f"{place}: family: {path} fails to load: {type(error).__name__}: {error}") from error
    found = _family_in(module)
    if found is None:
        raise BadInput(f"{place}: family: {path} defines no concrete subclass of workloads.family.Family")
    return found


def _family_in(module: ModuleType) -> type[Family] | None:
    classes: list[type] = [found for found in vars(module).values() if inspect.isclass(found)]
    for found in classes:
        own = found.__module__ == module.__name__ and not inspect.isabstract(found)
        if own and issubclass(found, Family):
            return found
    return None


# -- errors ------------------------------------------------------------------------------------------------


def _first_problem(error: ValidationError, data: Any) -> str:
    """The first problem in one line: the field as the spec spells it, what is wrong, and the mend."""
    first = error.errors(include_url=False)[0]
    field = _field(first["loc"], data)
    if first["type"] == "missing":
        field = ".".join(filter(None, (field, str(first["loc"][-1]))))
    if first["type"] == "union_tag_invalid":
        tag, known = first["ctx"]["tag"], first["ctx"]["expected_tags"].replace("'", "").split(", ")
        return f"{field}: no kind {tag!r}; {did_you_mean(tag, known)}"
    return f"{field}: {said(first)}".removeprefix(": ")


def _field(location: tuple[int | str, ...], data: Any) -> str:
    """The dotted path of a location; the names of union members, which a spec does not show, are left out."""
    path = []
    for part in location:
        with suppress(TypeError, KeyError, IndexError):
            data = data[part]
            path.append(str(part))
    return ".".join(path)
