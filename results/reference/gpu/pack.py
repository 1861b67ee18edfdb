"""Pack what an engine and the suite need on a GPU machine without a package index into small parts.

    python pack.py ENGINE [--there FILE] [--python 3.12] [--limit-mib 58] [--out build/gpu/ENGINE]

Writes OUT/part-0, OUT/part-1, ...: folders of archives, none larger than the limit, for `run.sh`. The machine
must have torch 2.11.0 for CUDA 13 and what else FILE names, a package a line as in `pip list`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rich.table import Table
from uv import find_uv_bin

from suite import environments, installer
from suite.commands.console import say, show
from suite.errors import BadInput

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[2]
PLATFORM = "x86_64-manylinux_2_39"
MIB = 2**20


@dataclass(frozen=True)
class Selection:
    """What is packed of an engine, for a dense Llama on a Hopper GPU. Names and paths may hold `*`."""

    release: str
    not_needed: tuple[str, ...]
    """Packages that are left out: it asks for them, and a run does without."""
    dropped: tuple[str, ...]
    """Files that are left out, relative to the packages' folder."""
    own: tuple[str, ...] = ()
    """Packages that are packed even if the machine has them, since it works with one release only."""


WITH_TORCH = (
    "cuda-*", "nvidia-*", "torch", "torch-c-dlpack-ext", "torchaudio", "torchcodec", "torchvision", "triton",
)  # fmt: skip
"""Packages that come with the machine's torch, or that nothing needs without them."""

SELECTIONS = {
    "vllm": Selection(
        release="0.25.0",
        not_needed=(
            *WITH_TORCH, "fastsafetensors", "flashinfer-*", "humming-kernels", "mistral-common", "pycountry",
            "pynvvideocodec", "quack-kernels", "tilelang", "tokenspeed-*", "z3-solver",
        ),
        dropped=(
            "bin/*",
            "*.a",
            "*/include/*",
            "vllm/vllm-rs",
            "vllm/_moe_C_stable_libtorch.abi3.so",
            "vllm/_flashmla*.so",
            "vllm/_qutlass_C.abi3.so",
            "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so",  # FlashAttention 3 runs on Hopper
            "vllm/third_party/deep_gemm/*",
            "vllm/third_party/fmha_sm100/*",
        ),
    ),
    "sglang": Selection(
        release="0.5.15",
        not_needed=(
            *WITH_TORCH, "airportsdata", "blobfile", "datasets", "flash-attn-4", "flashinfer-cubin",
            "kernels", "kernels-data", "llguidance", "mistral-common", "modelscope", "modelscope-hub",
            "openai-harmony", "outlines", "outlines-core", "py-spy", "pycountry", "pycryptodomex",
            "quack-kernels", "sgl-deep-gemm", "smg-*", "tilelang", "timm", "tokenspeed-*",
            "torch-memory-saver", "torchao", "z3-solver",
        ),
        dropped=(
            "bin/*",
            "*.a",
            "sgl_kernel/flash*.so",  # attention is Triton's
            "sgl_kernel/sm100/*",
            "flashinfer/data/cutlass/*",
        ),
        own=("tokenizers", "transformers"),
    ),
}  # fmt: skip

ROUTER = "sglang-router-cpu-0.3.2"
"""The pins of the router that is packed as well; see `suite.environments`."""

LARGE = 8 * MIB
"""A larger file gets an archive of its own, so that the archives fill the parts well."""
PRESET: Final = 1
"""Of xz: within 5 % of the best on these files, in a quarter of the time."""


