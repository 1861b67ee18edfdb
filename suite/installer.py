"""Virtual environments with exactly pinned packages, made by uv, which is told what pip's variables say."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from venv import EnvBuilder

from uv import find_uv_bin

from suite.errors import BadInput
from suite.files import writing

LOG = "install.log"
"""The installer's output, in the environment's folder."""


@dataclass(frozen=True)
class Recipe:
    """What goes into an environment: a requirement such as "vllm==0.32.0", and files that decide the rest."""

    requirement: str
    besides: Sequence[str]
    """Other packages to install, which nothing asks for."""
    constraints: Path
    """The exact versions of all packages."""
    overrides: Path | None
    """Packages that must not be installed whoever asks for them."""
    torch: str
    """The build of torch to fetch, as uv's `--torch-backend` names it."""
    files: Sequence[Path]
    """What to copy beside the packages."""


def build(folder: Path, recipe: Recipe) -> None:
    """Make a virtual environment of the suite's own Python in place of whatever is at `folder`, and fill it.

    Raises `BadInput` with the installer's reason, naming its log, or if the folder cannot be written.
    """
    with writing(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        EnvBuilder(symlinks=True).create(folder)
    log = folder / LOG
    if run(_command(folder, recipe), log):
        raise BadInput(f"{recipe.requirement} could not be installed: {_reason(log)}; all output is in {log}")
    for file in recipe.files:
        shutil.copy(file, site_packages(folder))


def run(command: list[str], log: Path) -> int:
    """Run the installer with its output in the file `log`, and return its exit code."""
    with writing(log), log.open("wb") as output:
        finished = subprocess.run(
            command,
            cwd=log.parent,
            env=_variables(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    return finished.returncode


def add_metadata(folder: Path, name: str, version: str) -> None:
    """Let the environment at `folder` know a package that another one provides under a name of its own."""
    entry = site_packages(folder) / f"{name}-{version}.dist-info"
    with writing(entry):
        entry.mkdir()
        (entry / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (entry / "RECORD").write_text(f"{entry.name}/METADATA,,\n{entry.name}/RECORD,,\n")


def site_packages(folder: Path) -> Path:
    """Where the packages of the environment at `folder` are."""
    return next(folder.glob("lib/python*/site-packages"))


def _command(folder: Path, recipe: Recipe) -> list[str]:
    command = [find_uv_bin(), "pip", "install", "--compile-bytecode"]
    command += ["--python", str(folder / "bin" / "python")]
    command += ["--constraints", str(recipe.constraints)]
    if recipe.overrides is not None:
        command += ["--overrides", str(recipe.overrides)]
    if not _has_local_torch():
        command += ["--torch-backend", recipe.torch]
    return [*command, *recipe.besides, recipe.requirement]


def _has_local_torch() -> bool:
    """True if a folder of PIP_FIND_LINKS holds a wheel of torch, which is then the build to use."""
    places = [place.removeprefix("file://") for place in os.environ.get("PIP_FIND_LINKS", "").split()]
    return any(next(Path(place).glob("torch-*.whl"), None) for place in places if "://" not in place)


def _variables() -> dict[str, str]:
    """The process's variables, with what was said to pip said to uv, unless uv was told otherwise."""
    pip = {
        key: os.environ.get(f"PIP_{key}", "")
        for key in ("INDEX_URL", "EXTRA_INDEX_URL", "FIND_LINKS", "CERT")
    }
    told = {
        "UV_DEFAULT_INDEX": pip["INDEX_URL"],
        "UV_INDEX": pip["EXTRA_INDEX_URL"],
        "UV_INDEX_STRATEGY": "unsafe-best-match" if pip["EXTRA_INDEX_URL"] else "",  # pip's own way
        "UV_FIND_LINKS": ",".join(pip["FIND_LINKS"].split()),
        "SSL_CERT_FILE": pip["CERT"],
    }
    return {key: value for key, value in told.items() if value} | dict(os.environ)


def _reason(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    reasons = [line.strip() for line in lines if line.lstrip().startswith(("error:", "cause:"))]
    return "; ".join(reasons[:2] or lines[-1:]) or "no reason given"
