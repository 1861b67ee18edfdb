"""The SGLang backend: against a stand-in for SGLang everywhere, against SGLang itself where it is installed.

What it shares with vLLM's is tested there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil
import pytest
from pydantic import ValidationError

from baselines import decisions
from suite import environments, models, policies, results
from suite.backends.base import KEPT, Outcome
from suite.backends.sglang import SGLang
from suite.backends.sglang_server import SGLangLaunch
from suite.content import Content
from suite.dialect import Replies, Target, body, never_fits
from suite.environments import Environment
from suite.errors import BadInput
from suite.report import tables
from suite.trace import write
from tests.stand_ins import (
    SUITE,
    a_trace,
    environment,
    fake_pids,
    flags,
    installed,
    quiet,
    rows_of,
    running,
    served,
    session_of,
    told,
    until,
)


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the environment of the stand-in, and the models it is given."""
    return environment("sglang", "0.5.23", tmp_path_factory.mktemp("engines"))


@pytest.fixture
def fake(engines: Path, tmp_path: Path) -> Iterator[None]:
    """The stand-in is what is installed; afterwards nothing of it may run."""
    with installed(engines, tmp_path):
        yield


def backend(**settings: Any) -> SGLang:
    return SGLang(**{"model": "tiny", "max_running": 4, "kv_tokens": 1024, "timeout_s": 60.0, **settings})


def run(settings: SGLang, name: str, logs: Path, **trace: Any) -> Outcome:
    return settings.run(a_trace(**trace), policies.parse(name), logs, quiet)


# -- a run -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fake")
def test_a_run_is_what_client_and_engine_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SUITE_API_KEY", "secret")
    logs = tmp_path / "out" / "logs" / "cell"
    settings = backend(max_length=512, engine_args={"enable-mixed-chunk": True, "enable_lora": False})
    outcome = run(settings, "dlpm:quantum=500", logs)
    check_outcome(outcome)
    check_flags(flags(logs))
    check_surroundings(logs)


def check_outcome(outcome: Outcome) -> None:
    assert outcome.invalid == ()
    requests = outcome.requests.set_index("id")
    assert set(requests["status"]) == {"finished"}
    assert requests["output_tokens"].tolist() == [5] * 8 + [3]
    assert requests.loc["next", "prompt_tokens"] == 115, "the reply's token ids were in it"
    assert requests["cached_tokens"].tolist() == [0] + [100] * 7 + [109]
    sums = outcome.service.groupby("client")[["extend", "cached", "output"]].sum()
    assert sums.loc["a"].tolist() == [110 + 3 * 10 + 6, 3 * 100 + 109, 23]
    assert sums.loc["b"].tolist() == [4 * 10, 4 * 100, 20]
    word = outcome.engine
    assert (word["engine"], word["kv_tokens"], word["block_tokens"]) == ("sglang", 1024, 1)
    assert word["policy"]["source"] == policies.parse("dlpm").source_digest
    assert "active" not in word
    assert word["logs"] == ["logs/cell/server.log"]


def check_flags(given: dict[str, str]) -> None:
    assert given["--max-running-requests"] == "4"
    assert given["--chunked-prefill-size"] == given["--max-prefill-tokens"] == "2048"
    assert given["--max-total-tokens"] == "1024"
    assert given["--context-length"] == "512"
    assert given["--page-size"] == "1"
    assert given["--host"] == "127.0.0.1"
    assert given["--schedule-policy"] == "fcfs"
    assert given["--attention-backend"] == "torch_native"
    assert given["--enable-mixed-chunk"] == ""
    assert not {"--enable-lora", "--no-enable-lora"} & set(given), "SGLang has no flags that say no"


def check_surroundings(logs: Path) -> None:
    folder = Path(told(logs)["path"])
    names = {path.name.partition("-")[0] for path in folder.iterdir()}
    assert names == {"baselines", "suite", "suite_sglang"}
    [server] = fake_pids()
    variables = psutil.Process(server).environ()
    assert variables["SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION"] == "false", "polls are no requests"
    assert Path(variables["TMPDIR"]).is_dir()
    assert "SUITE_API_KEY" not in variables
    KEPT.close()
    assert not folder.exists()
    assert not Path(variables["TMPDIR"]).exists()


