"""The real clients of the hub, `datasets` and `huggingface_hub`, against a stand-in for the hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_hub import COMMIT, FakeHub
from text_models import saved_model

from suite.trace import read
from workloads.sharegpt import ShareGPT
from workloads.spec import load

SUITE = Path(sys.executable).with_name("suite")
ROWS = [
    {
        "timestamp": "2023-04-09T00:02:53Z",
        "hashed_ip": f"ip-{i % 2}",
        "conversation": [
            {"role": "user", "content": f"what time is it, fox {i}"},
            {"role": "assistant", "content": "it is late"},
        ],
    }
    for i in range(6)
]
SHAREGPT, SHAREGPT_FILE = ShareGPT.REPOSITORY, str(ShareGPT.FILES)
SHARED = {
    "id": "x",
    "conversations": [
        {"from": "human", "value": "what time is it"},
        {"from": "gpt", "value": "it is late"},
    ],
}


def parquet(rows: list[dict[str, Any]]) -> bytes:
    content = BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), content)
    return content.getvalue()


Generate = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def generate(tmp_path: Path) -> Generate:
    """`suite workload generate ... -o x.jsonl` in a new process and an empty home."""

    def run(hub: FakeHub, *arguments: str) -> subprocess.CompletedProcess[str]:
        home = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        return subprocess.run(
            [SUITE, "workload", "generate", *arguments, "-o", "x.jsonl"],
            cwd=tmp_path, env=os.environ | home, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    return run


def test_rows_and_tokenizer_come_from_the_hub_as_from_a_copy(tmp_path: Path, generate: Generate) -> None:
    model = saved_model(tmp_path / "Qwen2.5-7B-Instruct")
    rows = {"README.md": b"# Chats", "data/train-00000-of-00002.parquet": parquet(ROWS[:3])}
    rows["data/train-00001-of-00002.parquet"] = parquet(ROWS[3:])
    files = {file.name: file.read_bytes() for file in model.iterdir()}
    with FakeHub({"allenai/WildChat-1M": rows, "Qwen/Qwen2.5-7B-Instruct": files}) as hub:
        ran = generate(hub, "wildchat", "--set", "limit=5")
    assert (ran.returncode, ran.stderr) == (0, "")
    trace = read(tmp_path / "x.jsonl")
    (tmp_path / "copy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    copy = load("wildchat", {"file": str(tmp_path / "copy.jsonl"), "tokenizer": str(model), "limit": 5})
    assert trace.requests == copy.generate(0).requests
    assert trace.tokens.keys() == copy.generate(0).tokens.keys()
    assert trace.header.choices["tokenizer_sha256"] == copy.generate(0).header.choices["tokenizer_sha256"]
    assert f"hub, commit {COMMIT};" in trace.header.choices["provenance"]
    assert not [*(tmp_path / "home").rglob("*.parquet"), *(tmp_path / "home").rglob("*.arrow")]


def test_an_array_on_the_hub_is_not_fetched_to_its_end(tmp_path: Path, generate: Generate) -> None:
    model = saved_model(tmp_path / "model")
    wanted = ["sharegpt_hub", "--set", f"tokenizer={model}", "--set", "rate=1", "--set", "duration=3"]
    rows = f"[{','.join([json.dumps(SHARED | {'unused': 'x' * 100_000})] * 150)}, oops]".encode()
    (tmp_path / "copy.json").write_bytes(rows)
    with FakeHub({SHAREGPT: {"README.md": b"# Chats", SHAREGPT_FILE: rows, "other.json": b"{"}}) as hub:
        ran = generate(hub, *wanted, "--set", "limit=20")
        assert (ran.returncode, ran.stderr) == (0, "")
        assert len(rows) / 10 < hub.sent < len(rows) / 2
        broken = generate(hub, *wanted, "--set", "limit=null")
    assert f"{SHAREGPT}: not to be had from the hub: row 151: invalid char in json text" in broken.stderr
    copy = {"file": str(tmp_path / "copy.json"), "tokenizer": str(model), "limit": 20}
    there = load("sharegpt_hub", copy | {"rate": 1, "duration": 3}).generate(0)
    assert read(tmp_path / "x.jsonl").requests == there.requests


def test_json_on_the_hub_may_be_an_object_per_line(tmp_path: Path, generate: Generate) -> None:
    model = saved_model(tmp_path / "model")
    wanted = ["sharegpt_hub", "--set", f"tokenizer={model}", "--set", "rate=1", "--set", "duration=3"]
    rows = (json.dumps(SHARED) + "\n").encode() * 30
    with FakeHub({SHAREGPT: {"README.md": b"# Chats", SHAREGPT_FILE: rows}}) as hub:
        ran = generate(hub, *wanted)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert read(tmp_path / "x.jsonl").requests


def test_a_data_set_that_is_a_program_is_refused_and_not_run(tmp_path: Path, generate: Generate) -> None:
    model = saved_model(tmp_path / "model")
    script = f"open({str(tmp_path / 'run')!r}, 'w')".encode()
    with FakeHub({"bigai-nlco/LooGLE": {"README.md": b"# x", "LooGLE.py": script}}) as hub:
        ran = generate(hub, "loogle", "--set", f"tokenizer={model}")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == (
        "error: bigai-nlco/LooGLE: not to be had from the hub: Dataset scripts are no longer supported, but "
        "found LooGLE.py; name a local copy with `file`\n"
    )
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "x.jsonl").exists()


def test_a_gated_data_set_is_refused_with_the_way_in(tmp_path: Path, generate: Generate) -> None:
    model = saved_model(tmp_path / "model")
    name = "lmsys/lmsys-chat-1m"
    with FakeHub({name: {"README.md": b"# x", "data/train.parquet": parquet(ROWS)}}, gated=name) as hub:
        ran = generate(hub, "lmsys_chat", "--set", f"tokenizer={model}")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith(f"error: {name}: not to be had from the hub: Dataset '{name}' is a gated")
    assert "accept its licence at huggingface.co/datasets/lmsys/lmsys-chat-1m" in ran.stderr
    assert ran.stderr.count("\n") == 1
