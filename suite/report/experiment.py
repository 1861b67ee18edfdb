"""The experiment folder: `experiment.json` and the run folders below `cells/`, ordered for reading."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from suite import results
from suite.errors import BadInput
from suite.results import Manifest, Run

ORDER = ("fcfs", "lpm", "lpm-fallback", "vtc", "dlpm")
"""Policies in the order in which they are shown; others follow by name."""

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
        """What the schedulers were compared under: the workload, the backend if there are several, and what
        was swept of the two.
        """
        swept = [
            f"{key.partition('.')[2] or key}={value}"
            for key, value in self.labels.items()
            if key == "backend" or key.startswith(("workload.", "backend."))
        ]
        return ", ".join([str(self.labels["workload"]), *swept])

    @property
    def scheduler(self) -> str:
        """The scheduler as shown, parameters included."""
        return str(self.labels["scheduler"])

    def run(self) -> Run:
        """Read the run."""
        return results.read(self.folder)


@dataclass(frozen=True)
class Experiment:
    """A folder that `suite run` has written: its name, the command that made it, its cells in order."""

    folder: Path
    name: str
    command: str
    cells: tuple[Cell, ...]

    @cached_property
    def settings(self) -> tuple[str, ...]:
        """The settings in the order of the cells."""
        return tuple(dict.fromkeys(cell.setting for cell in self.cells))

    def first_seed(self, setting: str) -> list[Cell]:
        """One cell per scheduler of the setting, that of its first seed, schedulers in reading order."""
        found: dict[str, Cell] = {}
        for cell in self.cells:
            if cell.setting == setting:
                found.setdefault(cell.scheduler, cell)
        return sorted(found.values(), key=lambda cell: reading_order(cell.labels["policy"], cell.scheduler))


def reading_order(policy: str, scheduler: str) -> Key:
    """Sort key of a scheduler: known policies first, then by name; numbers in parameters by size."""
    parts = re.split(r"(\d+(?:\.\d+)?)", scheduler)
    natural: list[tuple[int, float | str]] = [(0, float(p)) if i % 2 else (1, p) for i, p in enumerate(parts)]
    return (ORDER.index(policy) if policy in ORDER else len(ORDER), policy, natural)


class _Index(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    command: str
    cells: list[str]


def load(folder: Path) -> Experiment:
    """Read the index and all manifests. Raises `BadInput` naming what is missing or damaged."""
    path = folder / "experiment.json"
    try:
        index = _Index.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{folder}: not an experiment folder: {path.name} is missing") from None
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not an index of an experiment: {str(error).splitlines()[0]}") from None
    if not index.cells:
        raise BadInput(f"{path}: lists no finished cell; run the experiment again to finish some")
    cells = tuple(_cell(folder / "cells" / name) for name in index.cells)
    return Experiment(folder, index.name, index.command, cells)


def _cell(folder: Path) -> Cell:
    manifest = results.read_manifest(folder)
    missing = {"workload", "scheduler", "policy", "seed"} - set(manifest.labels)
    if missing:
        raise BadInput(f"{folder / 'manifest.json'}: labels miss {', '.join(sorted(missing))}")
    return Cell(folder, manifest)
