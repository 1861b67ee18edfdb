"""Schedulers and routers by name, by path and from entry points; their parameters; what goes wrong."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

import baselines.d2lpm
import baselines.dlpm
import baselines.vtc
from baselines.router import Router
from baselines.scheduler import Scheduler
from suite.errors import BadInput
from suite.policies import PEERS, STOCK, PeerRouter, Stock, available, available_routers, parse, parse_router

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

DEALER = '''
from baselines.fcfs import FCFS
from baselines.router import Router


class Dealer(Router):
    """Deals.

    More words.
    """

    name = "dealer"

    def __init__(self, *, knob: float = 1):
        self.knob = knob

    def route(self, request, workers, now):
        return workers[0]


class Borrowed(Dealer):
    name = "dlpm"


class Added(Dealer):
    name = "a+b"


class Idle(Router):
    pass


class Twin(FCFS):
    name = "dealer"
'''


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


@pytest.fixture
def dealer(tmp_path: Path) -> Path:
    path = tmp_path / "dealer.py"
    path.write_text(DEALER)
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
    assert f"{spec.engine}:{spec.engine_policy}" == spec.name == spec.target == spec.label == name
    assert parse({"name": name}) == parse(spec.label) == pickle.loads(pickle.dumps(spec)) == spec
    assert (spec.full_parameters, spec.source_digest) == ({}, "")
    with pytest.raises(
        BadInput, match=f"{name!r}: runs on backend {spec.engine} only, in real time; name one"
    ):
        spec.build()


def test_what_an_endpoint_does_has_a_name_too():
    spec = parse("stock")
    assert isinstance(spec, Stock)
    assert (spec.label, spec.engine, spec.engine_policy, spec.target) == ("stock", "", "", "")


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
        ("{mine}:Numbered", r"mine\.py: Numbered\.name must be text without '\+', not 5"),
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


# -- routers ---------------------------------------------------------------------------------------------


def test_every_baseline_router_is_found_under_its_name_and_no_scheduler_has_it():
    assert {"round-robin", "client-round-robin", "d2lpm"} <= available_routers().keys()
    for name in available_routers():
        instance = parse_router(name).build()
        assert isinstance(instance, Router)
        assert instance.name == name
    assert not available().keys() & available_routers().keys()


def test_a_scheduler_behind_a_router():
    spec = parse("d2lpm:quantum=500+vtc:charge=extend")
    assert spec.router is not None
    assert (spec.label, spec.policy, spec.name) == ("d2lpm:quantum=500+vtc:charge=extend", "d2lpm+vtc", "vtc")
    assert (spec.router.label, spec.router.name) == ("d2lpm:quantum=500", "d2lpm")
    assert (spec.build().name, spec.router.build().quantum) == ("vtc", 500.0)
    assert spec.router.full_parameters == {"quantum": 500.0, "input_weight": 1.0, "output_weight": 2.0}
    assert spec.files == (Path(baselines.vtc.__file__), Path(baselines.d2lpm.__file__))
    assert pickle.loads(pickle.dumps(spec)) == parse(spec.label) == spec
    assert parse("vtc:charge=extend").router is None


@pytest.mark.parametrize(
    "mapping",
    [
        {"name": "dlpm", "router": "d2lpm:quantum=20000", "quantum": 2000},
        {"name": "dlpm", "router": {"name": "d2lpm", "quantum": 20000}, "quantum": 2000},
    ],
)
def test_a_mapping_may_name_the_router(mapping: dict[str, object]):
    assert parse(mapping) == parse("d2lpm:quantum=20000+dlpm:quantum=2000")


def test_its_parameters_and_the_routers_are_changed_apart():
    spec = parse("d2lpm:quantum=1+dlpm:quantum=2").with_parameters({"quantum": 3})
    assert spec.label == "d2lpm:quantum=1+dlpm:quantum=3"


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("d2lpm+dlpm:quantum=1e+3", "d2lpm+dlpm:quantum=1000"),
        ("d2lpm:quantum=2e+4+dlpm", "d2lpm:quantum=20000+dlpm"),
        ("{folder}/r.py:Dealer+dlpm", "dealer+dlpm"),
        ("{folder}/r.py:Dealer:knob=2+{folder}/s.py:Mine:knob=3", "dealer:knob=2+Mine:knob=3"),
        ("{folder}/s.py:Mine", "Mine"),
        ("round-robin+{folder}/s.py:Mine", "round-robin+Mine"),
    ],
)
def test_a_plus_in_a_path_or_a_number_separates_nothing(text: str, label: str, tmp_path: Path):
    folder = tmp_path / "a+b"
    folder.mkdir()
    (folder / "r.py").write_text(DEALER)
    (folder / "s.py").write_text(MINE)
    spec = parse(text.format(folder=folder))
    assert spec.label == label
    assert parse(spec.reference) == spec


def test_a_plus_in_the_name_of_a_file_that_is_there_separates_nothing(
    mine: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(mine.parent)
    mine.rename("round-robin+mine.py")
    assert parse("round-robin+mine.py:Mine").router is None
    mine.write_text(MINE)
    Path("round-robin+mine.py").unlink()
    routed = parse("round-robin+mine.py:Mine").router
    assert routed is not None
    assert routed.name == "round-robin"


@pytest.mark.parametrize(
    "name", [f"{program}:{policy}" for program, known in PEERS.items() for policy in known]
)
def test_another_projects_router_has_a_name(name: str):
    router = parse(f"{name}+vllm:fcfs").router
    assert isinstance(router, PeerRouter)
    assert f"{router.program}:{router.policy}" == router.name == router.label == name
    assert (router.full_parameters, router.source_digest) == ({}, "")
    with pytest.raises(
        BadInput, match=f"router {name!r}: runs before vLLM and SGLang only.*; name one of ours"
    ):
        router.build()


def test_an_entry_point_is_a_router_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "dealing.py").write_text(DEALER)
    info = tmp_path / "plugin-2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 2\n")
    (info / "entry_points.txt").write_text("[suite.routers]\ndealt = dealing:Dealer\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert parse("dealt:knob=2+fcfs").label == "dealt:knob=2+fcfs"
    with pytest.raises(BadInput, match="'dealt' is a router, not a scheduler"):
        parse("dealt")


def filled_in(choice: object, dealer: Path) -> object:
    if isinstance(choice, dict):
        return {key: filled_in(value, dealer) for key, value in choice.items()}
    return choice.format(dealer=dealer) if isinstance(choice, str) else choice


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("d2lmp+dlpm", r"^d2lmp\+dlpm: unknown router 'd2lmp'; did you mean 'd2lpm'"),
        ("d2lpm+dlmp", r"^d2lpm\+dlmp: unknown scheduler 'dlmp'; did you mean 'dlpm'"),
        ("lpm+dlpm", "'lpm' is a scheduler, not a router; write ROUTER.SCHEDULER, the router one of .*d2lpm"),
        (
            "d2lpm",
            "'d2lpm' is a router, not a scheduler; write ROUTER.SCHEDULER, the scheduler one of .*dlpm",
        ),
        ("d2lpm+d2lpm", "'d2lpm' is a router, not a scheduler"),
        ("d2lpm:quantm=1+dlpm", "router 'd2lpm': quantm: unknown key; did you mean 'quantum'"),
        ("d2lpm:quantum=-1+dlpm", "router 'd2lpm': quantum must be a number above 0"),
        ("{dealer}+lpm", "name the class too, .*it has: Added, Borrowed, Dealer, Idle"),
        (
            "{dealer}:Dealer",
            r"dealer\.py: Dealer is no Scheduler; derive it from baselines\.scheduler\.Sched",
        ),
        ("{dealer}:Borrowed+lpm", "the name 'dlpm' is that of a scheduler; give it another"),
        ("{dealer}:Added+lpm", r"Added\.name must be text without '\+', not 'a\+b'"),
        ("{dealer}:Idle+lpm", r"Idle has no method `route`; give it one that returns the worker"),
        (
            "sglang-router:cache+lpm",
            "sglang-router has no policy 'cache' of its own; did you mean 'cache_aware'",
        ),
        ("vllm-router:random:knob=1+lpm", "router 'vllm-router:random': takes no parameters, got knob"),
        ({"name": "dlpm", "router": 3}, "router: write a name, a path or a mapping, not 3"),
        (
            "d2lpm + dlpm",
            r"^'d2lpm \+ dlpm': not ROUTER.SCHEDULER; write d2lpm\+dlpm, without blanks, or \{name",
        ),
        ("round-robin+d2lpm+dlpm", r"not ROUTER\+SCHEDULER; write d2lpm\+dlpm"),
        ({"name": "d2lpm+dlpm"}, r"not ROUTER\+SCHEDULER; .* \{name: dlpm, router: d2lpm\}"),
        (
            "sglang-router:random",
            r"'sglang-router:random': a router, not a scheduler; write sglang-router:random\+SCHEDULER",
        ),
        ("{dealer}:Dealer+{dealer}:Twin", "router and scheduler are both called 'dealer'; rename one"),
        ({"name": "{dealer}:Twin", "router": "{dealer}:Dealer"}, "both called 'dealer'; rename one"),
        ({"name": "dlpm", "router": {"quantum": 3}}, "name: missing; a router is written"),
    ],
)
def test_bad_routers_are_told_on_one_line(choice: object, message: str, dealer: Path):
    filled = filled_in(choice, dealer)
    with pytest.raises(BadInput, match=message) as caught:
        parse(filled)
    assert "\n" not in str(caught.value)
