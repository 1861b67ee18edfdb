"""The architecture, as far as it can be held by reading the sources."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("suite", "workloads", "baselines")
SOURCES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
LONGEST_MODULE = 450
LONGEST_FUNCTION = 40

FORBIDDEN = {
    "suite/metrics": ("suite.report", "suite.backends", "suite.runner", "suite.experiment", "workloads"),
    "suite/report": ("suite.backends", "suite.runner", "suite.experiment", "workloads"),
    "suite/backends": ("suite.metrics", "suite.report", "suite.runner", "suite.experiment", "workloads"),
    **dict.fromkeys(
        [f"suite/trace{part}.py" for part in ("", "_check", "_lines", "_parquet", "_records")],
        ("suite.backends", "suite.metrics", "suite.report", "suite.runner", "workloads"),
    ),
    "suite/results.py": ("suite.backends", "suite.metrics", "suite.report", "suite.runner", "workloads"),
    "suite/capacity.py": ("suite.metrics", "suite.report", "suite.runner", "suite.experiment", "workloads"),
    "workloads": (
        "suite.backends",
        "suite.capacity",
        "suite.experiment",
        "suite.metrics",
        "suite.report",
        "suite.runner",
    ),
    "suite": ("suite.cli",),
}
"""What the modules below a path must not import."""
EXCEPTED = {"workloads/shape.py": {"suite.capacity"}}
"""The one arrow that goes back: a trace is rescaled to a load, and a load is measured on the simulator."""

IN_ENGINES = ("host", "cost", "said", "virtual_driver", "bench_driver")
"""Files of `suite/backends` that run in every engine's environment, ..."""
IN_ENGINE = ("plugin", "queue", "matches", "virtual", "bench")
"""... and the endings of those that run in one engine's."""

each_source = pytest.mark.parametrize("source", SOURCES, ids=str)


@cache
def parsed(source: Path) -> ast.Module:
    return ast.parse((ROOT / source).read_text(encoding="utf-8"))


def imports(source: Path) -> Iterator[str]:
    """Every module a file imports, wherever in it; `from a import b` counts as `a` and as `a.b`."""
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}:{node.lineno}: imports are absolute"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def below(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def test_the_sources_are_found():
    assert {"suite/trace.py", "baselines/dlpm.py", "workloads/spec.py"} <= {str(path) for path in SOURCES}
    assert "suite.report" in set(imports(Path("suite/runner.py"))), "imports inside functions count"


@pytest.mark.parametrize("source", [path for path in SOURCES if path.parts[0] == "baselines"], ids=str)
def test_baselines_import_only_the_standard_library_and_themselves(source: Path):
    foreign = {name.partition(".")[0] for name in imports(source)} - sys.stdlib_module_names - {"baselines"}
    assert not foreign


def in_engine(engine: str) -> list[Path]:
    names = ["__init__", *IN_ENGINES, *(f"{engine}_{ending}" for ending in IN_ENGINE)]
    return [Path("suite/__init__.py"), *(Path(f"suite/backends/{name}.py") for name in names)]


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").exists()


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_what_runs_in_an_engine_imports_only_what_is_there(engine: str):
    files = in_engine(engine)
    there = {str(path.with_suffix("")).replace("/", ".").removesuffix(".__init__") for path in files}
    for source in files:
        ours = {name for name in imports(source) if below(name, "suite") and is_module(name)}
        foreign = {name.partition(".")[0] for name in imports(source)} - sys.stdlib_module_names
        assert ours <= there, f"{source} must not import {ours - there}"
        assert foreign <= {"suite", "baselines", "torch", engine}, f"{source} must not import {foreign}"


@each_source
def test_imports_run_one_way(source: Path):
    for folder, forbidden in FORBIDDEN.items():
        if source.is_relative_to(folder):
            found = {name for name in imports(source) if any(below(name, bad) for bad in forbidden)}
            found -= EXCEPTED.get(str(source), set())
            assert not found, f"{source} must not import {found}"


@each_source
def test_modules_and_functions_stay_short(source: Path):
    lines = (ROOT / source).read_text(encoding="utf-8").count("\n")
    assert lines <= LONGEST_MODULE
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
            body = node.end_lineno - node.body[0].lineno + 1
            assert body <= LONGEST_FUNCTION, f"{source}:{node.lineno}: {node.name} has {body} lines"


@each_source
def test_what_is_public_says_what_it_is(source: Path):
    silent = [name for name, node in public(parsed(source)) if not ast.get_docstring(node)]
    assert not silent, f"{source}: no docstring: {', '.join(silent)}"


def public(module: ast.Module) -> Iterator[tuple[str, ast.Module | ast.ClassDef | ast.FunctionDef]]:
    """The module, its public classes and functions, and their methods but those a base explains."""
    yield "the module", module
    for node in module.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                yield from (
                    (f"{node.name}.{m.name}", m) for m in methods(node) if not inherited(node, m.name)
                )


def methods(node: ast.ClassDef) -> list[ast.FunctionDef]:
    return [m for m in node.body if isinstance(m, ast.FunctionDef) and not m.name.startswith("_")]


def inherited(node: ast.ClassDef, method: str) -> bool:
    bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
    return bool({(base, method) for base in bases} & documented())


@cache
def documented() -> set[tuple[str, str]]:
    """(class, method) of all methods with a docstring."""
    classes = [n for path in SOURCES for n in ast.walk(parsed(path)) if isinstance(n, ast.ClassDef)]
    return {(c.name, m.name) for c in classes for m in methods(c) if ast.get_docstring(m)}
