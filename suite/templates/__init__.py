"""Files that a user begins with, made from templates."""

from __future__ import annotations

import keyword
import re
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from suite.errors import BadInput
from suite.files import writing
from suite.plugins import Kind
from suite.policies import ROUTERS, SCHEDULERS


def scheduler(path: Path, cls: str | None = None) -> str:
    """Write a commented scheduler to `path`, which must not exist, and return the name of its class.

    Without `cls` the class is named after the file: my_idea.py holds MyIdea. Raises `BadInput` if the file
    is there already, or a name cannot be used.
    """
    return _written(SCHEDULERS, path, cls)


def router(path: Path, cls: str | None = None) -> str:
    """`scheduler` for a router."""
    return _written(ROUTERS, path, cls)


def _written(kind: Kind[Any], path: Path, cls: str | None) -> str:
    example = f"my_{'idea' if kind is SCHEDULERS else 'router'}.py"
    if path.suffix != ".py" or not path.stem.isidentifier():
        raise BadInput(f"{path}: a {kind.word} is a Python file with a name such as {example}; name it so")
    name = path.stem.replace("_", "-").lower()
    for taken in SCHEDULERS, ROUTERS:
        if name in taken.available():
            raise BadInput(f"{path}: there is a {taken.word} {name!r} already; name the file otherwise")
    cls = cls or _class_name(path)
    if not cls.isidentifier() or keyword.iskeyword(cls) or cls == kind.base.__name__:
        raise BadInput(f"{path}: {cls!r} cannot be the name of its class; give another with --class")
    text = Template((files("suite") / "templates" / f"{kind.word}.py.txt").read_text(encoding="utf-8"))
    _create(path, text.substitute(cls=cls, name=name, path=path.name))
    return cls


def _class_name(path: Path) -> str:
    return "".join(word[:1].upper() + word[1:] for word in re.split(r"[\W_]+", path.stem))


def _create(path: Path, content: str) -> None:
    """Write a file that is not there yet, whatever happens meanwhile."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(content)
        except FileExistsError:
            raise BadInput(f"{path}: is there already; choose another name, or remove it") from None
