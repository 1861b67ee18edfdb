"""The vLLM backend: against a stand-in for vLLM everywhere, against vLLM itself where it is installed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import ValidationError

from suite import environments, policies
from suite.backends import launch, vllm_server
from suite.backends.base import Incomplete, Outcome
from suite.backends.servers import POOL, ask
from suite.backends.vllm import VLLM
from suite.errors import BadInput
from suite.processes import free_port
from suite.results import REQUEST_COLUMNS, SERVICE_COLUMNS
from suite.trace import Trace, write
from tests.stand_ins import (
    a_trace,
    environment,
    fake_pids,
    flags,
    installed,
    quiet,
    rows_of,
    running,
    served,
    serving,
    session_of,
    told,
    until,
    url_of,
)

KV_BYTES = 2 * 2 * 2 * 32 * 4
"""Of a token in `tiny`: keys and values, 2 layers, 2 heads of 32, 4 bytes."""

MINE = """
from baselines.fcfs import FCFS

class Mine(FCFS):
    name = ""

    def __init__(self, limit: float = 9.0, after: int = 0):
        super().__init__()
        self.limit, self.left = limit, after

    def admitted(self, request, cached_tokens, now):
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("out of ideas")
"""


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the environment of the stand-in, and the models it is given."""
    return environment("vllm", "0.32.0", tmp_path_factory.mktemp("engines"))


@pytest.fixture
def fake(engines: Path, tmp_path: Path) -> Iterator[None]:
    """The stand-in is what is installed; afterwards nothing of it may run."""
    with installed(engines, tmp_path):
        yield


