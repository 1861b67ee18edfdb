"""The one door: ready specs, files, mappings, overrides, families by path, finished traces; its errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from suite import trace
from suite.errors import BadInput
from workloads.finished import Finished
from workloads.listing import family_entries, ready_entries
from workloads.spec import families, load, ready

REPOSITORY = Path(__file__).resolve().parents[1]
SYNTHETIC = ["chat", "closed_loop", "document", "llm_judge", "mixed", "on_off", "ramp"]

SMALL: dict[str, Any] = {
    "family": "shared_document",
    "name": "small",
    "duration": 20,
    "rate": 2,
    "clients": {"count": 3, "skew": 1},
    "arrivals": {"kind": "gamma", "cv": 2},
    "documents": 2,
    "document_tokens": {"kind": "lognormal", "mean": 500, "cv": 0.5},
    "question_tokens": 10,
    "output_tokens": 5,
}

FAMILY = """
from itertools import count
from suite.trace import Request, Segment
from workloads.family import Synthetic

class Fan(Synthetic):
    '''A question, two branches, one judgement.'''

    branches: int = 2

    def requests_per_session(self, factor=1.0):
        return round(self.branches * factor) + 2.0

    def sessions(self, client, seed):
        for number in count():
            id = f"{client.name}/{number}"
            ask = Segment(f"ask:{id}", 10)
            names = [f"{id}/{branch}" for branch in range(self.branches)]
            root = Request(f"{id}/ask", client.name, 0.0, (ask,), 3, id)
            reply = Segment(f"reply:{root.id}", 3)
            split = [Request(name, client.name, 0.0, (ask, reply), 4, id, (root.id,), 1.0) for name in names]
            judge = Request(f"{id}/judge", client.name, 0.0, (ask,), 1, id, tuple(names), 0.5)
            yield [root, *split, judge]
