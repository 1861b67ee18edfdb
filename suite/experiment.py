"""The experiment file: workloads x schedulers x sweeps x seeds on one backend, resolved into cells.

    name: quickstart
    workloads: [chat, my.yaml, {spec: chat, load: 2}]   # names, paths, ready traces, or specs in place
    schedulers: [fcfs, "dlpm:quantum=2000", d2lpm+dlpm] # as in `suite.policies.parse`
    backend: {kind: simulator, gpu: a10g}               # or a list: each of them, named by its kind or `name`
    seeds: [0, 1]                                       # or how many
    sweep: {workload.load: [1, 2], dlpm.quantum: [1000, 2000], backend.max_running: [64, 256]}
    slo: {ttft: 5, tpot: 0.2}                           # seconds; judged afterwards, no part of any cell

Every path is taken from the working directory. A finished trace that no seed changes makes cells for the
first seed alone. A sweep's key begins with `workload`, `backend` or the name of a scheduler or a router;
their parameters are swept for them alone.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

import suite
from suite.backends.base import Backend
from suite.backends.kinds import backend_of, runs_on
from suite.errors import BadInput, did_you_mean
from suite.fingerprint import files_digest, sources_digest
from suite.metrics.goodput import Slo
from suite.plugins import Plugin, shown
from suite.policies import SchedulerSpec, parse
from suite.trace import Trace
from suite.validation import at, read_yaml, validated
from workloads import spec as workload_spec
from workloads.finished import Finished

_READY = Path(str(files("suite"))) / "experiments"

_MOST_SEEDS = 1000
"""More than anybody runs; a slip of the finger is told instead of filling the memory."""


@dataclass(frozen=True)
class Cell:
    """One run: plain data that travels to other processes and says all there is to know to repeat it.

    `source` and `overrides` go to `workloads.spec.load`. `labels` are its coordinates (workload, scheduler,
    policy, seed, swept keys), `slug` the name of its folder.
    """

    source: str | dict[str, Any]
    overrides: dict[str, Any]
    scheduler: SchedulerSpec
    settings: dict[str, Any]
    seed: int
    labels: dict[str, Any]
    slug: str

    @property
    def trace_key(self) -> str:
        """What `generate` makes the cell's trace from; cells with equal keys replay the same one."""
        return json.dumps([self.source, self.overrides, self.seed], sort_keys=True)

    def backend(self) -> Backend:
        """The backend that serves it."""
        return cast(Backend, backend_of(self.settings))

    @property
    def exclusive(self) -> bool:
        """True if it measures real time and so needs the machine to itself."""
        return self.backend().exclusive

    def digest(self, trace: str) -> str:
        """SHA-256 of all that decides the outcome, given the digest of the cell's trace."""
        decisive = {
            "trace": trace,
            "scheduler": _identity(self.scheduler),
            "router": self.scheduler.router and _identity(self.scheduler.router),
            "backend": [self.settings, files_digest(backend_of(self.settings))],
            "seed": self.seed,
            "suite": [suite.__version__, sources_digest()],
        }
        return sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _identity(plugin: Plugin) -> list[Any]:
    """What decides what it does; where the file of a class lies does not."""
    name = plugin.target.rpartition(":")[2] if plugin.source_digest else plugin.target
    return [name, plugin.source_digest, plugin.full_parameters]


@lru_cache(maxsize=2)
def generate(trace_key: str) -> Trace:
    """The trace of a cell. The last ones are kept: the next cell is likely to replay one of them."""
    source, overrides, seed = json.loads(trace_key)
    return workload_spec.load(source, overrides).generate(seed)