@pytest.fixture(scope="module")
def done(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """One run for many tests. Its server is gone, the folder it was given to import from with it."""
    folder = tmp_path_factory.mktemp("done")
    with installed(engines, folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUITE_API_KEY", "secret")
        patch.setenv("PYTHONPATH", "/elsewhere")
        logs = folder / "out" / "logs" / "cell"
        settings = backend(max_length=512, engine_args={"seed": 3, "enable_lora": False})
        outcome = run(settings, "dlpm:quantum=500", logs)
        imports = os.listdir(told(logs)["path"])
        environment = psutil.Process(*fake_pids()).environ()
    return Done(outcome, logs, sorted(imports), environment)


@dataclass(frozen=True)
class Done:
    """A run, and what its server saw: packages to import, variables."""

    outcome: Outcome
    logs: Path
    imports: list[str]
    environment: dict[str, str]


def backend(**settings: Any) -> VLLM:
    return VLLM(**{"model": "tiny", "max_running": 4, "kv_tokens": 1024, "timeout_s": 60.0, **settings})


def run(settings: VLLM, name: str, logs: Path, trace: Trace | None = None) -> Outcome:
    return settings.run(trace or a_trace(), policies.parse(name), logs, quiet)


# -- a run -----------------------------------------------------------------------------------------------


def test_a_run_is_what_client_and_engine_say(done: Done):
    outcome = done.outcome
    assert outcome.invalid == ()
    assert tuple(outcome.requests.columns) == REQUEST_COLUMNS
    assert tuple(outcome.service.columns) == SERVICE_COLUMNS
    requests = outcome.requests.set_index("id")
    assert set(requests["status"]) == {"finished"}
    assert requests["output_tokens"].tolist() == [5] * 8 + [3]
    assert requests.loc["next", "prompt_tokens"] == 115
    assert requests["cached_tokens"].tolist() == [0] + [96] * 8, "blocks of 32 of the document"
    assert (requests["arrival"] <= requests["admitted"]).all()
    assert (requests["admitted"] <= requests["first_token"]).all()
    sums = outcome.service.groupby("client")[["extend", "cached", "output"]].sum()
    assert sums.loc["a"].tolist() == [110 + 3 * 14 + 19, 4 * 96, 23]
    assert sums.loc["b"].tolist() == [4 * 14, 4 * 96, 20]


def test_the_manifest_learns_what_the_engine_was(done: Done):
    word = done.outcome.engine
    assert (word["engine"], word["version"], word["replicas"]) == ("vllm", "0.32.0", 1)
    assert (word["kv_tokens"], word["block_tokens"], word["service_log"]) == (1024, 32, "engine")
    assert word["policy"]["target"] == "baselines.dlpm:DLPM"
    assert word["policy"]["parameters"]["quantum"] == 500
    assert word["policy"]["source"] == policies.parse("dlpm").source_digest
    assert word["logs"] == ["logs/cell/server.log"]
    assert word["client"]["processes"] == 1


def test_the_logs_stay_with_the_run(done: Done):
    kept = {path.name for path in done.logs.iterdir()}
    assert kept == {"client.jsonl", "decisions.jsonl", "server.log", "service.jsonl"}
    assert len((done.logs / "client.jsonl").read_text().splitlines()) == 9


def test_settings_become_flags(done: Done):
    given = flags(done.logs)
    assert given["--max-num-seqs"] == "4"
    assert given["--max-num-batched-tokens"] == "2048"
    assert given["--num-gpu-blocks-override"] == str(1024 // 32 + 1), "one is the null block"
    assert int(given["--kv-cache-memory-bytes"]) == (1024 + 32) * KV_BYTES
    assert given["--max-model-len"] == "512"
    assert given["--host"] == "127.0.0.1"
    assert given["--scheduler-cls"] == "suite.backends.vllm_plugin.FairScheduler"
    assert given["--seed"] == "3"
    assert {"--no-enable-lora", "--enforce-eager"} <= set(given)


def test_the_engine_sees_the_packages_it_needs_and_no_key(done: Done):
    assert done.imports == ["baselines", "suite"]
    assert done.environment["PYTHONPATH"] == told(done.logs)["path"]
    assert not Path(told(done.logs)["path"]).exists(), "it was there for the server only"
    assert done.environment["HF_HUB_OFFLINE"] == "1"
    assert "SUITE_API_KEY" not in done.environment


@pytest.mark.usefixtures("fake")
def test_a_prompt_that_never_fits_is_rejected_and_the_run_stays_valid(tmp_path: Path):
    outcome = run(backend(), "fcfs", tmp_path, a_trace(too_long=True))
    assert outcome.invalid == ()
    assert Counter(outcome.requests["status"]) == {"finished": 8, "rejected": 1}


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_a_scheduler_of_its_own_is_left_alone(policy: str, tmp_path: Path):
    outcome = run(backend(), f"vllm:{policy}", tmp_path)
    assert outcome.invalid == ()
    assert outcome.engine["service_log"] == "client"
    assert outcome.engine["policy"]["target"] == f"vllm:{policy}", "as the server says"
    assert not {"--scheduler-cls", "--additional-config"} & set(flags(tmp_path))
    assert flags(tmp_path)["--scheduling-policy"] == policy
    assert outcome.service["output"].sum() == 43
    assert outcome.requests["cached_tokens"].tolist() == [0] + [96] * 8, "the cache was cold"
    again = run(backend(), f"vllm:{policy}", tmp_path / "again")
    assert again.requests["cached_tokens"].tolist() == [0] + [96] * 8


@pytest.mark.usefixtures("fake")
def test_vllms_own_priority_is_told_the_traces(tmp_path: Path):
    urgent = replace(
        a_trace(), requests=tuple(replace(r, priority=i) for i, r in enumerate(a_trace().requests))
    )
    run(backend(), "vllm:priority", tmp_path / "one", urgent)
    run(backend(), "vllm:fcfs", tmp_path / "two", urgent)
    assert sorted(priorities(tmp_path / "one")) == list(range(9))
    assert priorities(tmp_path / "two") == [], "vLLM refuses them under fcfs"


def priorities(logs: Path) -> list[int]:
    """What the stand-in was told of, in no order."""
    lines = (logs / "server.log").read_text().splitlines()
    return [int(line.split()[1]) for line in lines if line.startswith("priority ")]


@pytest.mark.usefixtures("fake")
def test_another_policy_than_asked_for_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FAKE_POLICY", "priority")
    with pytest.raises(BadInput, match="another policy is in force: target is 'vllm:priority', not 'vllm:fc"):
        run(backend(), "vllm:fcfs", tmp_path)


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("name", ["sglang:lpm", "stock"])
def test_only_its_own_schedulers_run(name: str, tmp_path: Path):
    with pytest.raises(BadInput, match=rf"scheduler '{name}': .*; vllm has vllm:fcfs, vllm:priority"):
        run(backend(), name, tmp_path)


@pytest.mark.usefixtures("fake")
def test_a_reset_in_the_middle_of_a_run_makes_it_invalid(tmp_path: Path):
    resets: list[object] = []

    def progress(share: float, note: str = "") -> None:
        if share == 9 / 10 and not resets:
            resets.append(ask(f"{url_in(tmp_path)}/reset_prefix_cache", post=True))

    trace = a_trace()
    late = replace(trace.requests[0], id="late", arrival=5.0)
    outcome = backend().run(
        replace(trace, requests=(*trace.requests, late)), policies.parse("fcfs"), tmp_path, progress
    )
    assert resets
    assert any("reset in the middle of the run" in reason for reason in outcome.invalid)


def url_in(logs: Path) -> str:
    """Where the stand-in listens."""
    return f"http://127.0.0.1:{flags(logs)['--port']}"


# -- servers are kept ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fake")
def test_a_server_serves_the_next_run_with_a_cold_cache(tmp_path: Path):
    first = run(backend(), "fcfs", tmp_path / "one")
    (server,) = fake_pids()
    second = run(backend(), "fcfs", tmp_path / "two")
    assert fake_pids() == [server]
    assert not (tmp_path / "two" / "server.log").exists()
    assert second.engine["logs"] == first.engine["logs"]
    columns = ["id", "cached_tokens", "output_tokens", "status"]
    assert first.requests[columns].equals(second.requests[columns])
    assert second.invalid == ()
    assert (tmp_path / "two" / "service.jsonl").exists()


@pytest.mark.usefixtures("fake")
def test_when_memory_is_short_the_longest_unused_server_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run(backend(), "dlpm", tmp_path / "one")
    (first,) = fake_pids()
    run(backend(), "dlpm:quantum=500", tmp_path / "two")
    (second,) = set(fake_pids()) - {first}
    run(backend(), "dlpm", tmp_path / "three")
    assert set(fake_pids()) == {first, second}
    monkeypatch.setattr(launch, "cpu_shortage", lambda *_: "full" if len(fake_pids()) > 1 else None)
    run(backend(), "vtc", tmp_path / "four")
    assert first in fake_pids(), "it was used since"
    assert second not in fake_pids()


@pytest.mark.usefixtures("fake")
def test_memory_that_does_not_suffice_is_told_with_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("", (), {"available": 10**9}))
    with pytest.raises(BadInput, match=r"vllm under fcfs needs 1\.5 GB of memory and 1\.0 GB are free; make"):
        run(backend(), "fcfs", tmp_path)
    assert running() == []


@pytest.mark.usefixtures("fake")
def test_a_cache_that_is_not_cold_costs_the_server_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FAKE_WARM", "1")
    run(backend(), "fcfs", tmp_path / "one")
    (server,) = fake_pids()
    assert run(backend(), "fcfs", tmp_path / "two").invalid == ()
    assert server not in fake_pids(), "a fresh one took over"
    assert (tmp_path / "two" / "server.log").exists()


@pytest.mark.usefixtures("fake")
def test_a_server_that_died_idle_is_replaced(tmp_path: Path):
    run(backend(), "fcfs", tmp_path / "one")
    os.kill(*fake_pids(), signal.SIGKILL)
    assert run(backend(), "fcfs", tmp_path / "two").invalid == ()


# -- what goes wrong -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("FAKE_START", "no such", "did not start: exited with code 1: ValueError: no such .log: .*/server"),
        ("FAKE_SLOW", "1", r"is not up after 1 s \(log: .*/server.log\); raise start_timeout_s"),
        ("FAKE_VERSION", "0.31.0", "vllm-0.32.0-cpu: holds vllm 0.31.0, not 0.32.0; install"),
        ("FAKE_SOURCE", "0", "vllm under fcfs: another policy is in force: source is '0', not '"),
    ],
    ids=["dies", "hangs", "version", "policy"],
)  # fmt: skip
def test_a_server_that_is_not_as_wanted_is_refused(
    variable: str, value: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(variable, value)
    settings = backend(start_timeout_s=1.0) if variable == "FAKE_SLOW" else backend()
    with pytest.raises(BadInput, match=message):
        run(settings, "fcfs", tmp_path)
    assert running() == [], "at once, not only in the end"


@pytest.mark.usefixtures("fake")
def test_a_server_that_dies_in_the_middle_leaves_what_was_measured(tmp_path: Path):
    killed: list[int] = []

    def progress(share: float, note: str = "") -> None:
        if share > 0.5 and not killed:
            killed.extend(fake_pids())
            os.kill(killed[0], signal.SIGKILL)

    trace = a_trace(requests=60)
    with pytest.raises(
        Incomplete, match=r"broke off: was killed by SIGKILL.* \(log: .*/server.log\)"
    ) as broken:
        backend().run(trace, policies.parse("fcfs"), tmp_path, progress)
    outcome = broken.value.outcome
    counts = Counter(outcome.requests["status"])
    assert counts["finished"] > 0
    assert counts["failed"] > 0
    slots = 4  # what they had last may not have been written any more
    assert outcome.service["output"].sum() >= 5 * (counts["finished"] - slots) > 0
    assert "requests failed" in outcome.invalid[0]
    journal = (tmp_path / "client.jsonl").read_text()
    assert journal.count('"status":"finished"') == counts["finished"]
    assert running() == []


@pytest.mark.usefixtures("fake")
def test_a_scheduler_that_raises_is_blamed(tmp_path: Path):
    mine = tmp_path / "mine.py"
    mine.write_text(MINE)
    with pytest.raises(Incomplete, match=r"the scheduler failed: .*mine.py:\d+: RuntimeError: out of ideas"):
        run(backend(), f"{mine}:Mine:after=5", tmp_path / "logs")
    with pytest.raises(BadInput, match=r"does not serve: the scheduler failed: .*mine.py:\d+: RuntimeError"):
        run(backend(), f"{mine}:Mine:after=1", tmp_path / "logs")


@pytest.mark.usefixtures("fake")
def test_a_file_of_the_users_own_is_the_policy_wherever_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    outcome = run(backend(), "mine.py:Mine:limit=3", tmp_path / "logs")
    assert outcome.invalid == ()
    assert outcome.engine["policy"]["target"] == f"{tmp_path}/mine.py:Mine"
    assert outcome.engine["policy"]["parameters"] == {"limit": 3, "after": 0}


@pytest.mark.usefixtures("fake")
def test_a_parameter_that_cannot_be_sent_is_refused(tmp_path: Path):
    (tmp_path / "mine.py").write_text(MINE)
    with pytest.raises(
        BadInput, match="scheduler 'Mine': limit=inf cannot be sent to another process; use finite"
    ):
        run(backend(), f"{tmp_path}/mine.py:Mine:limit=.inf", tmp_path / "logs")


@pytest.mark.usefixtures("fake")
def test_a_log_cut_short_by_a_full_disk_makes_the_run_invalid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("suite.backends.account.LOG_PATIENCE", 0.5)
    monkeypatch.setenv("FAKE_DISK", "1500")
    outcome = run(backend(), "fcfs", tmp_path)
    assert set(outcome.requests["status"]) == {"finished"}
    assert any("service.jsonl: the service log lacks the end of" in reason for reason in outcome.invalid)
    assert "cannot be written: [Errno 27]" in (tmp_path / "server.log").read_text()


@pytest.mark.usefixtures("fake")
def test_client_and_engine_must_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FAKE_CACHED_TOKENS", "1")
    assert (
        "client and engine disagree on cached_tokens of 9 requests"
        in run(backend(), "fcfs", tmp_path).invalid[0]
    )


SLEEPY = """
    import sys
    from pathlib import Path
    from suite import cli, policies
    from suite.backends.vllm import VLLM
    from suite.trace import read
    import signal

    signal.signal(signal.SIGTERM, cli._interrupt)
    folder = Path(sys.argv[1])
    settings = VLLM(model="tiny", max_running=2, kv_tokens=1024)
    trace = read(folder / "trace.jsonl")
    settings.run(trace, policies.parse("dlpm"), folder / "logs", lambda share, note="": None)
"""


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=str)
def test_nothing_is_left_when_the_suite_ends_in_the_middle(ending: signal.Signals, tmp_path: Path):
    write(a_trace(requests=40, output_tokens=200), tmp_path / "trace.jsonl")
    (tmp_path / "main.py").write_text(textwrap.dedent(SLEEPY))
    suite = subprocess.Popen(
        [sys.executable, tmp_path / "main.py", tmp_path], stderr=subprocess.PIPE, start_new_session=True
    )
    journal = tmp_path / "logs" / "client.jsonl"
    until(lambda: journal.exists() and b"\n" in journal.read_bytes())
    os.kill(suite.pid, ending)
    suite.communicate(timeout=30)
    until(lambda: not running() and not session_of(suite.pid))
    first = json.loads(journal.read_text().splitlines()[0])
    assert first["status"] == "finished"
    assert first["output_tokens"] == 200
    assert suite.returncode != 0


