"""Checking foreign data with pydantic, and telling the first problem on one line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from suite.errors import BadInput, did_you_mean

Model = TypeVar("Model", bound=BaseModel)


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


def assignments(texts: Iterable[str]) -> dict[str, Any]:
    """Keys and values of "key=value" texts. A value is read as YAML: 2, 0.5, true and [1, 2] are no texts."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (equals and key.strip()):
            raise BadInput(f"{text!r}: not an assignment; write KEY=VALUE")
        found[key.strip()] = _value(value)
    return found


def read_yaml(path: Path) -> Mapping[str, Any]:
    """The mapping a YAML file holds. Raises `BadInput` naming the file and, if it is no YAML, the line."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read: {error}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadInput(f"{path}:{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise BadInput(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path}: must hold `key: value` lines")
    return content


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _first_problem(model: type[BaseModel], error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])  # a typo, most likely
    spot = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _keys(model, first["loc"][:-1])
        return f"{spot}: unknown key; {did_you_mean(str(first['loc'][-1]), known) if known else 'drop it'}"
    if first["type"] == "missing":
        return f"{spot}: missing; give it a value"
    if first["type"] == "value_error":
        return f"{spot}: {first['ctx']['error']}".removeprefix(": ")
    return f"{spot}: {first['msg']} (got {str(first['input'])[:60]!r})"


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
