"""Schedulers by name, by path and from entry points; their parameters; what goes wrong with them."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

import baselines.dlpm
from baselines.scheduler import Scheduler
from suite.errors import BadInput
from suite.policies import STOCK, Stock, available, parse

MINE = '''
from baselines.scheduler import Scheduler


class Mine(Scheduler):
    """Mine, all mine.

    More words.
    """

    def __init__(self, *, knob: int = 1, ratio: float = 0.5, eager: bool = False, tag: str = ""):
        if knob == 13:
            raise ValueError("knob must not be 13")
        if knob == 14:
            raise KeyError("fourteen")
        self.knob, self.ratio, self.eager, self.tag = knob, ratio, eager, tag

    def candidates(self, waiting, now):
        yield from waiting.by_arrival()


class Unrelated:
    pass


class Quits(Mine):
    def __init__(self):
        raise SystemExit(0)


class Numbered(Mine):
    name = 5


class Opaque(Mine):
    def __init__(self, *, knob=object()):
        pass


class Idle(Scheduler):
    pass
'''


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def test_every_baseline_is_found_under_its_name():
    assert {"fcfs", "lpm", "vtc", "dlpm"} <= available().keys()
    for name in available():
        instance = parse(name).build()
        assert isinstance(instance, Scheduler)
        assert instance.name == name


def test_parameters_are_converted_to_the_types_of_the_constructor():
    spec = parse("dlpm:quantum=1000,output_weight=3")
    assert spec.parameters == {"quantum": 1000.0, "output_weight": 3.0}
    assert spec.build().quantum == 1000.0
    assert spec.label == "dlpm:output_weight=3,quantum=1000"


def test_text_mapping_and_label_say_the_same():
    spec = parse("vtc:charge=extend")
    assert parse({"name": "vtc", "charge": "extend"}) == spec
    assert parse(spec.label) == spec


def test_full_parameters_hold_the_defaults():
    assert parse("dlpm:quantum=7").full_parameters == {
        "quantum": 7.0, "input_weight": 1.0, "output_weight": 2.0
    }  # fmt: skip
    assert parse("fcfs").full_parameters == {}


def test_source_digest_is_that_of_the_file():
    assert parse("dlpm").source_digest == sha256(Path(baselines.dlpm.__file__).read_bytes()).hexdigest()


def test_a_file_of_the_user_is_loaded_by_path(mine: Path):
    spec = parse(f"{mine}:Mine:knob=3,eager=true,tag=x")
    scheduler = spec.build()
    assert (spec.name, spec.label) == ("Mine", "Mine:eager=True,knob=3,tag=x")
    assert (scheduler.knob, scheduler.ratio, scheduler.eager, scheduler.tag) == (3, 0.5, True, "x")
    assert spec.summary == "Mine, all mine."
    assert spec.source_digest == sha256(MINE.encode()).hexdigest()


@pytest.mark.parametrize(
    "name", [f"{engine}:{policy}" for engine, known in STOCK.items() for policy in known]
)
def test_an_engines_own_policy_has_a_name(name: str):
    spec = parse(name)
    assert isinstance(spec, Stock)
    assert f"{spec.engine}:{spec.policy}" == spec.name == spec.target == spec.label == name
    assert parse({"name": name}) == parse(spec.label) == pickle.loads(pickle.dumps(spec)) == spec
    assert (spec.full_parameters, spec.source_digest) == ({}, "")
    with pytest.raises(
        BadInput, match=f"{name!r}: runs on backend {spec.engine} only, in real time; name one"
    ):
        spec.build()


def test_what_an_endpoint_does_has_a_name_too():
    spec = parse("stock")
    assert isinstance(spec, Stock)
    assert (spec.label, spec.engine, spec.policy, spec.target) == ("stock", "", "", "")


def test_every_build_is_a_fresh_instance(mine: Path):
    spec = parse(f"{mine}:Mine")
    assert spec.build() is not spec.build()


def test_a_spec_travels_to_another_process(mine: Path):
    pickled = pickle.dumps(parse(f"{mine}:Mine:knob=5"))
    code = "import pickle, sys; print(pickle.loads(sys.stdin.buffer.read()).build().knob)"
    there = subprocess.run([sys.executable, "-c", code], input=pickled, capture_output=True, check=True)
    assert there.stdout == b"5\n"


def test_an_entry_point_is_a_scheduler_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "plugged_in.py").write_text(MINE)
    info = tmp_path / "plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[suite.schedulers]\nplugged = plugged_in:Mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert parse("plugged:knob=2").build().knob == 2
    (info / "entry_points.txt").write_text("[suite.schedulers]\ndlpm = plugged_in:Mine\n")
    os.utime(tmp_path, (0, 0))  # importlib.metadata keeps what it saw until the folder's time changes
    with pytest.raises(BadInput, match=r"'dlpm'.*taken by baselines\.dlpm:DLPM"):
        available()


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("dlmp", "unknown scheduler 'dlmp'; did you mean 'dlpm'?"),
        ("dlpm:quantm=1", "scheduler 'dlpm': quantm: unknown key; did you mean 'quantum'?"),
        ("dlpm:quantum=lots", "scheduler 'dlpm': quantum: .*valid number.*'lots'"),
        ("dlpm:quantum=-1", "scheduler 'dlpm': quantum must be a number above 0"),
        ("dlpm:quantum", "'quantum': not an assignment; write KEY=VALUE"),
        ("vtc:charge=half", "scheduler 'vtc': charge: .*'full' or 'extend'.*'half'"),
        ("fcfs:knob=1", "scheduler 'fcfs': knob: unknown key; drop it"),
        ({"quantum": 3}, "name: missing"),
        ("nowhere.py:Mine", "nowhere.py: no such file"),
        ("{mine}", "name the class too, .*it has: Idle, Mine"),
        ("{mine}:Mines", "has no class 'Mines'; did you mean 'Mine'?"),
        ("{mine}:Unrelated", "Unrelated is no Scheduler; derive it"),
        ("{mine}:Mine:knob=1.5", "knob: .*integer.*1.5"),
        ("{mine}:Mine:knob=13", "scheduler 'Mine': knob must not be 13"),
        ("dlpm:quantum=1,quantum=2", "scheduler .*: 'quantum': stands twice; drop one"),
        ("{mine}:Quits", r"mine\.py:28: SystemExit: 0 \(while it was constructed\)"),
        ("{mine}:Numbered", r"mine\.py: Numbered\.name must be text, not 5"),
        ("{mine}:Opaque", r"mine\.py: a default cannot be recorded: .*object.*; use numbers, text"),
        ("{mine}:Idle", r"mine\.py: Idle has no method `candidates`; give it one"),
        ("sglang:lmp", "sglang has no policy 'lmp' of its own; did you mean 'lpm'?"),
        ("vllm", "vllm has no policy '' of its own; known: fcfs, priority"),
        ({"name": "vllm:lpm"}, "vllm has no policy 'lpm' of its own; known: fcfs, priority"),
        ("sglang:lpm:knob=1", "scheduler 'sglang:lpm': takes no parameters, got knob"),
        ("{mine}:Mine:knob=14", r"mine\.py:15: KeyError: 'fourteen' \(while it was constructed\)"),
    ],
)
def test_bad_choices_are_told_on_one_line(choice: object, message: str, mine: Path):
    filled = choice.format(mine=mine) if isinstance(choice, str) else choice
    with pytest.raises(BadInput, match=message) as caught:
        parse(filled)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import math\nx = 1 / 0\n", r"broken\.py:2: ZeroDivisionError"),
        ("import sys\nsys.exit(0)\n", r"broken\.py:2: SystemExit: 0"),
        ("def f(:\n", r"broken\.py:1: SyntaxError"),
        ("import no_such_module_anywhere\n", r"broken\.py:1: ModuleNotFoundError"),
    ],
)
def test_a_file_that_fails_to_import_is_told_with_its_line(source: str, message: str, tmp_path: Path):
    (tmp_path / "broken.py").write_text(source)
    with pytest.raises(BadInput, match=message):
        parse(f"{tmp_path}/broken.py:Mine")


def test_parameters_of_an_unreadable_type_are_told(tmp_path: Path):
    (tmp_path / "odd.py").write_text(
        "from __future__ import annotations\n"
        "from baselines.fcfs import FCFS\n"
        "class Odd(FCFS):\n"
        "    def __init__(self, *, knob: Missing = 1) -> None: ...\n"
    )
    with pytest.raises(BadInput, match=r"odd\.py: Odd\.__init__ has types that cannot be read: .*Missing"):
        parse(f"{tmp_path}/odd.py:Odd")
