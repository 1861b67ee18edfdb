"""Checking foreign data with pydantic, and telling the first problem on one line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from suite.errors import BadInput, did_you_mean

Model = TypeVar("Model", bound=BaseModel)

_UNREADABLE = (ValueError, LookupError, AttributeError)
"""What PyYAML raises, besides its own errors, for `2024-13-45`, `!!bool maybe` or `!!timestamp soon`."""


_NO_MAPPING = ("dict_type", "model_type", "model_attributes_type")
"""What pydantic calls it where something else stands than `key: value` lines."""


@contextmanager
def at(place: str) -> Iterator[None]:
    """Put `place` in front of the message of any `BadInput` raised inside."""
    try:
        yield
    except BadInput as error:
        raise BadInput(f"{place}: {error}") from None


def validated(model: type[Model], data: Mapping[str, Any]) -> Model:
    """The data as an instance of `model`.

    Raises `BadInput` "field.path: problem; mend" for the first problem. An unknown key is answered with the
    nearest known one.
    """
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        raise BadInput(_first_problem(model, error)) from None


def first_problem(error: ValidationError) -> str:
    """The first problem of a row or record: its field, what is wrong with it, and what stands there."""
    first = error.errors(include_url=False)[0]
    return f"{spot(first) or 'row'}: {said(first)}"


def spot(problem: ErrorDetails) -> str:
    """The dotted path of the field that has a problem; nothing for the whole."""
    return ".".join(str(part) for part in problem["loc"])


def said(problem: ErrorDetails) -> str:
    """What is wrong, and what stands there."""
    if problem["type"] == "missing":
        return "missing; give it a value"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    what = "input should be a mapping" if problem["type"] in _NO_MAPPING else problem["msg"]
    return f"{what[:1].lower()}{what[1:]} (got {str(problem['input'])[:60]!r})"


def assignments(texts: Iterable[str]) -> dict[str, Any]:
    """Keys and values of "key=value" texts. A value is read as YAML: 2, 0.5, true and [1, 2] are no texts."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (equals and key.strip()):
            raise BadInput(f"{text!r}: not an assignment; write KEY=VALUE")
        if key.strip() in found:
            raise BadInput(f"{key.strip()!r}: stands twice; drop one")
        found[key.strip()] = _value(value)
    return found


def read_yaml(path: Path) -> Mapping[str, Any]:
    """The mapping a YAML file holds. Raises `BadInput` naming the file and, if it is no YAML, the line."""
    try:
        content = _load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error}") from None
    except _UNREADABLE as error:
        raise BadInput(
            f"{path}: a value cannot be read: {str(error).partition(';')[0]}; mend it, or quote text"
        ) from None
    except RecursionError:
        raise BadInput(f"{path}: nested too deeply to be read; make it flatter") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadInput(f"{path}:{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise BadInput(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path}: must hold `key: value` lines")
    return content


def _value(text: str) -> Any:
    try:
        return _load(text)
    except _TwiceError as error:
        raise BadInput(f"{text[:60]!r}: {error.problem}") from None
    except (yaml.YAMLError, RecursionError, *_UNREADABLE):
        return text


class _TwiceError(yaml.MarkedYAMLError):
    """A mapping has a key twice."""


class _Loader(yaml.SafeLoader):
    """YAML as the suite reads it: no key stands twice in a mapping, and 1e3 is a number as in YAML 1.2."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise _TwiceError(
                        None, None, f"the key {key.value!r} stands twice; drop one", key.start_mark
                    )
                seen.add((key.tag, key.value))
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _load(text: str) -> Any:
    return yaml.load(text, _Loader)


def _first_problem(model: type[BaseModel], error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])  # a typo, most likely
    if first["type"] == "extra_forbidden":
        known = _keys(model, first["loc"][:-1])
        mend = did_you_mean(str(first["loc"][-1]), known) if known else "drop it"
        return f"{spot(first)}: unknown key; {mend}"
    return f"{spot(first)}: {said(first)}".removeprefix(": ")


def _keys(model: type[BaseModel], spot: tuple[int | str, ...]) -> list[str]:
    """The keys known at a place inside the model; none where the place is not plainly a model."""
    for part in spot:
        field = model.model_fields.get(str(part))
        if field is None or not (
            isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        ):
            return []
        model = field.annotation
    return list(model.model_fields)