def main(arguments: list[str]) -> int:
    """Pack, and print what is in which part."""
    given = _parser().parse_args(arguments)
    try:
        out = given.out or REPOSITORY / "build" / "gpu" / given.engine
        wanted = requirements(given.engine, names(given.there), given.python, out)
        site = _installed(wanted, given.python, out)
        _drop(site, SELECTIONS[given.engine])
        archives = _archives(site, out / "archives")
        found = parts({path: path.stat().st_size for path in archives}, given.limit_mib * MIB)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    show(_table(_moved(found, out)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("engine", choices=SELECTIONS, help="engine to pack")
    parser.add_argument("--there", type=Path, default=HERE / "there.txt", help="what the machine has already")
    parser.add_argument("--python", default="3.12", help="release of the machine's Python")
    parser.add_argument("--limit-mib", type=int, default=58, help="size of a part in MiB")
    parser.add_argument("--out", type=Path, help="where the parts go; by default build/gpu/ENGINE")
    return parser


# -- packages ------------------------------------------------------------------------------------------------


def names(path: Path) -> set[str]:
    """The packages in a list such as `pip list` or `pip freeze` prints."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; give the machine's `pip list`") from None
    words = (line.replace("==", " ").split() for line in lines)
    return {canonicalize_name(first) for first, *_ in filter(None, words)}


def requirements(engine: str, there: set[str], python: str, out: Path) -> list[str]:
    """What to pack, as NAME==VERSION. Where pins differ, the engine's count, then the suite's."""
    selection = SELECTIONS[engine]
    pins = [environments.DATA / f"{ROUTER}.txt", _suite_pins(python, out)]
    pins.append(environments.DATA / f"{engine}-cuda-{selection.release}.txt")
    pinned = {name: version for path in pins for name, version in _pins(path, python).items()}
    return [
        f"{name}=={version}"
        for name, version in sorted(pinned.items())
        if (name in selection.own or name not in there) and not _matches(name, selection.not_needed)
    ]


def _pins(path: Path, python: str) -> dict[str, str]:
    """Names and versions of a file of pins that hold for a release of Python."""
    found = map(Requirement, path.read_text(encoding="utf-8").splitlines())
    holds = {"python_full_version": f"{python}.0", "python_version": python}
    return {
        canonicalize_name(pin.name): str(pin.specifier).removeprefix("==")
        for pin in found
        if pin.marker is None or pin.marker.evaluate(holds)
    }


def _suite_pins(python: str, out: Path) -> Path:
    path = out.absolute() / "suite.txt"
    where = [str(REPOSITORY / "pyproject.toml"), "--constraint", str(REPOSITORY / "constraints.txt")]
    flags = ["--no-header", "--no-annotate", *_target(python), "--output-file", str(path)]
    _uv("compile", *where, *flags, log=path.with_suffix(".log"))
    return path


def _installed(wanted: Iterable[str], python: str, out: Path) -> Path:
    """The packages, unpacked into a folder as they are imported."""
    site = out.absolute() / "site"
    shutil.rmtree(site, ignore_errors=True)
    say(f"fetching the packages into {site}")
    flags = ["--no-deps", "--only-binary", ":all:", "--target", str(site), *_target(python)]
    _uv("install", *flags, *wanted, log=site.parent / installer.LOG)
    return site


def _target(python: str) -> list[str]:
    return ["--python-version", python, "--python-platform", PLATFORM]


def _uv(command: str, *arguments: str, log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    if installer.run([find_uv_bin(), "pip", command, *arguments], log):
        raise BadInput(f"uv pip {command} failed; its output is in {log}")


# -- files ---------------------------------------------------------------------------------------------------


def is_dropped(path: str, selection: Selection) -> bool:
    """Whether a file, given relative to the packages' folder, is left out."""
    return _matches(path, selection.dropped)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _drop(site: Path, selection: Selection) -> None:
    for path in list(_files(site)):
        if is_dropped(path.relative_to(site).as_posix(), selection):
            path.unlink()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _archives(site: Path, folder: Path) -> list[Path]:
    """Everything in the packages' folder: an archive for each package, and one for each large file."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    members: dict[str, list[Path]] = {}
    for path in _files(site):
        members.setdefault(_home(path, site), []).append(path)
    say(f"compressing {len(members)} archives")
    with ThreadPoolExecutor() as pool:  # lzma leaves the interpreter to others while it works
        return list(pool.map(partial(_archive, site, folder), members, members.values()))


def _home(path: Path, site: Path) -> str:
    """The name of the archive that a file goes into."""
    return path.name if path.stat().st_size > LARGE else path.relative_to(site).parts[0]


def _archive(site: Path, folder: Path, name: str, members: list[Path]) -> Path:
    path = folder / f"{name}.tar.xz"
    with tarfile.open(path, "w:xz", preset=PRESET) as archive:
        for member in members:
            archive.add(member, member.relative_to(site).as_posix())
    return path


# -- parts ---------------------------------------------------------------------------------------------------


def parts(sizes: Mapping[Path, int], limit: int) -> list[list[Path]]:
    """Divide files among parts of at most `limit` bytes: the largest first, each into the first with room."""
    found: list[list[Path]] = []
    room: list[int] = []
    for path, size in sorted(sizes.items(), key=lambda item: -item[1]):
        if size > limit:
            raise BadInput(f"{path.name} has {size / MIB:.1f} MiB; give a larger --limit-mib")
        place = next((i for i, left in enumerate(room) if size <= left), len(room))
        if place == len(room):
            found.append([])
            room.append(limit)
        found[place].append(path)
        room[place] -= size
    return found


def _moved(found: list[list[Path]], out: Path) -> list[Path]:
    """The folders of the parts, filled."""
    for old in out.glob("part-*"):
        shutil.rmtree(old)
    folders = [out / f"part-{number}" for number in range(len(found))]
    for folder, archives in zip(folders, found, strict=True):
        folder.mkdir()
        for archive in archives:
            archive.replace(folder / archive.name)
    return folders


def _table(folders: list[Path]) -> Table:
    table = Table("part", "archives", "MiB", "the largest")
    for folder in folders:
        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        table.add_row(str(folder), str(len(sizes)), f"{sum(sizes.values()) / MIB:.1f}", ", ".join(largest))
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
