"""What is prepared for a GPU machine without a package index: packing, unpacking, check, prediction."""

from __future__ import annotations

import importlib.util
import os
import site
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suite import experiment
from suite.backends.sglang import SGLang
from suite.backends.vllm import VLLM
from suite.errors import BadInput
from suite.policies import Stock

REFERENCE = Path(__file__).resolve().parents[1] / "results" / "reference"
FOLDER = REFERENCE / "gpu"
ENGINES = {"vllm": VLLM, "sglang": SGLang}


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"gpu_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pack = script("pack")
compiler = script("compiler")


# -- packing ---------------------------------------------------------------------------------------------


@given(st.dictionaries(st.integers(0, 99).map(str).map(Path), st.integers(0, 50), max_size=20))
def test_every_file_is_in_one_part_and_no_part_is_too_large(sizes: dict[Path, int]):
    parts = pack.parts(sizes, 50)
    assert sorted(path for part in parts for path in part) == sorted(sizes)
    totals = [sum(sizes[path] for path in part) for part in parts]
    assert all(total <= 50 for total in totals)
    assert len(parts) <= 1 or totals[-2] + totals[-1] > 50, "the last part was needed"


def test_a_file_above_the_limit_is_named():
    with pytest.raises(BadInput, match=r"huge.*--limit-mib"):
        pack.parts({Path("huge"): 51}, 50)


@pytest.mark.parametrize(
    ("engine", "kept", "gone"),
    [
        (
            "vllm",
            ["vllm/_C_stable_libtorch.abi3.so", "vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so", "uv/__init__.py"],
            [
                "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so",
                "vllm/vllm-rs",
                "bin/uv",
                "xgrammar/lib/libxgrammar.a",
            ],
        ),
        (
            "sglang",
            [
                "sgl_kernel/sm90/common_ops.abi3.so",
                "tvm_ffi/include/tvm/ffi/any.h",
                "flashinfer/data/csrc/norm.cu",
            ],
            ["sgl_kernel/flash_ops.abi3.so", "sgl_kernel/sm100/common_ops.abi3.so"],
        ),
    ],
)
def test_files_that_are_used_stay_and_others_go(engine: str, kept: list[str], gone: list[str]):
    selection = pack.SELECTIONS[engine]
    assert [path for path in kept + gone if not pack.is_dropped(path, selection)] == kept


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What a machine says that it has, where the suite's own pins are three."""
    suite_pins, path = tmp_path / "suite.txt", tmp_path / "there.txt"
    suite_pins.write_text("orjson==3.1\npydantic==1.0\nrich==1.0\n")
    path.write_text("Package Version\n------- -------\nRich    15.0.0\nPillow==13.0\ntransformers 5.17.0\n")
    monkeypatch.setattr(pack, "_suite_pins", lambda python, out: suite_pins)
    return pack.names(path)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_the_machine_has_is_not_packed(engine: str, listed: set[str], tmp_path: Path):
    wanted = pack.requirements(engine, listed, "3.12", tmp_path)
    names = {line.partition("==")[0] for line in wanted}
    assert {engine, "msgspec", "orjson", "sglang-router", "setproctitle"} <= names
    assert not names & {"rich", "pillow", "torch", "flashinfer-cubin", "nvidia-cudnn-cu13"}
    assert "pydantic==1.0" not in wanted, "the engine's pin counts"
    assert [line for line in wanted if line.startswith("networkx==")] == ["networkx==3.7"]
    assert ("transformers" in names) == (engine == "sglang"), "SGLang works with one release only"


def test_an_archive_for_each_package_and_each_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pack, "LARGE", 10)
    packages = tmp_path / "site"
    for path, size in {"a/__init__.py": 1, "a/large.so": 11, "b.py": 1}.items():
        (packages / path).parent.mkdir(parents=True, exist_ok=True)
        (packages / path).write_bytes(b"x" * size)
    found = {}
    for path in pack._archives(packages, tmp_path / "archives"):
        with tarfile.open(path) as archive:
            found[path.name] = archive.getnames()
    assert found == {
        "a.tar.xz": ["a/__init__.py"],
        "b.py.tar.xz": ["b.py"],
        "large.so.tar.xz": ["a/large.so"],
    }


# -- on the machine --------------------------------------------------------------------------------------


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """run.sh, with this Python as the machine's own."""
    own = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    places = {"ROOT": str(tmp_path / "root"), "OUT": str(tmp_path / "out"), "DEVICE": "cpu"}
    command = [str(FOLDER / "run.sh"), *arguments]
    return subprocess.run(command, env={**os.environ, **places, "PATH": own}, capture_output=True, text=True)


def test_parts_are_unpacked_side_by_side_and_again(tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.py").write_text(f"NAME = {name!r}\n")
        with tarfile.open(tmp_path / name / f"{name}.tar.xz", "w:xz") as archive:
            archive.add(tmp_path / f"{name}.py", f"package/{name}.py")
    for _ in range(2):
        done = run(tmp_path, "vllm", "unpack", str(tmp_path / "one"), str(tmp_path / "two"))
        assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "root/site/package").iterdir()} == {"one.py", "two.py"}


