"""The engines that VTC's experiments are simulated on: both of the suite's, and that of the authors.

The first two run as an experiment; the authors' is made here for these reproductions alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from suite import policies
from suite.backends.simulator.noise import Noise
from suite.errors import BadInput
from suite.metrics.latency import latencies
from suite.metrics.validity import reasons
from suite.report.experiment import Cell, Experiment
from suite.reproduce import artifact
from suite.reproduce.lightllm import LightLLM
from workloads.spec import load

SETTINGS: dict[str, Any] = {"model": "llama-2-7b", "gpu": "a10g", "kv_tokens": 10_000}
NOISE = 0.05
"""Coefficient of variation of the time of a step, as in the two experiments."""
SGLANG, VLLM, AUTHORS, SLOWED = "as SGLang", "as vLLM", "as LightLLM", "as LightLLM, slowed"
HOSTS = (AUTHORS, SLOWED, SGLANG, VLLM)
_NAMES = {"as-sglang": SGLANG, "as-vllm": VLLM}

ASSUMPTIONS = """
- Llama-2-7B on an A10G, a KV pool of 10,000 tokens, as in the paper. How long a step takes is the roofline
  of the suite's README (60 % of 70 TFLOP/s, 80 % of 600 GB/s, 1 ms a step); these shares were stated before,
  for other models, and nothing was fitted to the paper's values.
- The authors' engine is S-LoRA's router on LightLLM. Two hosts are the suite's own, verified against the
  real SGLang and vLLM: SGLang prefills and decodes in separate batches as LightLLM does, but reserves each
  request's whole output; vLLM reserves nothing and preempts.
- *As LightLLM* is the authors' engine as their artifact's source says it works
  (`suite/reproduce/lightllm.py`): from 10 decode steps after an admission on, a new batch is tried; a request
  is admitted if the pool holds, at every time to come, what all will then hold, output lengths being known;
  32 tokens are set apart for each client in the batch; a prefill batch has 3,072 tokens at most. It is not
  verified against the engine, which was not run here.
- *Slowed* is the same with every step longer by one factor: the ratio of the median time per output token of
  the authors' FCFS overload run (Fig. 3) to ours of the same run. No value of Table 2 goes into it.
- Every step, or stretch of decode steps that is taken at once, takes a random time with a coefficient of
  variation of 5 %, an assumption, under five seeds: ± is the standard deviation over them, so it says how
  much of a deviation may be chance.
- `vtc` is the suite's, with both branches of the paper's counter lift; the artifact's code lacks the one for
  an empty queue.
"""


Runs = Mapping[tuple[str, str], Sequence[pd.DataFrame]]
"""The requests frames of the seeds by host and scheduler."""


def simulated(experiment: Experiment, workload: str) -> Runs:
    """The requests of a workload under every seed, as the experiment and the authors' engine serve it.

    Raises `BadInput` if a cell of the experiment is no result.
    """
    runs: defaultdict[tuple[str, str], list[pd.DataFrame]] = defaultdict(list)
    for cell in experiment.cells:
        runs[_NAMES[cell.labels["backend"]], cell.scheduler].append(_requests(cell))
    seeds = list(dict.fromkeys(cell.labels["seed"] for cell in experiment.cells))
    schedulers = list(dict.fromkeys(cell.scheduler for cell in experiment.cells))
    factors = {AUTHORS: 1.0, SLOWED: slowdown()}
    for (host, factor), scheduler, seed in product(factors.items(), schedulers, seeds):
        noise = Noise(cv=NOISE, slowdown=factor)
        runs[host, scheduler].append(on_lightllm(workload, scheduler, seed, noise))
    return {(host, scheduler): runs[host, scheduler] for host in HOSTS for scheduler in schedulers}


def on_lightllm(workload: str, scheduler: str, seed: int, noise: Noise) -> pd.DataFrame:
    """The requests of a workload as the authors' engine serves them."""
    host = LightLLM(**SETTINGS, noise=noise)
    trace, policy = load(workload).generate(seed), policies.parse(scheduler)
    return host.run(trace, policy, Path(), lambda share, note="": None).requests


@cache
def slowdown() -> float:
    """How much longer the authors' steps are than ours, by the median TPOT of their FCFS overload run."""
    theirs, _ = artifact.results("FCFS_overload")
    return median_tpot(theirs) / median_tpot(on_lightllm("vtc_overload", "fcfs", 0, Noise(cv=0)))


def median_tpot(requests: pd.DataFrame) -> float:
    """Seconds an output token after the first takes, median over requests."""
    return float(latencies(requests)["tpot"].median())


def _requests(cell: Cell) -> pd.DataFrame:
    run = cell.run()
    if wrong := reasons(run):
        raise BadInput(f"{cell.folder}: not a valid run: {'; '.join(wrong)}; mend that and run it again")
    return run.requests
