"""The experiment file: how it multiplies into cells, what a cell's digest hangs on, what is refused."""

from __future__ import annotations

import pickle
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import TINY

from suite import experiment, trace
from suite.errors import BadInput
from suite.experiment import Experiment, load
from suite.validation import assignments, read_yaml


def write(folder: Path, **changes: Any) -> str:
    content = {"name": "e", "workloads": [TINY], "schedulers": ["fcfs"], **changes}
    path = folder / "e.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def labels(found: Experiment, *keys: str) -> list[tuple[Any, ...]]:
    return [tuple(cell.labels.get(key) for key in keys) for cell in found.cells]


def test_cells_are_workloads_times_seeds_times_schedulers(tmp_path: Path):
    found = load(write(tmp_path, workloads=["chat", TINY], schedulers=["fcfs", "vtc"], seeds=[3, 5]))
    assert found.name == "e"
    assert labels(found, "workload", "seed", "scheduler") == [
        (workload, seed, scheduler)
        for workload in ("chat", "tiny")
        for seed in (3, 5)
        for scheduler in ("fcfs", "vtc")
    ]


def test_seeds_may_be_a_count(tmp_path: Path):
    assert labels(load(write(tmp_path, seeds=3)), "seed") == [(0,), (1,), (2,)]


def test_a_sweep_multiplies_what_it_names_and_nothing_else(tmp_path: Path):
    sweep = {"workload.load": [1, 2], "dlpm.quantum": [500, 1000], "backend.max_running": [8, 16]}
    found = load(write(tmp_path, schedulers=["fcfs", "dlpm"], sweep=sweep))
    assert Counter(labels(found, "scheduler")) == {
        ("fcfs",): 4, ("dlpm:quantum=500",): 4, ("dlpm:quantum=1000",): 4
    }  # fmt: skip
    for cell in found.cells:
        assert cell.overrides["load"] == cell.labels["workload.load"]
        assert cell.settings["max_running"] == cell.labels["backend.max_running"]
        assert cell.scheduler.parameters.get("quantum") == cell.labels.get("dlpm.quantum")
        assert cell.labels["policy"] == cell.scheduler.name


def test_a_swept_parameter_wins_over_a_given_one(tmp_path: Path):
    found = load(write(tmp_path, schedulers=["dlpm:quantum=1"], sweep={"dlpm.quantum": [7]}))
    assert found.cells[0].scheduler.parameters == {"quantum": 7.0}


def test_workload_entries_may_change_a_spec(tmp_path: Path):
    found = load(write(tmp_path, workloads=["chat", {"spec": "chat", "load": 2}]))
    assert labels(found, "workload") == [("chat",), ("chat:load=2",)]
    plain, busy = (len(experiment.generate(cell.trace_key).requests) for cell in found.cells)
    assert busy > 1.5 * plain


def test_slugs_are_unique_and_safe_as_folders(tmp_path: Path):
    workloads = [TINY | {"name": name} for name in ("a b", "a/b", "../x", "x" * 190, "ü ü")]
    slugs = [cell.slug for cell in load(write(tmp_path, workloads=workloads)).cells]
    assert len(set(slugs)) == 5
    for slug in slugs:
        assert slug == Path(slug).name
        assert not slug.startswith(".")
        assert len(slug.encode()) < 200


def test_flags_replace_lists_and_add_to_the_sweep(tmp_path: Path):
    path = write(tmp_path, schedulers=["fcfs", "lpm"], seeds=4, sweep={"workload.load": [1, 2]})
    found = load(path, schedulers=["vtc"], seeds=[9], sweep={"workload.load": 3, "vtc.charge": "extend"})
    assert labels(found, "scheduler", "seed", "workload.load") == [("vtc:charge=extend", 9, 3)]


def test_flags_alone_make_an_experiment():
    found = load(workloads=["chat"], schedulers=["vtc", "dlpm:quantum=2000"])
    assert labels(found, "workload", "scheduler") == [("chat", "vtc"), ("chat", "dlpm:quantum=2000")]


