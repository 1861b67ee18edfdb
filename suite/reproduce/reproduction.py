"""What a reproduction is, and where it is found: one class in one module of this package."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from matplotlib.figure import Figure

from suite import reproduce
from suite.errors import BadInput, did_you_mean
from suite.report.experiment import Experiment
from suite.reproduce.values import Table


@dataclass(frozen=True)
class Comparison:
    """The paper's values beside ours."""

    tables: tuple[Table, ...]
    findings: tuple[str, ...]
    """What agrees and what does not, as sentences made from the numbers."""
    figure: Figure
    reading: str
    """How to read the figure."""


class Reproduction(ABC):
    """One figure or table of a paper, made again.

    A subclass in a module of `suite.reproduce` is found by looking. Its texts are Markdown.
    """

    name: ClassVar[str]
    """As it is called on the command line; also the folder of its results."""
    title: ClassVar[str]
    shows: ClassVar[str]
    """What the paper shows, and where the paper's values come from."""
    assumptions: ClassVar[str]
    """What was fixed before the run: model, GPU, what the paper does not say."""
    notes: ClassVar[str] = ""
    """Anything else worth keeping, such as earlier attempts."""
    experiments: ClassVar[tuple[str, ...]]
    """The ready experiments it needs, by name."""
    files: ClassVar[tuple[str, ...]] = ()
    """Public files it reads, as `workloads.reading.recorded.located` finds them."""

    @abstractmethod
    def compare(self, runs: Mapping[str, Experiment]) -> Comparison:
        """Compare the finished `experiments`, by name, with the paper. Called inside `style.styled`."""


def available() -> dict[str, Reproduction]:
    """All reproductions by name, sorted."""
    names = (module.name for module in pkgutil.iter_modules(reproduce.__path__))
    modules = [importlib.import_module(f"{reproduce.__name__}.{name}") for name in names]
    classes = [found for module in modules for found in vars(module).values() if inspect.isclass(found)]
    concrete = [c for c in classes if issubclass(c, Reproduction) and not inspect.isabstract(c)]
    return {c.name: c() for c in sorted(concrete, key=lambda c: c.name)}


def chosen(name: str) -> list[Reproduction]:
    """The reproduction of that name, or all of them. Raises `BadInput` for an unknown name."""
    known = available()
    if name == "all":
        return list(known.values())
    if name not in known:
        raise BadInput(f"no reproduction {name!r}; {did_you_mean(name, ['all', *known])}")
    return [known[name]]
