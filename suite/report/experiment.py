"""The experiment folder: `experiment.json` and the run folders below `cells/`, ordered for reading."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from suite import results
from suite.errors import BadInput
from suite.metrics.goodput import Slo
from suite.results import Manifest, Run

ORDER = ("fcfs", "lpm", "lpm-fallback", "preble-groups", "vtc", "dlpm")
"""Schedulers in the order in which they are shown, each alone, then behind routers; others follow by name."""

Key: TypeAlias = tuple[int, str, list[tuple[int, float | str]]]


@dataclass(frozen=True)
class Cell:
    """One run folder of an experiment. Frames are read when asked for, and not kept."""

    folder: Path
    manifest: Manifest

    @property
    def labels(self) -> dict[str, Any]:
        """Coordinates of the run: workload, scheduler, policy, seed, swept keys."""
        return self.manifest.labels

    @property
    def setting(self) -> str:
        """What the schedulers were compared under, see `setting_of`."""
        return setting_of(self.labels)

    @property
    def scheduler(self) -> str:
        """The scheduler as shown, parameters included."""
        return str(self.labels["scheduler"])

    def run(self) -> Run:
        """Read the run."""
        return results.read(self.folder)


@dataclass(frozen=True)
class Failure:
    """A cell that failed and is not finished: its folder's name, its labels, and why."""

    cell: str
    labels: dict[str, Any]
    reason: str

    @property
    def setting(self) -> str:
        """As of a `Cell`."""
        return setting_of(self.labels)

    @property
    def scheduler(self) -> str:
        """As of a `Cell`."""
        return str(self.labels["scheduler"])

    @property
    def seed(self) -> int:
        """The seed it failed under."""
        return int(self.labels["seed"])


@dataclass(frozen=True)
class Experiment:
    """A folder that `suite run` has written: its name, the command that made it, its cells in order, the
    latency goal it was given, if any, and the cells that failed.
    """

    folder: Path
    name: str
    command: str
    cells: tuple[Cell, ...]
    slo: Slo | None = None
    failed: tuple[Failure, ...] = ()

    @cached_property
    def settings(self) -> tuple[str, ...]:
        """The settings in the order of the cells."""
        return tuple(dict.fromkeys(cell.setting for cell in self.cells))

    @property
    def schedulers(self) -> tuple[str, ...]:
        """The schedulers as shown, in the order of the cells; then those whose every cell failed."""
        failed = (failure.scheduler for failure in self.failed)
        return tuple(dict.fromkeys((*(cell.scheduler for cell in self.cells), *failed)))

    def only(self, names: Collection[str]) -> Self:
        """The experiment with no other cells, finished or failed, than those of these folder names."""
        cells = tuple(cell for cell in self.cells if cell.folder.name in names)
        return replace(self, cells=cells, failed=tuple(one for one in self.failed if one.cell in names))

    def by_scheduler(self, setting: str) -> dict[str, list[Cell]]:
        """The cells of a setting by scheduler, schedulers in reading order."""
        found: dict[str, list[Cell]] = {}
        for cell in self.cells:
            if cell.setting == setting:
                found.setdefault(cell.scheduler, []).append(cell)
        order = {name: reading_order(cells[0].labels["policy"], name) for name, cells in found.items()}
        return {name: found[name] for name in sorted(found, key=order.__getitem__)}

    def first_seed(self, setting: str) -> list[Cell]:
        """One cell per scheduler of the setting, that of its first seed, schedulers in reading order."""
        return [cells[0] for cells in self.by_scheduler(setting).values()]


def setting_of(labels: Mapping[str, Any], without: str = "") -> str:
    """What schedulers are compared under: the workload, the backend if there are several, and what was swept
    of the two. The swept key `without` is left out.
    """
    swept = [
        f"{key.partition('.')[2] or key}={value}"
        for key, value in labels.items()
        if key != without and (key == "backend" or key.startswith(("workload.", "backend.")))
    ]
    return ", ".join([str(labels["workload"]), *swept])


def reading_order(policy: str, scheduler: str) -> Key:
    """Sort key of a scheduler: known ones first, then by name; numbers in parameters by size."""
    parts = re.split(r"(\d+(?:\.\d+)?)", scheduler)
    natural: list[tuple[int, float | str]] = [(0, float(p)) if i % 2 else (1, p) for i, p in enumerate(parts)]
    router, _, own = policy.rpartition("+")
    place = ORDER.index(own) if own in ORDER else len(ORDER)
    return (2 * place + bool(router), policy, natural)


class _Index(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    command: str
    cells: list[str]
    slo: Slo | None = None
    failed: list[Failure] = []


def load(folder: Path) -> Experiment:
    """Read the index and all manifests. Raises `BadInput` naming what is missing or damaged."""
    path, index = folder / "experiment.json", _index(folder)
    if not index.cells:
        raise BadInput(f"{path}: lists no finished cell; run the experiment again to finish some")
    cells = tuple(_cell(folder / "cells" / name) for name in index.cells)
    for failure in index.failed:
        _check(failure.labels, path)
    return Experiment(folder, index.name, index.command, cells, index.slo, tuple(index.failed))


def failures(folder: Path) -> list[Failure]:
    """The cells that the index lists as failed. Raises `BadInput` if there is no index that can be read."""
    return _index(folder).failed


def _index(folder: Path) -> _Index:
    path = folder / "experiment.json"
    try:
        return _Index.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{folder}: not an experiment folder: {path.name} is missing") from None
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not an index of an experiment: {str(error).splitlines()[0]}") from None


def _cell(folder: Path) -> Cell:
    manifest = results.read_manifest(folder)
    _check(manifest.labels, folder / "manifest.json")
    return Cell(folder, manifest)


def _check(labels: Mapping[str, Any], path: Path) -> None:
    """Raises `BadInput` naming the file if labels lack what every cell has."""
    missing = {"workload", "scheduler", "policy", "seed"} - set(labels)
    if missing:
        raise BadInput(f"{path}: labels miss {', '.join(sorted(missing))}")