@pytest.mark.usefixtures("fake")
def test_a_prompt_that_never_fits_is_rejected_and_the_run_stays_valid(tmp_path: Path):
    outcome = run(backend(), "fcfs", tmp_path, too_long=True)
    assert outcome.invalid == ()
    assert Counter(outcome.requests["status"]) == {"finished": 8, "rejected": 1}
    assert outcome.requests["output_tokens"].sum() == 40


@pytest.mark.usefixtures("fake")
def test_a_server_serves_the_next_run_with_a_cold_cache(tmp_path: Path):
    first = run(backend(), "fcfs", tmp_path / "one")
    second = run(backend(), "fcfs", tmp_path / "two")
    assert len(fake_pids()) == 1
    assert second.engine["logs"] == first.engine["logs"]
    assert first.requests["cached_tokens"].equals(second.requests["cached_tokens"])
    assert second.invalid == ()


def test_a_request_says_who_sends_it_in_sglangs_own_terms():
    content = Content(7, 1000)
    request = replace(a_trace().requests[0], weight=2.0, priority=3)
    target = Target("http://127.0.0.1:1/v1", "tiny", "sglang", "generate", "tokens")
    assert target.endpoint == "http://127.0.0.1:1/generate"
    assert json.loads(body(request, target, content, Replies(), wanted=True)) == {
        "input_ids": list(content.prompt(request, {})),
        "stream": True,
        "routing_key": "a",
        "sampling_params": {
            "temperature": 0,
            "max_new_tokens": 5,
            "ignore_eos": True,
            "custom_params": {"client_id": "a", "request_id": "r0", "weight": 2.0, "priority": 3},
        },
    }


@pytest.mark.parametrize(
    "said",
    [
        "The input (2000 tokens) is longer than the model's context length (1024 tokens).",
        "Requested token count exceeds the model's maximum context length of 1024 tokens. You requested a",
        "Input length (1018 tokens) exceeds the maximum allowed length (1018 tokens). Use a shorter input",
    ],
)
def test_sglangs_words_for_a_request_that_never_fits_are_known(said: str):
    assert never_fits(400, said)