def test_a_finished_trace_makes_cells_for_the_first_seed_alone(tmp_path: Path):
    ready = tmp_path / "t.jsonl"
    trace.write(experiment.generate(load(write(tmp_path)).cells[0].trace_key), ready)
    found = load(write(tmp_path, workloads=[str(ready), TINY], seeds=[3, 5]))
    assert labels(found, "workload", "seed") == [("t", 3), ("tiny", 3), ("tiny", 5)]


def test_candidates_stand_beside_the_files_own_and_share_its_folder(tmp_path: Path):
    path = write(tmp_path, schedulers=["fcfs", {"name": "dlpm", "quantum": 9}], seeds=2)
    found = load(path, candidates=["vtc", "dlpm:quantum=9", "vtc"])
    assert found.schedulers == ["fcfs", "dlpm:quantum=9", "vtc"]
    assert (found.folder, found.seeds) == ("e", [0, 1])
    assert [cell for cell in found.cells if cell.scheduler.label != "vtc"] == list(load(path).cells)
    with pytest.raises(BadInput, match=r"e\.yaml: unknown scheduler 'vtcc'; did you mean 'vtc'"):
        load(path, candidates=["vtcc"])


def test_a_service_level_is_read_and_decides_no_cell(tmp_path: Path):
    plain, judged = load(write(tmp_path)), load(write(tmp_path, slo={"ttft": 5, "tpot": 0.2}))
    assert judged.slo is not None
    assert (judged.slo.ttft, judged.slo.tpot, judged.slo.e2e) == (5, 0.2, None)
    assert (plain.slo, plain.cells) == (None, judged.cells)


def test_a_variation_has_a_folder_of_its_own(tmp_path: Path):
    path = write(tmp_path)
    variations: list[dict[str, Any]] = [
        {"schedulers": ["dlpm"]},
        {"seeds": [1]},
        {"workloads": ["chat"]},
        {"sweep": {"workload.load": 2}},
        {"sweep": {"workload.load": 3}},
    ]
    folders = [load(path, **variation).folder for variation in variations]
    folders += [load(workloads=["chat"], schedulers=[policy]).folder for policy in ("vtc", "lpm")]
    assert load(path).folder == "e"
    assert len(set(folders)) == len(folders)
    assert [bool(re.fullmatch(r"(e|adhoc)-[0-9a-f]{6}", folder)) for folder in folders] == [True] * 7
    assert load(path, **variations[0]).folder == folders[0], "the same command resumes"


def test_values_of_flags_and_files_are_read_alike(tmp_path: Path):
    for text, value in (
        ("1e3", 1000.0),
        ("-2.5E+1", -25.0),
        (".5e1", 5.0),
        ("[1e9, 2]", [1e9, 2]),
        ("'1e3'", "1e3"),
        ("e3", "e3"),
        ("0x1e3", 483),
    ):
        (tmp_path / "v.yaml").write_text(f"key: {text}\n")
        assert assignments([f"key={text}"]) == read_yaml(tmp_path / "v.yaml") == {"key": value}


@pytest.mark.parametrize("text", ["2024-13-45", "9" * 5000, "[" * 5000, "!!bool maybe", "a: b: c"])
def test_a_flags_value_that_is_no_yaml_is_text(text: str):
    assert assignments([f"key={text}"]) == {"key": text}


def test_a_key_may_stand_once():
    for given in (["a=1", "a=2"], ["b={a: 1, a: 2}"]):
        with pytest.raises(BadInput, match=r"'a'.* stands twice; drop one"):
            assignments(given)
    assert assignments(["b={a: {x: 1}, c: {x: 1}}"]) == {"b": {"a": {"x": 1}, "c": {"x": 1}}}


