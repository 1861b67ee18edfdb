"""What the measurements of `suite bench engine` inside the engines share.

Runs in the engines' environments: standard library only. The argument of a measuring program is a folder with
a job.json, see `suite.bench_engine.Job`. What is measured goes into its measured.jsonl, one JSON list a line:

    ["run", {"arm", "seconds", "cpu_ns", "output_tokens", "schedule": [{id: tokens}, ...]}]
                one run of the engine; `arm` is "stock" or "plugin", `schedule` has an entry for each step
    ["queue", {"waiting", "scheduler", "scheduling": [[cpu_ns, ns], ...], "deciding": [[ns, offers], ...]}]
                steps of a scheduler with this many waiting; "stock" is the engine's own, and `deciding`
                empty if there is nothing to watch in it

Scheduling is the time of the engine's thread in the methods of its scheduler that take in a request, form a
batch and take in its result. Deciding is the part of it in the policy and its view.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Protocol

Job = dict[str, Any]
Found = dict[str, Any]

STOCK, PLUGIN = "stock", "plugin"

QUESTION, OUTPUT = 44, 24
"""Tokens of a request in the real engine, which come after those of a document."""
CLIENTS = 6
LONG_DOCUMENT, LONG_QUESTION, SHORT_OUTPUT = 1536, 464, 16
"""Tokens of a request in a long queue. Each step some finish, some start, and what is cached is evicted."""
MANY_CLIENTS, DOCUMENTS_OF_ONE = 30, 8
WARM_UP = 20
"""Steps that are not measured: in the first, policies that look at matches look them all up."""
MODEL_PAUSE = 0.002
"""Seconds between two steps, in which the logs are written as they are while a model computes."""

Tokens = Callable[[Any], dict[str, int]]
"""How many tokens of which request are in what an engine calls its next batch."""


class Arms(Protocol):
    """One engine that is run under its own scheduler and under the plugin."""

    def run(self, arm: str) -> Found:
        """A "run" line."""


Queue = Callable[[str, int], Found]
"""Gives a "queue" line for the name of a scheduler and how many wait."""


def report(arms: Callable[[Job, Path], Arms], queues: Callable[[Job, Path], Queue]) -> None:
    """Measure what the job asks for. `arms` and `queues` are built when it is their turn."""
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    with (folder / "measured.jsonl").open("w", encoding="utf-8") as file:
        for line in _measured(job, folder, arms, queues):
            print(json.dumps(line), file=file, flush=True)


def _measured(
    job: Job, folder: Path, arms: Callable[[Job, Path], Arms], queues: Callable[[Job, Path], Queue]
) -> Iterator[tuple[str, Found]]:
    if job["blocks"]:
        engine = arms(job, folder)
        for arm in (STOCK, PLUGIN, *(STOCK, PLUGIN, PLUGIN, STOCK) * job["blocks"]):
            yield "run", engine.run(arm)
    queue = queues(job, folder)
    for waiting in job["waiting"]:
        for name in (STOCK, *job["schedulers"]):
            yield "queue", queue(name, waiting)


class Meter:
    """Takes the place of methods of a scheduler that an engine calls, and adds up their time in nanoseconds.

    The method `form` gives the next batch, of which `tokens` tells how many it computes for each request.
    """

    def __init__(self, scheduler: Any, take_in: str, form: str, update: str, tokens: Tokens) -> None:
        self.begin()
        for name in (take_in, form, update):
            setattr(scheduler, name, partial(self._timed, getattr(scheduler, name)))
        setattr(scheduler, form, partial(self._noted, getattr(scheduler, form), tokens))

    def begin(self) -> None:
        """Forget what was measured."""
        self.cpu = self.wall = 0
        self.schedule: list[dict[str, int]] = []

    def run(self, arm: str, requests: int, serve: Callable[[], None]) -> Found:
        """A "run" line for the time in which so many requests are served."""
        self.begin()
        begin = time.perf_counter()
        serve()
        return {
            "arm": arm,
            "seconds": time.perf_counter() - begin,
            "cpu_ns": self.cpu,
            "output_tokens": requests * OUTPUT,
            "schedule": self.schedule,
        }

    def _timed(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
        result = method(*args, **kwargs)
        self.cpu += time.thread_time_ns() - cpu
        self.wall += time.perf_counter_ns() - wall
        return result

    def _noted(self, form: Callable[..., Any], tokens: Tokens, *args: Any, **kwargs: Any) -> Any:
        batch = form(*args, **kwargs)
        if scheduled := tokens(batch):
            self.schedule.append(scheduled)
        return batch


Sent = tuple[str, str, list[int]]
"""Id, client and prompt of a request."""


def documents(lengths: Iterable[int], vocabulary: int) -> list[list[int]]:
    """Texts of so many tokens, that requests share."""
    draw = random.Random(0).choices
    return [draw(range(3, vocabulary), k=length) for length in lengths]


def questions(number: int, texts: list[list[int]], vocabulary: int) -> Iterator[Sent]:
    """So many requests, each with one of the documents and a question of its own."""
    rng = random.Random(1)
    for i in range(number):
        question = rng.choices(range(3, vocabulary), k=QUESTION)
        yield f"r{i}", f"client {i % CLIENTS}", rng.choice(texts) + question


def long_questions() -> Iterator[Sent]:
    """Endless requests with long documents, a few of each client; no model reads them."""
    rng = random.Random(0)
    for number in count():
        client = number % MANY_CLIENTS
        document = client * DOCUMENTS_OF_ONE + rng.randrange(DOCUMENTS_OF_ONE)
        question = MANY_CLIENTS * DOCUMENTS_OF_ONE + number
        yield f"r{number}", f"client {client}", [document] * LONG_DOCUMENT + [question] * LONG_QUESTION


def deciding(service_log: Path) -> list[tuple[int, int]]:
    """What the plugin's own stopwatch has written for each step: ns, offers."""
    with service_log.open(encoding="utf-8") as file:
        entries = [json.loads(line) for line in file]
    return [(facts["deciding_ns"], facts["offers"]) for kind, _, facts, *_ in entries if kind == "timing"]