def places(tmp_path: Path) -> list[str]:
    """Where the environment that run.sh made looks for packages."""
    python = str(tmp_path / "root" / "venv" / "bin" / "python")
    code = "import sys, sysconfig; print(sysconfig.get_path('purelib'), *sys.path, sep='\\n')"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    own, *path = done.stdout.splitlines()
    return path[path.index(own) + 1 :]


def test_the_check_names_all_that_is_missing_at_once(tmp_path: Path):
    """SGLang here is a module that imports two packages that nobody has."""
    unpacked = tmp_path / "root" / "site"
    for module in ("torch", "transformers"):
        unpacked.joinpath(module).mkdir(parents=True)
        unpacked.joinpath(module, "__init__.py").write_text("__version__ = '0'\n")
    unpacked.joinpath("sglang").mkdir()
    unpacked.joinpath("sglang", "launch_server.py").write_text("import nobody_has.this\nimport or_that\n")
    done = run(tmp_path, "sglang", "check")
    missing = [line for line in done.stdout.splitlines() if line.startswith("missing: ")]
    assert done.returncode == 2
    assert missing[:2] == ["missing: nobody_has", "missing: or_that"]
    assert "missing: sglang.srt" in missing, "the imports that come later are tried too"
    assert "missing: sglang.srt.managers" not in missing, "a part of what is missing is not told"
    order = [str(unpacked), str(REFERENCE.parents[1]), *site.getsitepackages()]
    assert places(tmp_path)[: len(order)] == order, "the machine's packages come last"


def test_the_compiler_is_asked_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Here it is a script elsewhere, as on machines where a wrapper stands on the PATH."""
    (tmp_path / "toolkit" / "bin").mkdir(parents=True)
    wrapper = tmp_path / "nvcc"
    wrapper.write_text(f"#!/bin/sh\necho '#$ _HERE_=x' >&2\necho '#$ TOP={tmp_path}/toolkit/bin/..' >&2\n")
    wrapper.chmod(0o755)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert compiler.home() == tmp_path / "toolkit"
    wrapper.write_text("#!/bin/sh\necho broken >&2\n")
    with pytest.raises(OSError, match="broken"):
        compiler.home()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "run.sh ENGINE unpack PART"),
        (["vlm", "check"], "no engine 'vlm'"),
        (["vllm"], "no stage ''"),
        (["vllm", "uncheck"], "no stage 'uncheck'"),
        (["vllm", "unpack", "nowhere"], "nowhere: no such part"),
        (["sglang", "experiment"], "name one model"),
        (["sglang", "replicas"], "say how many"),
        (["sglang", "smoke"], "run.sh sglang check"),
    ],
)
def test_a_wrong_call_says_what_to_do(tmp_path: Path, arguments: list[str], told: str):
    done = run(tmp_path, *arguments)
    assert done.returncode == 2
    assert told in done.stderr


# -- the experiment --------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_the_prediction_is_of_the_experiment(engine: str):
    coordinates = ["workload", "backend.model", "scheduler", "seed"]
    cells = [cell for cell in experiment.load(f"{engine}-gpu").cells if not isinstance(cell.scheduler, Stock)]
    predicted = pd.read_csv(REFERENCE / f"{engine}-gpu" / "prediction.csv")
    wanted = {tuple(cell.labels[name] for name in coordinates) for cell in cells}
    assert set(predicted[coordinates].itertuples(index=False, name=None)) == wanted
    settings = [backend for cell in cells if isinstance(backend := cell.backend(), ENGINES[engine])]
    assert {backend.kv_tokens for backend in settings} == set(predicted["backend.kv_tokens"])
    assert {backend.max_running for backend in settings} == set(predicted["backend.max_running"])
    assert len(settings) == len(predicted)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_cache_matters(engine: str):
    """What the requests share is three to five times as large as the KV pool."""
    for trace_key, cell in {cell.trace_key: cell for cell in experiment.load(f"{engine}-gpu").cells}.items():
        trace = experiment.generate(trace_key)
        shared = {part.id: part.tokens for request in trace.requests for part in request.prompt[:-1]}
        assert 3 <= sum(shared.values()) / cell.settings["kv_tokens"] <= 5


@pytest.mark.parametrize("name", ["gpu", "replicas-gpu"])
def test_both_engines_serve_the_same_requests_with_as_much_memory(name: str):
    sizes = ("max_running", "token_budget", "kv_tokens", "replicas")
    cells = {engine: experiment.load(f"{engine}-{name}").cells for engine in ENGINES}
    assert {cell.trace_key for cell in cells["vllm"]} == {cell.trace_key for cell in cells["sglang"]}
    found = [{tuple(cell.settings[size] for size in sizes) for cell in both} for both in cells.values()]
    assert found[0] == found[1]


@pytest.mark.parametrize("engine", ENGINES)
def test_all_replicas_share_the_one_gpu(engine: str):
    cells = experiment.load(f"{engine}-replicas-gpu").cells
    assert {cell.settings["replicas"] for cell in cells} == {2, 4}
    for cell in cells:
        backend = cell.backend()
        assert isinstance(backend, ENGINES[engine])
        assert backend._gpus() == (("0",),) * backend.replicas