@pytest.mark.parametrize("name", experiment.ready())
def test_ready_experiments_resolve(name: str, traces: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SUITE_TRACES", str(traces))
    assert {cell.scheduler.name for cell in load(name).cells} >= {"vtc", "dlpm"}


def test_cells_are_plain_data(tmp_path: Path):
    cell = load(write(tmp_path, schedulers=["dlpm:quantum=3"])).cells[0]
    assert pickle.loads(pickle.dumps(cell)) == cell


def test_the_digest_hangs_on_everything_that_decides_the_outcome(tmp_path: Path):
    def digest(trace: str = "t", **changes: Any) -> str:
        return load(write(tmp_path, **changes)).cells[0].digest(trace)

    mine = tmp_path / "mine.py"
    mine.write_text("from baselines.fcfs import FCFS\nclass Mine(FCFS):\n    name = ''\n")
    yours = tmp_path / "yours.py"
    yours.write_text(mine.read_text() + "# another\n")
    cost = tmp_path / "cost.yaml"
    cost.write_text("{step: 1, token: 1, attended: 0, read: 0, sequence: 0}\n")
    digests = [
        digest(),
        digest(trace="u"),
        digest(schedulers=["lpm"]),
        digest(schedulers=["dlpm"]),
        digest(schedulers=["dlpm:quantum=3"]),
        digest(schedulers=[f"{mine}:Mine"]),
        digest(schedulers=[f"{yours}:Mine"]),
        digest(schedulers=["round-robin+fcfs"]),
        digest(schedulers=["d2lpm+fcfs"]),
        digest(schedulers=["d2lpm:quantum=3+fcfs"]),
        digest(schedulers=["sglang-router:random+fcfs"], backend={"kind": "vllm"}),
        digest(schedulers=["vllm-router:random+fcfs"], backend={"kind": "vllm"}),
        digest(schedulers=["round-robin+fcfs"], backend={"kind": "simulator", "replicas": 2}),
        digest(backend={"kind": "simulator", "max_running": 7}),
        digest(seeds=[1]),
        digest(backend={"kind": "simulator", "cost": str(cost)}),
    ]
    cost.write_text("{step: 2, token: 1, attended: 0, read: 0, sequence: 0}\n")
    digests.append(digest(backend={"kind": "simulator", "cost": str(cost)}))
    assert len(set(digests)) == len(digests)
    assert digest() == digests[0]
    assert digest(schedulers=["dlpm:quantum=2000"]) == digest(schedulers=["dlpm"]), "a default, given"


def test_several_backends_in_one_experiment(tmp_path: Path):
    backends = [{"kind": "simulator"}, {"kind": "simulator", "name": "small", "max_running": 8}]
    cells = load(write(tmp_path, backend=backends, sweep={"backend.token_budget": [512, 1024]})).cells
    assert {(cell.labels["backend"], cell.labels["backend.token_budget"]) for cell in cells} == {
        ("simulator", 512), ("simulator", 1024), ("small", 512), ("small", 1024)
    }  # fmt: skip
    assert {cell.settings["max_running"] for cell in cells if cell.labels["backend"] == "small"} == {8}
    assert len({cell.slug for cell in cells}) == len(cells)
    with pytest.raises(BadInput, match=r"on backend 'simulator' stands twice; drop one, or give it another"):
        load(write(tmp_path, backend=[{"kind": "simulator"}] * 2))
    with pytest.raises(BadInput, match=r"backend\[1\]: gqu: unknown key"):
        load(write(tmp_path, backend=[{"kind": "simulator"}, {"kind": "simulator", "gqu": 1}]))


def test_an_engines_own_scheduler_makes_cells_for_that_engine_alone(tmp_path: Path):
    names = ["fcfs", "vllm:priority", "sglang:lpm"]
    backends = [{"kind": "simulator"}, {"kind": "vllm"}, {"kind": "sglang"}]
    cells = load(write(tmp_path, backend=backends, schedulers=names)).cells
    found = {(cell.labels["backend"], cell.labels["scheduler"]) for cell in cells}
    ours = {(kind, "fcfs") for kind in ("simulator", "vllm", "sglang")}
    assert found == ours | {("vllm", "vllm:priority"), ("sglang", "sglang:lpm")}
    for name, backend in [
        ("sglang:lpm", {"kind": "vllm"}),
        ("sglang:lpm", {"kind": "sglang", "clock": "virtual"}),
        ("stock", {"kind": "sglang"}),
    ]:
        with pytest.raises(BadInput, match=rf"scheduler '{name}': .*; no backend here fits"):
            load(write(tmp_path, backend=backend, schedulers=[name]))


def test_a_scheduler_behind_a_router_is_swept_by_either_name(tmp_path: Path):
    sweep = {"d2lpm.quantum": [5, 6], "dlpm.quantum": 7, "backend.replicas": [1, 2]}
    schedulers = ["d2lpm+dlpm", "round-robin+dlpm"]
    cells = load(write(tmp_path, schedulers=schedulers, sweep=sweep)).cells
    assert Counter((cell.labels["policy"], cell.labels["scheduler"]) for cell in cells) == {
        ("d2lpm+dlpm", "d2lpm:quantum=5+dlpm:quantum=7"): 2,
        ("d2lpm+dlpm", "d2lpm:quantum=6+dlpm:quantum=7"): 2,
        ("round-robin+dlpm", "round-robin+dlpm:quantum=7"): 2,
    }
    for cell in cells:
        assert cell.scheduler.router is not None
        assert cell.scheduler.router.parameters.get("quantum") == cell.labels.get("d2lpm.quantum")
        assert cell.settings["replicas"] == cell.labels["backend.replicas"]
    assert len({cell.slug for cell in cells}) == len(cells)


@pytest.mark.parametrize("kind", ["simulator", "vllm", "sglang"])
def test_several_replicas_need_a_router(kind: str, tmp_path: Path):
    backend = {"kind": kind, "replicas": 2}
    assert len(load(write(tmp_path, backend=backend, schedulers=["d2lpm+dlpm"])).cells) == 1
    for changes in (
        {"backend": backend, "schedulers": ["d2lpm+dlpm", "lpm"]},
        {"backend": {"kind": kind}, "schedulers": ["lpm"], "sweep": {"backend.replicas": [1, 2]}},
    ):
        with pytest.raises(BadInput, match=r"lpm: 2 replicas need a router; write round-robin\+lpm"):
            load(write(tmp_path, **changes))
    mine = tmp_path / "mine.py"
    mine.write_text("from baselines.fcfs import FCFS\nclass Mine(FCFS):\n    name = 'mine'\n")
    with pytest.raises(BadInput, match=rf"write round-robin\+{mine}:Mine$"):
        load(write(tmp_path, backend=backend, schedulers=[f"{mine}:Mine"]))


def test_another_projects_router_makes_cells_for_real_engines_alone(tmp_path: Path):
    backends = [{"kind": "simulator"}, {"kind": "vllm"}]
    names = ["d2lpm+fcfs", "sglang-router:random+fcfs", "sglang-router:random+vllm:priority"]
    cells = load(write(tmp_path, backend=backends, schedulers=names)).cells
    assert {(cell.labels["backend"], cell.labels["scheduler"]) for cell in cells} == {
        ("simulator", names[0]), *(("vllm", name) for name in names)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("scheduler", "backend"),
    [
        ("sglang-router:random+fcfs", {"kind": "simulator"}),
        ("round-robin+sglang:lpm", {"kind": "vllm"}),
        ("round-robin+fcfs", {"kind": "vllm", "clock": "virtual"}),
        ("round-robin+stock", {"kind": "endpoint", "url": "http://x"}),
    ],
)
def test_a_router_that_no_backend_can_run_is_told(scheduler: str, backend: Any, tmp_path: Path):
    with pytest.raises(BadInput, match=r"its router runs .*; no backend here fits"):
        load(write(tmp_path, schedulers=[scheduler], backend=backend))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheduler": ["fcfs"]}, r"e\.yaml: scheduler: unknown key; did you mean 'schedulers'\?"),
        (
            {"schedulers": ["dlmp"]},
            r"e\.yaml: schedulers\[0\]: unknown scheduler 'dlmp'; did you mean 'dlpm'",
        ),
        ({"schedulers": []}, r"e\.yaml: schedulers: .*at least 1"),
        ({"schedulers": [3]}, r"e\.yaml: schedulers\.0: write a name, a path or a mapping, not 3"),
        ({"schedulers": ["vtc", "vtc"]}, r"'tiny' under scheduler 'vtc' stands twice"),
        ({"workloads": ["chatt"]}, r"e\.yaml: workloads\[0\]: .*'chat'"),
        ({"workloads": [TINY | {"rate": -1}]}, r"e\.yaml: workloads\[0\]: .*rate: .*-1"),
        ({"workloads": ["gone.jsonl"]}, r"e\.yaml: workloads\[0\]: gone\.jsonl: file: no such trace"),
        (
            {"backend": {"kind": "simulater"}},
            r"backend: kind: no backend 'simulater'; did you mean 'simulator'",
        ),
        ({"backend": {"kind": "simulator", "gqu": 1}}, r"backend: gqu: unknown key; did you mean 'gpu'\?"),
        (
            {"backend": "sglang"},
            r"e\.yaml: backend\.0: write a mapping such as \{kind: simulator\}, not 'sgl",
        ),
        (
            {"backend": {"kind": "endpoint", "url": "http://x"}},
            r"'fcfs': runs on every backend but an endpoint",
        ),
        ({"seeds": [-1]}, r"e\.yaml: seeds\.0: .*greater than or equal to 0"),
        ({"seeds": 0}, r"e\.yaml: seeds: a count of seeds is at least 1 .*; or list them"),
        ({"seeds": -1}, r"e\.yaml: seeds: a count of seeds is at least 1 "),
        ({"seeds": 10**11}, r"e\.yaml: seeds: a count .* at most 1,000; "),
        ({"sweep": {"workload": [1]}}, r"sweep\.workload: a key is WHAT\.PARAMETER, such as workload\.load"),
        (
            {"sweep": {"dlpm.quantum": [1]}},
            r"sweep\.dlpm\.quantum: nothing here to sweep; known: backend, fcfs",
        ),
        ({"sweep": {"workload.laod": [1]}}, r"workloads\[0\]: .*laod"),
        ({"sweep": {"workload.load": []}}, r"sweep\.workload\.load: .*at least 1"),
        ({"slo": {"tttf": 1}}, r"e\.yaml: slo\.tttf: unknown key"),
        ({"slo": {"ttft": 0}}, r"e\.yaml: slo\.ttft: .*greater than 0"),
        ({"slo": {}}, r"e\.yaml: slo: .*give ttft, tpot or e2e"),
        ({"name": "../up"}, r"e\.yaml: name: .*pattern"),
    ],
)
def test_what_cannot_be_run_is_told_with_file_and_field(changes: Any, message: str, tmp_path: Path):
    with pytest.raises(BadInput, match=message) as caught:
        load(write(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_experiment_are_told(tmp_path: Path):
    path = tmp_path / "e.yaml"
    for content, message in (
        ("name: [\n", r"e\.yaml:2: not valid YAML"),
        (
            "name: e\nwhen: 2024-13-45\n",
            r"e\.yaml: a value cannot be read: month must be in 1\.\.12; mend it",
        ),
        ("sure: !!bool maybe\n", r"e\.yaml: a value cannot be read: .*maybe"),
        (f"seeds: {'9' * 5000}\n", r"e\.yaml: a value cannot be read: .*5000 digits; mend it"),
        (f"seeds: {'[' * 5000}\n", r"e\.yaml: nested too deeply"),
        ("name: e\nseeds: 1\nseeds: 2\n", r"e\.yaml:3: not valid YAML: the key 'seeds' stands twice; drop"),
        ("backend: {kind: simulator, kind: x}\n", r"e\.yaml:1: .*'kind' stands twice"),
        ("- a\n", r"e\.yaml: must hold `key: value` lines"),
        ("name: e\nworkloads: [chat]\n", r"e\.yaml: schedulers: missing"),
    ):
        path.write_text(content)
        with pytest.raises(BadInput, match=message):
            load(str(path))
    with pytest.raises(BadInput, match=r": a folder, not an experiment; give a YAML file"):
        load(str(tmp_path))
    with pytest.raises(BadInput, match=r"quikstart: not an experiment; did you mean 'quickstart'"):
        load("quikstart")
    with pytest.raises(BadInput, match=r"gone\.yaml: not an experiment; no such file"):
        load("gone.yaml")
    with pytest.raises(BadInput, match=r"an experiment .*quickstart.* or at least one workload"):
        load(schedulers=["fcfs"])