@dataclass(frozen=True)
class Experiment:
    """A name and the cells to run, in order. `varied` is true if they are not just what a file says.

    `slo` is the service level that the report counts goodput under.
    """

    name: str
    cells: tuple[Cell, ...]
    slo: Slo | None = None
    varied: bool = False

    @property
    def folder(self) -> str:
        """The name of its folder: the same for the same cells, and for a variation never the file's own."""
        labels = json.dumps([cell.labels for cell in self.cells], sort_keys=True)
        return f"{self.name}-{sha256(labels.encode()).hexdigest()[:6]}" if self.varied else self.name

    @property
    def schedulers(self) -> list[str]:
        """The schedulers as shown, in order."""
        return list(dict.fromkeys(str(cell.labels["scheduler"]) for cell in self.cells))

    @property
    def seeds(self) -> list[int]:
        """The seeds, in order."""
        return list(dict.fromkeys(cell.seed for cell in self.cells))


def load(
    source: str | None = None,
    *,
    workloads: Sequence[str] = (),
    schedulers: Sequence[str] = (),
    candidates: Sequence[str] = (),
    seeds: Sequence[int] = (),
    sweep: Mapping[str, Any] = MappingProxyType({}),
) -> Experiment:
    """The experiment in a file or of a ready name, or, without one, the experiment the other arguments make.

    Where given, `workloads`, `schedulers` and `seeds` replace the file's; `sweep` adds to its sweep or
    replaces there. `candidates` are schedulers beside the file's own; they make no variation of it, so that
    its cells are shared. Raises `BadInput` naming the file and the field.
    """
    if source is None and not (workloads and schedulers):
        raise BadInput(
            f"give an experiment (ready: {', '.join(ready())}), or at least one workload and one scheduler"
        )
    path = _find(source) if source is not None else None
    given = {"workloads": list(workloads), "schedulers": list(schedulers), "seeds": list(seeds)}
    content = {**(read_yaml(path) if path else {"name": "adhoc"}), **{k: v for k, v in given.items() if v}}
    if isinstance(content.setdefault("sweep", {}), dict):
        content["sweep"] = {**content["sweep"], **sweep}
    varied = path is None or any((workloads, schedulers, seeds, sweep))
    with at(str(path or "command line")):
        file = validated(_File, content)
        return replace(file.beside(candidates).experiment(), varied=varied)


def ready() -> list[str]:
    """The names of the experiments that come with the suite."""
    return sorted(path.stem for path in _READY.glob("*.yaml"))


def _find(source: str) -> Path:
    if source in ready():
        return _READY / f"{source}.yaml"
    if Path(source).is_dir():
        raise BadInput(
            f"{source}: a folder, not an experiment; give a YAML file (ready: {', '.join(ready())})"
        )
    if not Path(source).is_file():
        hint = "no such file" if Path(source).suffix else did_you_mean(source, ready())
        raise BadInput(f"{source}: not an experiment; {hint}")
    return Path(source)


# -- the file --------------------------------------------------------------------------------------------


def _entry(value: Any) -> Any:
    if not isinstance(value, str | dict):
        raise ValueError(f"write a name, a path or a mapping, not {value!r}")
    return value


def _settings(value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"write a mapping such as {{kind: simulator}}, not {value!r}")
    return value


def _count_or_list(value: Any) -> Any:
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if not 1 <= value <= _MOST_SEEDS:
        raise ValueError(f"a count of seeds is at least 1 and at most {_MOST_SEEDS:,}; or list them: [0, 1]")
    return list(range(value))


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


_Entries = Annotated[list[Annotated[Any, AfterValidator(_entry)]], Field(min_length=1)]
_Settings = Annotated[dict[str, Any], BeforeValidator(_settings)]
_Seed = Annotated[int, Field(ge=0, strict=True)]
_Axis = Annotated[list[Any], BeforeValidator(_listed), Field(min_length=1)]


@dataclass(frozen=True)
class _Variant:
    """One point of one part of the experiment: what it is, and its coordinates in the sweep.

    `seeds` are those that make a difference to it; None where all do.
    """

    part: Any
    axes: dict[str, Any]
    seeds: list[int] | None = None


