"""What the suite's scheduler costs inside an engine: beside the engine's own, and over long queues.

`suite.backends.vllm_bench` and `sglang_bench` measure, in their engine's environment; here their results
become tables. Absolute times hold for the machine and for what else it did; what is compared ran interleaved.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from rich.table import Column, Table

from suite import environments, models
from suite.backends.servers import packages, variables, wanted
from suite.environments import Environment
from suite.errors import BadInput
from suite.policies import parse
from suite.processes import Server, last_words

WARM_UP = 2
"""Runs of the real engine that are not counted: one of each arm."""

Say: TypeAlias = Callable[[str], None]
Found: TypeAlias = Mapping[str, Any]
Floats: TypeAlias = NDArray[np.float64]

_LOOK = 0.2
"""Seconds between two looks at what has been measured."""


@dataclass(frozen=True)
class Words:
    """An engine in the tables' words."""

    name: str
    policy: str
    """What both arms ran."""
    same: str
    """Why they decided alike, if that needs saying."""
    stock: str
    """What decides if the plugin does not."""


ENGINES = {
    "vllm": Words("vLLM", "FCFS", "", "vLLM's own FCFS"),
    "sglang": Words(
        "SGLang",
        "LPM",
        " All documents were cached from the beginning: SGLang's LPM else puts off requests that share one.",
        "SGLang's own LPM, which matches and sorts all that wait whenever it tries any, up to 128; beyond "
        "that it falls back to FCFS",
    ),
}


@dataclass(frozen=True)
class Job:
    """What is measured: `blocks` of four runs (stock, plugin, plugin, stock) of the real engine, each of
    `requests`; then, for each number of requests `waiting`, so many `steps` of every scheduler.
    """

    model: str = "mid"
    blocks: int = 6
    requests: int = 40
    waiting: tuple[int, ...] = (100, 1_000, 10_000)
    schedulers: tuple[str, ...] = ("fcfs", "lpm", "lpm-fallback", "vtc", "dlpm")
    steps: int = 200

    @property
    def parts(self) -> int:
        """How many results it gives."""
        return WARM_UP + 4 * self.blocks + len(self.waiting) * (1 + len(self.schedulers))

    def told(self) -> dict[str, Any]:
        """The job as `suite.backends.bench_driver` reads it."""
        model = models.model(self.model)
        return {
            **asdict(self),
            "model": model.path,
            "dtype": model.dtype,
            "vocabulary": model.vocabulary,
            "schedulers": {name: wanted(parse(name)) for name in self.schedulers},
        }


def engines(names: Sequence[str], say: Say) -> list[Table]:
    """Measure these engines, by default those installed for the CPU; `say` is told how far it is.

    Raises `BadInput` if an engine is not installed, or if it stops.
    """
    there = [environments.find(name, "cpu") for name in names or _installed()]
    job, tables = Job(), []
    for environment in there:
        words = ENGINES[environment.engine]
        runs, queues = measure(environment, job, say)
        what = f"{words.name} {environment.version}, model {job.model}"
        tables += [overhead(runs, what, words), decisions(queues, words)]
    return tables


def _installed() -> list[str]:
    """The engines that can be measured here; all, if there is none, so that the first is asked for."""
    there = {environment.engine for environment in environments.installed() if environment.device == "cpu"}
    return [name for name in ENGINES if name in there] or list(ENGINES)


