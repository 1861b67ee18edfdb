"""What each client got of each worker: counted as it happens, told to Prometheus when that asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from baselines.router import End, Request

CLIENTS = 1000
"""Clients that are counted each by itself; the others together."""
OTHER = "other"

_DECISION = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 1e-1)
"""Bounds of the histogram of decision times, in seconds."""


@dataclass(slots=True)
class Tally:
    """Of one client at one worker. Every field but the last only grows; field names are the metrics'."""

    requests: int = 0
    retries: int = 0
    stopped: int = 0
    aborted: int = 0
    returned: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    in_flight: int = 0


_HELP = {
    "requests": "Requests sent to the worker",
    "retries": "Of them, those that another worker had before",
    "stopped": "Requests served to their end",
    "aborted": "Requests cut short after they had begun, or withdrawn",
    "returned": "Requests given back before they had begun",
    "prompt_tokens": "Prompt tokens of requests sent (of text prompts, an estimate)",
    "output_tokens": "Output tokens",
    "in_flight": "Requests at the worker now",
}


class Tallies(Collector):
    """The tallies by client and worker."""

    def __init__(self, workers: Callable[[], Iterable[tuple[str, bool]]]) -> None:
        self.by: dict[tuple[str, str], Tally] = {}
        self.registry = CollectorRegistry()
        self.decisions = Histogram(
            "front_router_decision_seconds", "Time of a routing decision",
            buckets=_DECISION, registry=self.registry,
        )  # fmt: skip
        self._deciding = 0.0
        self._clients: set[str] = set()
        self._workers = workers
        self.registry.register(self)

    def sent(self, request: Request, worker: str, retry: int, took: float) -> None:
        """A request was sent to a worker; the decision took so many seconds."""
        self.decisions.observe(took)
        self._deciding += took
        tally = self._of(request.client, worker)
        tally.requests += 1
        tally.in_flight += 1
        tally.retries += retry > 0
        tally.prompt_tokens += request.prompt_tokens

    def ended(self, request: Request, worker: str, end: End, tokens: int) -> None:
        """A request has left a worker."""
        tally = self._of(request.client, worker)
        tally.in_flight -= 1
        tally.stopped += end == "stop"
        tally.aborted += end == "abort"
        tally.returned += end == "returned"
        tally.output_tokens += tokens

    def total(self, worker: str | None = None) -> Tally:
        """Of all clients, at one worker or at all."""
        chosen = [tally for (_, name), tally in self.by.items() if worker in (None, name)]
        return Tally(*(sum(getattr(tally, field.name) for tally in chosen) for field in fields(Tally)))

    def mean_decision(self) -> float:
        """Mean time of a routing decision, in seconds."""
        return self._deciding / max(self.total().requests, 1)

    def collect(self) -> Iterator[Metric]:
        """The metrics, for Prometheus."""
        for name, words in _HELP.items():
            kind = GaugeMetricFamily if name == "in_flight" else CounterMetricFamily
            metric = kind(f"front_{name}", words, labels=("client", "worker"))
            for labels, tally in self.by.items():
                metric.add_metric(labels, getattr(tally, name))
            yield metric
        up = GaugeMetricFamily("front_worker_up", "Whether the worker takes requests", labels=("worker",))
        for worker, is_up in self._workers():
            up.add_metric((worker,), is_up)
        yield up

    def _of(self, client: str, worker: str) -> Tally:
        tally = self.by.get((client, worker))
        return self._new(client, worker) if tally is None else tally

    def _new(self, client: str, worker: str) -> Tally:
        if client not in self._clients:
            if len(self._clients) >= CLIENTS:
                client = OTHER
            else:
                self._clients.add(client)
        return self.by.setdefault((client, worker), Tally())