class _File(BaseModel):
    """The content of an experiment file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^\w[\w.-]{0,99}$")]
    workloads: _Entries
    schedulers: _Entries
    backend: Annotated[list[_Settings], BeforeValidator(_listed), Field(min_length=1)] = Field(
        default_factory=lambda: [{"kind": "simulator"}]
    )
    seeds: Annotated[list[_Seed], BeforeValidator(_count_or_list), Field(min_length=1)] = [0]
    sweep: dict[str, _Axis] = Field(default_factory=dict)
    slo: Slo | None = None

    def beside(self, candidates: Iterable[str]) -> _File:
        """The same with these schedulers too, where it does not have them already."""
        own = {variant.part.label for variant in self._schedulers()}
        labels = {parse(candidate).label: candidate for candidate in candidates}
        new = [candidate for label, candidate in labels.items() if label not in own]
        return self.model_copy(update={"schedulers": [*self.schedulers, *new]})

    def experiment(self) -> Experiment:
        """All cells, each checked as far as can be without generating a trace."""
        schedulers, workloads = list(self._schedulers()), list(self._workloads())
        backends = list(self._backends())
        self._check_axes([variant.part for variant in schedulers])
        for spec in (variant.part for variant in schedulers):
            if not any(runs_on(spec, backend.part) for backend in backends):
                router = f", its router {spec.router.place}" if spec.router else ""
                raise BadInput(f"scheduler {spec.label!r}: {spec.place}{router}; no backend here fits")
        cells = (
            _cell(workload, backend, seed, scheduler)
            for workload, backend in itertools.product(workloads, backends)
            for seed, scheduler in itertools.product(workload.seeds or self.seeds, schedulers)
            if runs_on(scheduler.part, backend.part)
        )
        return Experiment(self.name, tuple(_with_slugs(cells)), self.slo)

    def _workloads(self) -> Iterator[_Variant]:
        for i, entry in enumerate(self.workloads):
            source, fixed = _source(entry)
            for axes in self._points("workload"):
                overrides = {**fixed, **_stripped(axes, "workload")}
                with at(f"workloads[{i}]"):
                    found = workload_spec.load(source, overrides)
                seeds = self.seeds[:1] if isinstance(found, Finished) and found.fixed else None
                yield _Variant((_workload_label(found.name, fixed), source, overrides), axes, seeds)

    def _backends(self) -> Iterator[_Variant]:
        for i, given in enumerate(self.backend):
            own = {key: value for key, value in given.items() if key != "name"}
            place = "backend" if len(self.backend) == 1 else f"backend[{i}]"
            named = "name" in given or len(self.backend) > 1
            label = {"backend": str(given.get("name", given.get("kind")))} if named else {}
            for axes in self._points("backend"):
                settings = _overridden(own, _stripped(axes, "backend"))
                with at(place):
                    yield _Variant(backend_of(settings).model_dump(mode="json"), {**label, **axes})

    def _schedulers(self) -> Iterator[_Variant]:
        for i, entry in enumerate(self.schedulers):
            with at(f"schedulers[{i}]"):
                spec = parse(entry)
            for axes in self._points(*_names(spec)):
                with at("sweep"):
                    yield _Variant(_with_axes(spec, axes), axes)

    def _points(self, *heads: str) -> Iterator[dict[str, Any]]:
        """Every combination of the axes whose key begins with one of the heads."""
        beginnings = tuple(f"{head}." for head in heads)
        axes = {key: values for key, values in self.sweep.items() if key.startswith(beginnings)}
        for values in itertools.product(*axes.values()):
            yield dict(zip(axes, values, strict=True))

    def _check_axes(self, schedulers: Iterable[SchedulerSpec]) -> None:
        heads = {"workload", "backend", *itertools.chain(*map(_names, schedulers))}
        for key in self.sweep:
            if not any(key.startswith(f"{head}.") for head in heads):
                head, dot, _ = key.partition(".")
                if not dot:
                    raise BadInput(f"sweep.{key}: a key is WHAT.PARAMETER, such as workload.load")
                hint = did_you_mean(head, heads)
                raise BadInput(f"sweep.{key}: nothing here to sweep; {hint} (a key is WHAT.PARAMETER)")


def _names(scheduler: SchedulerSpec) -> tuple[str, ...]:
    """The names by which a scheduler's own parameters and its router's are swept."""
    return (scheduler.router.name, scheduler.name) if scheduler.router else (scheduler.name,)


def _with_axes(scheduler: SchedulerSpec, axes: Mapping[str, Any]) -> SchedulerSpec:
    own = scheduler.with_parameters(_stripped(axes, scheduler.name))
    if own.router is None:
        return own
    return replace(own, router=own.router.with_parameters(_stripped(axes, own.router.name)))


def _source(entry: str | dict[str, Any]) -> tuple[str | dict[str, Any], dict[str, Any]]:
    """Source and overrides of a workload entry: {spec: chat, load: 2} is chat with another load."""
    if isinstance(entry, dict) and "spec" in entry:
        return str(entry["spec"]), {key: value for key, value in entry.items() if key != "spec"}
    return entry, {}


def _workload_label(name: str, overrides: Mapping[str, Any]) -> str:
    """The name it was given, or its spec's name and what is different."""
    if not overrides or "name" in overrides:
        return name
    return f"{name}:{','.join(f'{key}={shown(value)}' for key, value in overrides.items())}"