"""


@pytest.mark.parametrize("name", SYNTHETIC)
def test_ready_specs_make_traces_fit_for_a_quick_start(name: str) -> None:
    made = load(name).generate(0)
    assert made.header.name == name
    assert 600 <= len(made.requests) <= 1500
    assert len(made.header.misbehaving) == (0 if name in ("on_off", "ramp") else 1)


def test_all_ready_specs_are_known() -> None:
    assert {*SYNTHETIC, "mooncake"} <= set(ready())
    assert {"mixed_prefix", "mooncake", "multi_turn_chat", "shared_document"} <= set(families())


def test_the_bytes_are_fixed_for_ever() -> None:
    assert (
        load(SMALL).generate(7).digest == "8565b6e1c6c8493462103c6edfe859bb8fd549cd1fd6d3f03a244972ebd9268e"
    )


def test_another_process_with_another_hash_seed_makes_the_same_bytes() -> None:
    code = "from workloads.spec import load; print(load('chat').generate(3).digest)"
    environment = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", code]
    other = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == load("chat").generate(3).digest


def test_a_spec_file_is_named_after_itself(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("family: shared_document\nduration: 10\nrate: 4\ndocuments: 1\n")
    lengths = {"document_tokens": 100, "question_tokens": 1, "output_tokens": 1}
    assert load(path, lengths).name == load(str(path), lengths).generate(0).header.name == "mine"


def test_overrides_replace_what_stands_at_their_path() -> None:
    changed = load(SMALL, {"load": 3, "document_tokens.mean": 9000, "clients": 5, "misbehaviour.client": 1,
                           "misbehaviour.kind": "more_requests", "misbehaviour.factor": 2})  # fmt: skip
    choices = changed.generate(0).header.choices
    assert choices["load"] == 3
    assert choices["document_tokens"] == {"kind": "lognormal", "mean": 9000.0, "cv": 0.5}
    assert choices["clients"] == {"count": 5, "skew": 0.0}
    assert choices["misbehaviour"] == {"client": 1, "kind": "more_requests", "factor": 2.0}
    assert SMALL["document_tokens"]["mean"] == 500


def test_overrides_reach_into_lists() -> None:
    weights = load("on_off", {"clients.1.weight": 3}).generate(0)
    assert {(request.client, request.weight) for request in weights.requests} == {
        ("bursty", 1),
        ("steady", 3),
    }


def test_the_same_workload_by_any_way_is_the_same(tmp_path: Path) -> None:
    by_override = load("chat", {"load": 2}).generate(1)
    text = (REPOSITORY / "workloads/specs/chat.yaml").read_text()
    (tmp_path / "chat.yaml").write_text(text + "load: 2\n")
    assert load(tmp_path / "chat.yaml").generate(1).digest == by_override.digest


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".parquet"])
def test_a_finished_trace_comes_as_it_is(tmp_path: Path, ending: str) -> None:
    made = load(SMALL).generate(0)
    trace.write(made, tmp_path / f"done{ending}")
    workload = load(tmp_path / f"done{ending}")
    assert workload.name == "done"
    assert workload.generate(5).digest == made.digest
    spec = {"family": "finished", "file": str(tmp_path / f"done{ending}")}
    assert load(spec).generate(5).digest == made.digest


def test_a_shaped_trace_keeps_its_name_and_seed(tmp_path: Path) -> None:
    """The seed of the header is that of its made-up tokens; the seed of the shaping is in its record."""
    path = tmp_path / "done.jsonl"
    trace.write(load(SMALL).generate(4), path)
    made = load(path, {"shape.thin.sessions": 0.5}).generate(9)
    assert (made.header.name, made.header.seed, made.header.choices["shape"][0]["seed"]) == ("small", 4, 9)
    assert made.header.choices["documents"] == 2


@pytest.mark.parametrize(
    ("shape", "fixed"),
    [(None, True), ({"stretch": 2}, True), ({"thin": {"sessions": 0.5}}, False)],
)
def test_a_finished_trace_knows_whether_seeds_matter(
    tmp_path: Path, shape: dict[str, Any] | None, fixed: bool
) -> None:
    path = tmp_path / "done.jsonl"
    trace.write(load(SMALL).generate(0), path)
    workload = load(path, {"shape": shape})
    assert isinstance(workload, Finished)
    assert workload.fixed is fixed
    assert (workload.generate(1).digest == workload.generate(2).digest) is fixed


def test_a_family_by_path_needs_no_other_edit(tmp_path: Path) -> None:
    path = tmp_path / "fan.py"
    path.write_text(FAMILY)
    spec = {"family": str(path), "duration": 50, "rate": 8, "clients": 2}
    made = load(spec, {"branches": 3}).generate(0)
    assert (made.header.name, made.header.generator) == ("fan", "fan")
    assert made.header.choices["branches"] == 3
    by_id = {request.id: request for request in made.requests}
    judge = by_id["client-0/0/judge"]
    assert judge.after == ("client-0/0/0", "client-0/0/1", "client-0/0/2")
    assert judge.arrival == pytest.approx(by_id["client-0/0/ask"].arrival + 1.5)
    closed = load(spec | {"arrivals": {"kind": "closed_loop", "concurrency": 2, "think": 4}}).generate(0)
    second = next(request for request in closed.requests if request.id == "client-0/1/ask")
    assert (second.after, second.think) == (("client-0/0/judge",), 4.0)


def test_the_listing_says_of_each_what_it_is_and_where_it_comes_from() -> None:
    specs, known = ready_entries(), family_entries()
    assert sorted(entry.name for entry in specs) == ready()
    assert sorted(entry.name for entry in known) == sorted(families())
    assert all(len(entry.what) > 20 and "\n" not in entry.what for entry in [*specs, *known])
    kinds = {entry.name: (entry.kind, entry.licence) for entry in [*specs, *known]}
    assert kinds["chat"] == kinds["multi_turn_chat"] == ("synthetic", "")
    assert kinds["mooncake"] == ("recorded", "Apache-2.0")
    assert kinds["finished"] == ("recorded", "")
    assert kinds["wildchat"][0] == "hub"
    what = next(entry.what for entry in specs if entry.name == "mooncake")
    assert what.startswith("Ten minutes of the conversation trace of Mooncake (FAST'25 release), slowed down")


# -- errors ------------------------------------------------------------------------------------------------


def problem(source: Any, overrides: dict[str, Any] | None = None, seed: int = 0) -> str:
    with pytest.raises(BadInput) as caught:
        load(source, overrides or {}).generate(seed)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"rates": 3}, "chat: unknown key 'rates'; did you mean 'rate'?"),
        ({"rate": -1}, "chat: rate: input should be greater than 0 (got '-1')"),
        ({"rate": "3"}, "chat: rate: input should be a valid number (got '3')"),
        ({"rate": True}, "chat: rate: input should be a valid number (got 'True')"),
        ({"rate": float("inf")}, "chat: rate: input should be a finite number (got 'inf')"),
        ({"rate": None}, "chat: rate: missing; give the total in requests/s, or every client"),
        ({"clients": 0}, "chat: clients: input should be greater than or equal to 1 (got '0')"),
        ({"clients": {}}, "chat: clients.count: missing"),
        ({"clients": []}, "chat: clients: tuple should have at least 1 item"),
        ({"clients": [{"nam": "a"}]}, "chat: clients.0: unknown key 'nam'; did you mean 'name'?"),
        ({"clients": {"count": 3, "skew": [1, 2]}}, "chat: clients: skew has 2 shares for 3 clients"),
        ({"clients.skew": 1}, "chat: cannot override 'clients.skew': the spec has nothing that holds it"),
        ({"think.mean.x": 1}, "chat: cannot override 'think.mean.x'"),
        ({"clients": [{"name": "a"}], "clients.3.rate": 1}, "chat: cannot override 'clients.3.rate'"),
        ({"arrivals": "poisson"}, "chat: arrivals: input should be a mapping (got 'poisson')"),
        ({"arrivals": {"cv": 2}}, "chat: arrivals: no kind '(none)'; known: closed_loop, constant, gamma"),
        ({"arrivals.kind": "poison"}, "chat: arrivals: no kind 'poison'; did you mean 'poisson'?"),
        ({"arrivals": {"kind": "gamma"}}, "chat: arrivals.cv: missing"),
        ({"arrivals.cvv": 1}, "chat: arrivals: unknown key 'cvv'; did you mean 'cv'?"),
        ({"turns": {"kind": "uniform", "low": 5, "high": 2}}, "chat: turns: low (5) is above high (2)"),
        ({"turns": 1.5}, "chat: turns: input should be a valid integer"),
        ({"user_tokens": {"kind": "empirical", "values": [1, 0]}}, "chat: user_tokens.values.1: input"),
        ({"misbehaviour.client": 9}, "chat: misbehaviour.client: 9 is not below the 4 clients"),
        (
            {"misbehaviour.kind": "rude"},
            "chat: misbehaviour: no kind 'rude'; known: added_prefix, bigger_program",
        ),
        ({"misbehaviour.factor": 0.5}, "chat: misbehaviour.factor: input should be greater than or equal"),
        ({"misbehaviour.tokens": 9}, "chat: misbehaviour: unknown key 'tokens'"),
        ({"misbehaviour": {"client": 0, "kind": "added_prefix"}}, "chat: misbehaviour.tokens: missing"),
        ({"family": "multi_turn"}, "chat: family: no family 'multi_turn'; did you mean 'multi_turn_chat'?"),
        ({"family": "describe"}, "chat: family: no family 'describe'; known: agent, azure, "),
        ({"family": None}, "chat: family: give one of agent, azure, "),
        ({"family": "nope.py"}, "chat: family: no such file: nope.py"),
        ({"user_tokens": 10**12}, "chat: user_tokens: input should be less than or equal to 10000000"),
        ({"clients": 10**12}, "chat: clients: input should be less than or equal to 100000 (got"),
        ({"clients": [{"name": "a", "weight": 1e-7}]}, "chat: clients.0.weight: input should be greater"),
        ({"rate": 1e9}, "chat: it would make about 3.2e+11 requests, more than 10,000,000; make the rate"),
        ({"load": 1e6}, "chat: it would make about 1.3e+09 requests"),
        ({"arrivals": {"kind": "closed_loop", "concurrency": 90_000}, "load": 30}, "chat: it would make"),
        ({"think": 1e9, "duration": 10}, "workload 'chat': it came out "),
        ({"duration": 1e-6}, "workload 'chat': it came out without requests"),
    ],
)
def test_what_is_wrong_in_a_spec_is_named_by_place_and_field(overrides: dict[str, Any], message: str) -> None:
    assert problem("chat", overrides).startswith(message)


def test_a_missing_field_is_named() -> None:
    spec = {key: value for key, value in SMALL.items() if key != "documents"}
    assert problem(spec) == "workload: documents: missing; give it a value"
    assert problem({}).startswith("workload: family: give one of")


def test_too_many_common_documents() -> None:
    assert problem(SMALL, {"common_documents": 3}) == "workload: common_documents: 3 of 2 documents"


def test_seeds_are_not_negative() -> None:
    assert problem(SMALL, seed=-1) == "seed: -1 is negative; seeds are whole numbers from 0"


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    assert problem("chatt") == "chatt: no such workload; did you mean 'chat'?"
    assert problem("none.yaml") == "none.yaml: no such workload; the file is not there"
    assert problem("none.jsonl") == "none.jsonl: file: no such trace file 'none.jsonl'"
    assert problem(tmp_path).startswith(f"{tmp_path}: no such workload")


def test_files_that_hold_no_spec(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: [1\nb: 2\n")
    assert problem(path).startswith(f"{path}:2: ")
    path.write_text("- 1\n")
    assert problem(path).startswith(f"{path}: ")
    path.write_text("rate: 2\n")
    assert problem(path).startswith(f"{path}: family: give one of")


def test_a_finished_trace_takes_a_shape_and_no_parameters(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    trace.write(load(SMALL).generate(0), path)
    expected = f"{path}: unknown key 'load'; known: family, file, name, shape"
    assert problem(path, {"load": 2}) == expected
    expected = f"{path}: shape: input should be a mapping (got '3')"
    assert problem(path, {"shape": 3}) == expected
    assert problem(path, {"shape.stretch": -2}).startswith(f"{path}: shape.stretch: input should be greater")


def test_family_files_that_do_not_work(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("1 / 0\n")
    assert problem({"family": str(path)}).endswith(
        f"{path} fails to load: ZeroDivisionError: division by zero"
    )
    path.write_text("from workloads.family import Synthetic\n")
    assert "defines no concrete subclass" in problem({"family": str(path)})