def measure(environment: Environment, job: Job, say: Say) -> tuple[list[Found], list[Found]]:
    """Run a job; its "run" and its "queue" results, see `suite.backends.bench_driver`."""
    engine = environment.engine
    with TemporaryDirectory() as name, packages() as path:
        folder = Path(name)
        (folder / "job.json").write_text(json.dumps(job.told()), encoding="utf-8")
        command = [str(environment.python), "-m", f"suite.backends.{engine}_bench", name]
        own = {"PYTHONPATH": str(path), "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
        with Server(command, variables({**environment.variables, **own}), folder / "engine.log") as process:
            while process.alive() is None:
                say(f"{ENGINES[engine].name}: measured {len(_lines(folder))} of {job.parts}")
                time.sleep(_LOOK)
        lines = [json.loads(line) for line in _lines(folder)]
        if len(lines) < job.parts:
            raise BadInput(f"{engine} stopped: {last_words(process.log) or 'it did not say why'}")
    return [found for kind, found in lines if kind == "run"], [
        found for kind, found in lines if kind == "queue"
    ]


def _lines(folder: Path) -> list[str]:
    """The results so far."""
    file = folder / "measured.jsonl"
    return file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []


def _right(*names: str) -> Iterator[Column]:
    return (Column(name, justify="right") for name in names)


# -- beside the engine's own scheduler -----------------------------------------------------------------------


def overhead(runs: Sequence[Found], what: str, words: Words) -> Table:
    """The plugin beside the engine's own scheduler under one policy, by blocks of four runs.

    Raises `RuntimeError` if the two did not schedule the same tokens of the same requests in every step.
    """
    steps = _steps(runs)
    blocks = len(runs[WARM_UP:]) // 4
    seconds = _by_block(runs, "seconds")
    cpu = _by_block(runs, "cpu_ns") / steps / 1e3
    step = seconds / steps * 1e3
    rate = runs[0]["output_tokens"] / seconds
    more = cpu[1] - cpu[0]
    table = Table(
        "", *_right(f"{words.name}'s own", "plugin", "plugin beside it", "least and most of the blocks"),
        title=f"Overhead of the plugin, {what}, {blocks} blocks of runs A B B A with {steps} steps each",
        caption=f"Medians of the blocks; between the least and the most lies the true median with "
        f"{1 - 2 ** (1 - blocks):.0%}. Both arms ran {words.policy} in one engine and scheduled the same "
        f"tokens of the same requests in every step; the plugin wrote its logs.{words.same}",
    )  # fmt: skip
    table.add_row("scheduler's CPU time, us a step", *_medians(cpu, 0), *_median_and_range(more, "{:+.0f}"))
    table.add_row("that as a share of the step", "", "", *_median_and_range(more / 1e3 / step[0], "{:+.2%}"))
    table.add_row("step, ms", *_medians(step, 2), *_median_and_range(step[1] / step[0], "x {:.3f}"))
    table.add_row("output tokens/s", *_medians(rate, 0), *_median_and_range(rate[1] / rate[0], "x {:.3f}"))
    return table


def _steps(runs: Sequence[Found]) -> int:
    """How many steps each run took, which were the same."""
    first, *others = runs
    for run in others:
        for number, (one, other) in enumerate(zip_longest(first["schedule"], run["schedule"])):
            if one != other:
                raise RuntimeError(f"step {number}: {first['arm']} schedules {one}, {run['arm']} {other}")
    return len(first["schedule"])


def _by_block(runs: Sequence[Found], key: str) -> Floats:
    """Mean of the runs of each arm (stock, plugin; first axis) in each block (second axis)."""
    values = np.array([run[key] for run in runs[WARM_UP:]], dtype=float).reshape(-1, 4)
    return np.array([values[:, [0, 3]].mean(axis=1), values[:, [1, 2]].mean(axis=1)])


def _medians(arms: Floats, digits: int) -> Iterator[str]:
    return (f"{np.median(arm):,.{digits}f}" for arm in arms)


def _median_and_range(blocks: Floats, form: str) -> tuple[str, str]:
    least, most = form.format(blocks.min()), form.format(blocks.max())
    return form.format(np.median(blocks)), f"{least} to {most}"


# -- over long queues ----------------------------------------------------------------------------------------


def decisions(queues: Sequence[Found], words: Words) -> Table:
    """What a decision costs under each scheduler with each number waiting."""
    steps = len(queues[0]["scheduling"])
    table = Table(
        Column("waiting", justify="right"), "scheduler",
        *_right("offers", "us a decision", "median", "P99", "max", "CPU us a step", "held up"),
        title=f"Decisions in {words.name}'s scheduler, {steps} steps each, without a model",
        caption=f"A decision costs all time of policy and view between two steps, matches kept fresh, over "
        f"the offers made; the mean stands first. Prompts of 2,000 tokens share documents that are evicted "
        f"again and again. CPU time is that of the whole scheduler, measuring included; stock is "
        f"{words.stock}. Held up: the share of its time for which the scheduler had no processor, which "
        f"makes decisions look dearer than they are.",
    )  # fmt: skip
    for found in queues:
        table.add_row(
            f"{found['waiting']:,}", found["scheduler"],
            *_decided(found["deciding"]), *_scheduled(found["scheduling"]),
        )  # fmt: skip
    return table


def _decided(steps: Sequence[tuple[int, int]]) -> Iterator[str]:
    """Offers; microseconds of one: the mean, then median, P99 and maximum over steps."""
    if not steps:
        yield from [""] * 5
        return
    costs = np.array(list(per_decision(steps)))
    nanoseconds, offers = np.sum(steps, axis=0)
    yield f"{offers:,}"
    for cost in (nanoseconds / offers, np.median(costs), np.percentile(costs, 99), costs.max()):
        yield f"{cost / 1e3:,.0f}"


def per_decision(steps: Sequence[tuple[int, int]]) -> Iterator[float]:
    """Nanoseconds an offer in each step that made any; the time of one that made none counts in the next."""
    carried = 0
    for nanoseconds, offers in steps:
        carried += nanoseconds
        if offers:
            yield carried / offers
            carried = 0


def _scheduled(steps: Sequence[tuple[int, int]]) -> Iterator[str]:
    """Mean CPU time of the scheduler in a step, and the share of its time in which it had no processor."""
    cpu, wall = np.array(steps).T
    yield f"{cpu.mean() / 1e3:,.0f}"
    yield f"{max(0.0, 1 - cpu.sum() / wall.sum()):.0%}"