def _stripped(axes: Mapping[str, Any], head: str) -> dict[str, Any]:
    """Those of the axes whose key begins with `head`, without it."""
    mine = f"{head}."
    return {key.removeprefix(mine): value for key, value in axes.items() if key.startswith(mine)}


def _overridden(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with dotted keys set inside them."""
    result: dict[str, Any] = dict(settings)
    for key, value in overrides.items():
        head, _, rest = key.partition(".")
        inner = result.get(head)
        result[head] = _overridden(inner if isinstance(inner, dict) else {}, {rest: value}) if rest else value
    return result


# -- cells -----------------------------------------------------------------------------------------------


def _cell(workload: _Variant, backend: _Variant, seed: int, scheduler: _Variant) -> Cell:
    name, source, overrides = workload.part
    axes = {**workload.axes, **backend.axes, **scheduler.axes}
    labels = {
        "workload": name,
        "scheduler": scheduler.part.label,
        "policy": scheduler.part.policy,
        "seed": seed,
        **{key: value if isinstance(value, int | float | str) else str(value) for key, value in axes.items()},
    }
    swept = [f"{key}={shown(value)}" for key, value in {**workload.axes, **backend.axes}.items()]
    parts = [name, *swept, scheduler.part.label, f"seed={seed}"]
    slug = "_".join(re.sub(r"[^A-Za-z0-9_.=,+-]+", "-", part) for part in parts)[:150]
    return Cell(source, overrides, scheduler.part, backend.part, seed, labels, slug.lstrip("."))


def _with_slugs(cells: Iterable[Cell]) -> Iterator[Cell]:
    """The cells, each with a slug of its own. Raises `BadInput` if two cannot be told apart."""
    seen: set[str] = set()
    slugs: Counter[str] = Counter()
    for cell in cells:
        coordinates = json.dumps(cell.labels, sort_keys=True)
        if coordinates in seen:
            what = f"workload {cell.labels['workload']!r} under scheduler {cell.labels['scheduler']!r}"
            if "backend" in cell.labels:
                what += f" on backend {cell.labels['backend']!r}"
            raise BadInput(f"{what} stands twice; drop one, or give it another name")
        seen.add(coordinates)
        slugs[cell.slug] += 1
        number = slugs[cell.slug]
        yield cell if number == 1 else replace(cell, slug=f"{cell.slug}_({number})")
