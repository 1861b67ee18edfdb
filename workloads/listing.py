"""What workloads there are, a line each: ready specs and families, by where their requests come from."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from inspect import getdoc
from typing import NamedTuple

from suite.validation import read_yaml
from workloads import spec
from workloads.family import Family
from workloads.finished import Finished
from workloads.reading.hub import HubRows
from workloads.reading.recorded import Recorded

KINDS = ("synthetic", "recorded", "hub")
"""Made up from parameters; recorded by somebody in a file; rows of a data set on the hub, or a copy of it."""


class Entry(NamedTuple):
    """A ready spec or a family. `licence` is that of the data it reads."""

    kind: str
    name: str
    what: str
    licence: str


def ready_entries() -> list[Entry]:
    """The ready specs, by kind and name. What each is, its first comment says."""
    found = []
    known = spec.families()
    for name in spec.ready():
        path = spec.SPECS / f"{name}.yaml"
        parameters = read_yaml(path)
        entry = _entry(name, known[str(parameters["family"])], " ".join(_comment(path.read_text("utf-8"))))
        found.append(entry._replace(licence=str(parameters.get("licence", entry.licence))))
    return _grouped(found)


def family_entries() -> list[Entry]:
    """The families that a spec can name, by kind and name. What each is, its module says."""
    return _grouped(
        [
            _entry(name, family, getdoc(sys.modules[family.__module__]) or "")
            for name, family in spec.families().items()
        ]
    )


def _entry(name: str, family: type[Family], text: str) -> Entry:
    licence = getattr(family, "LICENCE", "") + (", gated" if getattr(family, "GATED", False) else "")
    return Entry(_kind(family), name, _first_sentence(text), licence)


def _grouped(entries: list[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: (KINDS.index(entry.kind), entry.name))


def _kind(family: type[Family]) -> str:
    if issubclass(family, HubRows):
        return "hub"
    return "recorded" if issubclass(family, Recorded | Finished) else "synthetic"


def _comment(text: str) -> Iterator[str]:
    """The lines of comment that a file begins with."""
    for line in text.splitlines():
        if not line.startswith("#"):
            return
        yield line.removeprefix("#").strip()


def _first_sentence(text: str) -> str:
    """Up to the first full stop before a new sentence, or the first paragraph, without the stop."""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    words = paragraph.split(". ")
    sentence = words[0]
    for word in words[1:]:
        if word[:1].isupper():
            break
        sentence += f". {word}"
    return sentence.removesuffix(".")