# -- settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"token_budget": 3}, r"token_budget \(3\) must be at least max_running \(4\)"),
        ({"block_tokens": 16}, r"block_tokens \(16\) must be a multiple of 32 on the CPU"),
        ({"kv_tokens": 1000}, r"kv_tokens \(1000\) must be a multiple of block_tokens \(32\)"),
        ({"gpus": [0]}, "gpus and tensor_parallel are for device: cuda"),
        ({"tensor_parallel": 2}, "gpus and tensor_parallel are for device: cuda"),
        ({"device": "cuda", "replicas": 2}, "gpus: name those of the replicas, such as"),
        ({"device": "cuda", "replicas": 3, "gpus": [0, 1]}, r"gpus: 3 wanted \(1 for each replica\), not"),
        ({"device": "cuda", "tensor_parallel": 2, "gpus": [0]}, r"gpus: 2 wanted \(2 for each replica\)"),
        ({"device": "cuda", "gpus": []}, r"gpus: 1 wanted \(1 for each replica\), not \[\]"),
        ({"device": "cuda", "replicas": 2, "gpus": [0, 0], "kv_tokens": None}, "kv_tokens: missing; say how"),
        ({"engine_args": {"max_num_seqs": 3}}, "engine_args.max_num_seqs: is max_running here; set that"),
        ({"engine_args": {"--host": "0.0.0.0"}}, "engine_args.--host: is the suite's to set; drop it"),
        ({"engine_args": {"hos": "0.0.0.0"}}, "engine_args.hos: is the suite's to set; drop it"),
        ({"engine_args": {"host=0.0.0.0": True}}, "engine_args.host=0.0.0.0: write a flag of `vllm serve`"),
        ({"engine_args": {"max-num-seq": 4}}, "engine_args.max-num-seq: is max_running here; set that"),
        ({"engine_args": {"no_enforce_eager": True}}, "no_enforce_eager: is the suite's to set; drop it"),
        ({"engine_args": {"seed": None}}, "engine_args.seed: write a flag of `vllm serve` and its value"),
        ({"engine_args": {"seed": date(2024, 1, 1)}}, "engine_args.seed\n *input was not a valid JSON value"),
        ({"kv_tokens": 64}, r"kv_tokens \(64\) must be at least 96"),
        ({"max_length": 50}, r"max_length \(50\) must be at least 96"),
        ({"max_runing": 3}, "Extra inputs"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        backend(**settings)


@pytest.mark.usefixtures("fake")
def test_a_length_that_does_not_fit_is_refused():
    with pytest.raises(BadInput, match="max_length: 2000 tokens are more than the KV pool's 1024"):
        backend(max_length=2000).launch(policies.parse("fcfs"))


@pytest.mark.usefixtures("fake")
def test_an_engine_that_is_not_installed_is_told():
    with pytest.raises(BadInput, match=r"vllm is not installed for cuda; run: suite engines install vllm"):
        backend(device="cuda").launch(policies.parse("fcfs"))


def cuda(root: Path) -> None:
    """An environment for CUDA in the folder."""
    folder = root / "vllm-0.25.0-cuda"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    marker = {"engine": "vllm", "version": "0.25.0", "device": "cuda"}
    (folder / environments.MARKER).write_text(json.dumps(marker))


NVIDIA_SMI = """#!/bin/sh
case "$1" in
  --id=0) echo "10000, 80000" ;;
  --id=1) echo "2000, 80000" ;;
  *) echo "No devices were found"; exit 6 ;;
esac
"""


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of two GPUs with 10 and 2 GB free, and vLLM for them."""
    cuda(tmp_path / "engines")
    monkeypatch.setenv("SUITE_ENGINES", str(tmp_path / "engines"))
    program = tmp_path / "nvidia-smi"
    program.write_text(NVIDIA_SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("gpus")
def test_replicas_share_a_gpu(tmp_path: Path):
    settings = backend(device="cuda", replicas=2, gpus=[0], kv_tokens=1024)
    launch = settings.launch(policies.parse("round-robin+fcfs"))
    assert launch.shortage() is None, "two of 1.5 GB in 10 GB"
    command = launch._command(8000, tmp_path, 1)
    share = float(command[command.index("--gpu-memory-utilization") + 1])
    assert share == pytest.approx(1.5e9 / (80000 * 2**20), abs=0.001)
    assert command[command.index("--block-size") + 1] == "16"
    assert "suite.backends.vllm_plugin.FairAsyncScheduler" in command
    assert "--enforce-eager" not in command
    assert launch._places(1)["CUDA_VISIBLE_DEVICES"] == "0"


@pytest.mark.usefixtures("gpus")
def test_each_gpu_must_have_room():
    settings = backend(device="cuda", tensor_parallel=2, gpus=[0, 1], model="llama-3.1-8b", kv_tokens=1024)
    assert "on GPU 1 and 2.1 GB are free" in str(settings.launch(policies.parse("fcfs")).shortage())
    with pytest.raises(BadInput, match="GPU 7: nvidia-smi does not tell its memory"):
        backend(device="cuda", gpus=[7]).launch(policies.parse("fcfs")).shortage()


@pytest.mark.usefixtures("gpus")
def test_a_pool_of_no_given_size_takes_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    launch = backend(device="cuda", kv_tokens=None).launch(policies.parse("fcfs"))
    command = launch._command(8000, tmp_path, 0)
    assert command[command.index("--gpu-memory-utilization") + 1] == "0.9"
    assert "needs 75.5 GB on GPU 0 and 10.5 GB are free" in str(launch.shortage())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 79000, 80000\n")
    assert backend(device="cuda", kv_tokens=None).launch(policies.parse("fcfs")).shortage() is None


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize("given", [{"async-scheduling": False}, {"no_async_scheduling": True}])
def test_scheduling_ahead_can_be_turned_off(given: dict[str, bool], tmp_path: Path):
    launch = backend(device="cuda", engine_args=given).launch(policies.parse("fcfs"))
    command = launch._command(8000, tmp_path, 0)
    assert "suite.backends.vllm_plugin.FairScheduler" in command
    assert "--no-async-scheduling" in command


# -- suite serve -----------------------------------------------------------------------------------------


def foreign(url: str, client: str, requests: int) -> None:
    """A client that is not the suite's: it sends 50 tokens and asks for 4, so many times."""
    for i in range(requests):
        body = {
            "model": "tiny", "prompt": [10 + i] * 50, "max_tokens": 4, "ignore_eos": True,
            "vllm_xargs": {"client_id": client},
        }  # fmt: skip
        assert ask(f"{url}/v1/completions", body, timeout=60)["usage"]["completion_tokens"] == 4


def serve_two(folder: Path, ending: signal.Signals) -> tuple[int, str, str]:
    def use(url: str) -> None:
        with ThreadPoolExecutor() as clients:
            list(clients.map(lambda who: foreign(url, *who), [("alice", 3), ("bob\x1b[31m", 2)]))

    return served("--scheduler", "dlpm", folder=folder, use=use, ending=ending)


def check_table(out: str) -> None:
    """The final table has the tokens that the two have sent and got, however much of them was cached."""
    table = {client: (requests, prompt, output) for client, requests, prompt, _, output in rows_of(out)}
    assert table == {"alice": ("3", "150", "12"), r"bob\x1b[31m": ("2", "100", "8")}
    assert "\x1b[31m" not in out


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_serve_tells_what_each_foreign_client_got(ending: signal.Signals, tmp_path: Path):
    code, out, err = serve_two(tmp_path / "logs", ending)
    assert code == 0, err
    check_table(out)
    until(lambda: running() == [])


@pytest.mark.usefixtures("fake")
def test_serve_uses_the_port_it_is_given_or_says_why_not(tmp_path: Path):
    port = free_port()
    process = serving("-s", "fcfs", "--port", str(port), folder=tmp_path / "one")
    try:
        assert url_of(process) == f"http://127.0.0.1:{port}"
        second = serving("-s", "fcfs", "--port", str(port), folder=tmp_path / "two")
        out, err = second.communicate(timeout=60)
        assert (second.returncode, out) == (2, "")
        assert err.splitlines()[-1] == (
            f"error: port {port}: cannot be used: Address already in use; choose another"
        )
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


@pytest.mark.usefixtures("fake")
def test_serve_tells_when_its_server_dies(tmp_path: Path):
    process = serving("-s", "fcfs", folder=tmp_path / "logs")
    url_of(process)
    os.kill(*fake_pids(), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "failed: vllm under fcfs was killed by SIGKILL (log: " in err


# -- vLLM itself -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("vllm")
def test_vllm_serves_a_run(tmp_path: Path):
    try:
        outcome = run(backend(), "dlpm", tmp_path / "one", a_trace(12))
        again = run(backend(), "dlpm", tmp_path / "two", a_trace(12))
    finally:
        POOL.close()
    for one in (outcome, again):
        assert [reason for reason in one.invalid if "client late" not in reason] == []
        assert set(one.requests["status"]) == {"finished"}
        assert one.requests["output_tokens"].sum() == 63
        assert one.requests["cached_tokens"].iloc[0] == 0, "the cache was cold"
        prompts = one.service["extend"].sum() + one.service["cached"].sum()
        assert (prompts, one.service["output"].sum()) == (12 * 110 + 115, 63)
        assert one.engine["policy"]["cached_blocks"] == 0
    assert again.engine["logs"] == outcome.engine["logs"], "one server served both"
    told = vllm_server._policy_told(tmp_path / "one" / "server.log")
    assert told == "fcfs", "vLLM still accounts for its arguments, as the proof of its own policies wants"


@pytest.mark.usefixtures("vllm")
def test_vllm_serves_foreign_clients(tmp_path: Path):
    code, out, err = serve_two(tmp_path / "logs", signal.SIGINT)
    assert code == 0, err
    check_table(out)