# -- its own schedulers ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("active", ["lpm", "fcfs"])
def test_a_scheduler_of_its_own_is_watched(active: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FAKE_ACTIVE", active)
    outcome = run(backend(), "sglang:lpm", tmp_path)
    assert outcome.invalid == ()
    assert flags(tmp_path)["--schedule-policy"] == "lpm"
    assert outcome.engine["service_log"] == "engine"
    assert outcome.engine["policy"]["target"] == "sglang:lpm"
    assert outcome.engine["active"].keys() == {active}
    passes = [line for line in lines(tmp_path / "service.jsonl") if line[0] == "active"]
    assert outcome.engine["active"][active] == len(passes) > 0
    assert outcome.service["output"].sum() == 43


def lines(path: Path) -> list[list[Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.usefixtures("fake")
def test_only_its_own_schedulers_run(tmp_path: Path):
    with pytest.raises(
        BadInput, match=r"'vllm:fcfs': runs on backend vllm only, in real time; sglang has sgl"
    ):
        run(backend(), "vllm:fcfs", tmp_path)
    with pytest.raises(
        BadInput, match=r"'stock': is an endpoint's own, .*; sglang has sglang:fcfs, sglang:lpm"
    ):
        run(backend(), "stock", tmp_path)


# -- what goes wrong -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "FAKE_PLUGIN",
            "0",
            r"the suite's plugin is not in it: no service log was begun \(log: .*/server.log",
        ),
        ("FAKE_VERSION", "0.5.15", "sglang-0.5.23-cpu: holds sglang 0.5.15, not 0.5.23; install"),
        ("FAKE_SOURCE", "0", "sglang under fcfs: another policy is in force: source is '0', not '"),
    ],
    ids=["plugin", "version", "policy"],
)
def test_a_server_that_is_not_as_wanted_is_refused(
    variable: str, value: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr("suite.backends.launch.LOG_PATIENCE", 0.5)
    with pytest.raises(BadInput, match=message):
        run(backend(), "fcfs", tmp_path)
    assert running() == [], "at once, not only in the end"


@pytest.mark.usefixtures("fake")
def test_a_cache_that_is_not_cold_costs_the_server_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FAKE_WARM", "1")
    run(backend(), "fcfs", tmp_path / "one")
    [server] = fake_pids()
    assert run(backend(), "fcfs", tmp_path / "two").invalid == ()
    assert server not in fake_pids(), "a fresh one took over"


# -- settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"block_tokens": 16, "token_budget": 100},
            r"token_budget \(100\) must be a multiple of block_tokens",
        ),
        ({"block_tokens": 16, "kv_tokens": 1000}, r"kv_tokens \(1000\) must be a multiple of block_tokens"),
        ({"kv_tokens": 63}, r"kv_tokens \(63\) must be at least 64"),
        ({"max_length": 50}, r"max_length \(50\) must be at least 64"),
        ({"engine_args": {"max_running_requests": 3}}, "max_running_requests: is max_running here; set that"),
        ({"engine_args": {"--context-len": 3}}, "engine_args.--context-len: is max_length here; set that"),
        ({"engine_args": {"tp": 2}}, "engine_args.tp: is tensor_parallel here; set that"),
        ({"engine_args": {"schedule_policy": "lpm"}}, "schedule_policy: is the suite's to set; drop it"),
        ({"engine_args": {"hos": "0.0.0.0"}}, "engine_args.hos: is the suite's to set; drop it"),
        ({"engine_args": {"model": "x"}}, "engine_args.model: is the suite's to set; drop it"),
        ({"engine_args": {"host=0.0.0.0": True}}, "write a flag of `sglang.launch_server` and its value"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        backend(**settings)


def test_on_cuda_the_pool_may_be_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "engines" / "sglang-0.5.15-cuda"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    marker = {"engine": "sglang", "version": "0.5.15", "device": "cuda"}
    (folder / environments.MARKER).write_text(json.dumps(marker))
    monkeypatch.setenv("SUITE_ENGINES", str(tmp_path / "engines"))
    settings = backend(device="cuda", kv_tokens=None, engine_args={"disable-overlap-schedule": True})
    launch = settings.launch(policies.parse("fcfs"))
    command = launch._command(8000, tmp_path, 0)
    assert "--max-total-tokens" not in command
    assert command[command.index("--mem-fraction-static") + 1] == "0.9"
    assert "--disable-overlap-schedule" in command
    assert not {"--attention-backend", "--sampling-backend"} & set(command)


# -- suite serve -----------------------------------------------------------------------------------------


def foreign(url: str, client: str, requests: int) -> None:
    """A client that is not the suite's: it sends 50 tokens and asks for 4, so many times."""
    for i in range(requests):
        body = {"model": "tiny", "prompt": [10 + i] * 50, "max_tokens": 4, "ignore_eos": True}
        headers = {"Content-Type": "application/json", "X-SMG-Routing-Key": client}
        with urlopen(
            Request(f"{url}/v1/completions", json.dumps(body).encode(), headers), timeout=60
        ) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == 4


@pytest.mark.usefixtures("fake")
def test_serve_tells_what_each_foreign_client_got(tmp_path: Path):
    def use(url: str) -> None:
        foreign(url, "alice", 3)
        foreign(url, "bob", 1)

    code, out, err = served("-e", "sglang", "-s", "dlpm", folder=tmp_path / "logs", use=use)
    assert code == 0, err
    assert [(client, prompt, output) for client, _, prompt, _, output in rows_of(out)] == [
        ("alice", "150", "12"), ("bob", "50", "4")
    ]  # fmt: skip
    until(lambda: running() == [])


# -- SGLang itself ---------------------------------------------------------------------------------------

EXPERIMENT = """
name: small
workloads: [TRACE]
schedulers: [fcfs, lpm, vtc, "dlpm:quantum=500", "sglang:lpm"]
backend: {kind: sglang, model: tiny, max_running: 2, kv_tokens: 8192, token_budget: 256}
"""
BURST, OUTPUT = 170, 16
"""Requests at once, and the tokens each asks for: when more than 128 wait, SGLang's own lpm serves them first
come first served."""


@pytest.mark.usefixtures("sglang")
def test_sglang_serves_an_experiment(tmp_path: Path):
    trace = a_trace(BURST, OUTPUT)
    at_once = tuple(replace(request, arrival=0.0) for request in trace.requests)
    write(replace(trace, requests=at_once), tmp_path / "trace.jsonl")
    (tmp_path / "small.yaml").write_text(EXPERIMENT.replace("TRACE", str(tmp_path / "trace.jsonl")))
    command = [SUITE, "run", tmp_path / "small.yaml", "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    cells = sorted((tmp_path / "out" / "cells").iterdir())
    assert len(cells) == 5
    for cell in cells:
        check_run(results.read(cell))
        check_order(tmp_path / "out" / "logs" / cell.name / "decisions.jsonl", results.read_manifest(cell))
    own = next(cell for cell in cells if "sglang" in cell.name)
    assert results.read_manifest(own).engine["active"].keys() == {"lpm", "fcfs"}
    told = [line for line in tables.warnings(tables.collect(tmp_path / "out")) if "of passes" in line]
    assert len(told) == 1
    assert re.fullmatch(r"trace, sglang:lpm, seed 0: fcfs in \d+% of passes", told[0])


def check_run(run: results.Run) -> None:
    assert [reason for reason in run.manifest.invalid if "client late" not in reason] == []
    assert set(run.requests["status"]) == {"finished"}
    prompts = run.service["extend"].sum() + run.service["cached"].sum()
    assert (prompts, run.service["output"].sum()) == (BURST * 110 + 110 + OUTPUT, BURST * OUTPUT + 3)
    first = run.requests.sort_values("admitted").iloc[0]
    assert first["cached_tokens"] == 0, "the cache was cold"
    assert run.requests["cached_tokens"].iloc[-1] >= 110, "the last prompt goes on where the first ended"
    assert run.manifest.engine["policy"]["cache"] in ("UnifiedRadixCache", "RadixCache")


def check_order(path: Path, manifest: results.Manifest) -> None:
    """Whoever was admitted is who the policy offered: a fresh one that sees the same offers the same."""
    log = [json.loads(line) for line in path.read_text().splitlines()]
    admitted = [sequence for kind, sequence, *_ in map(padded, log) if kind == "admitted"]
    assert len(admitted) == BURST + 1
    spec = policies.parse(manifest.labels["scheduler"])
    if isinstance(spec, policies.Stock):
        assert not [entry for entry in log if entry[0] == "offer"]
        return
    assert decisions.replayed(log, spec.build()) == log
    assert [entry[1] for entry in log if entry[0] == "offer"] == admitted
    if spec.name == "fcfs":
        assert admitted == sorted(admitted)


def padded(entry: decisions.Entry) -> decisions.Entry:
    return [*entry, None]


SLEEPY = """
    import sys
    from pathlib import Path
    from suite import policies
    from suite.backends.sglang import SGLang
    from suite.trace import read

    folder = Path(sys.argv[1])
    settings = SGLang(model="tiny", max_running=2, kv_tokens=4096)
    trace = read(folder / "trace.jsonl")
    settings.run(trace, policies.parse("dlpm"), folder / "logs", lambda share, note="": None)
"""


def test_no_process_of_sglang_is_left_when_the_suite_is_killed(tmp_path: Path, sglang: Environment):
    write(a_trace(requests=40, output_tokens=200), tmp_path / "trace.jsonl")
    (tmp_path / "main.py").write_text(textwrap.dedent(SLEEPY))
    suite = subprocess.Popen([sys.executable, tmp_path / "main.py", tmp_path], start_new_session=True)
    journal = tmp_path / "logs" / "client.jsonl"
    until(lambda: journal.exists() and b"\n" in journal.read_bytes(), 200)
    assert len(servers(tmp_path)) >= 3, "server, scheduler, detokenizer"
    os.kill(suite.pid, signal.SIGKILL)
    suite.wait()
    until(lambda: not servers(tmp_path) and not session_of(suite.pid), 60)


def servers(folder: Path) -> list[int]:
    """Processes that were told to write their logs below the folder."""
    found = []
    for process in psutil.process_iter(["environ", "status"]):
        told = (process.info["environ"] or {}).get("SUITE_SGLANG", "")
        if str(folder) in told and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


@pytest.mark.usefixtures("sglang")
def test_sglang_without_the_plugin_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(SGLangLaunch, "plugin", None)
    monkeypatch.setattr("suite.backends.launch.LOG_PATIENCE", 0.5)
    with pytest.raises(BadInput, match=r"the suite's plugin is not in it: no service log was begun"):
        run(backend(), "dlpm", tmp_path)
    assert servers(tmp_path) == []


@pytest.mark.usefixtures("sglang")
def test_a_model_that_sglang_does_not_know_is_told(tmp_path: Path):
    model = Path(models.model("tiny").path)
    shutil.copytree(model, tmp_path / "odd")
    config = json.loads((model / "config.json").read_text())
    config |= {"architectures": ["OddForCausalLM"]}
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=r"sglang under fcfs did not start: .*Odd.* \(log: .*server.log\)"):
        run(backend(model=str(tmp_path / "odd")), "fcfs", tmp_path / "logs")
