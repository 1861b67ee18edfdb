"""Import all that a run needs, and name every package that is missing, not only the first.

    python check.py ENGINE

A missing package is replaced by an empty one and the import tried again, each time in a fresh process. Ends
with 1 if anything is wrong. Needs the standard library only.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from unittest.mock import MagicMock

MODULES = {
    "vllm": (
        "vllm.entrypoints.cli.main", "vllm.entrypoints.openai.api_server", "vllm.v1.engine.core",
        "vllm.v1.core.sched.async_scheduler", "vllm.v1.worker.gpu_worker", "vllm.v1.worker.gpu_model_runner",
        "vllm.v1.executor.uniproc_executor", "vllm.model_executor.models.llama",
        "vllm.model_executor.model_loader.dummy_loader", "vllm.model_executor.warmup.kernel_warmup",
    ),
    "sglang": (
        "sglang.launch_server", "sglang.srt.entrypoints.http_server", "sglang.srt.managers.scheduler",
        "sglang.srt.managers.detokenizer_manager", "sglang.srt.managers.tokenizer_manager",
        "sglang.srt.managers.tp_worker", "sglang.srt.model_executor.model_runner",
        "sglang.srt.model_loader.loader", "sglang.srt.models.llama", "sglang.srt.plugins",
        "sglang.srt.constrained.xgrammar_backend",
    ),
}  # fmt: skip
"""What a server imports."""

KERNELS = {
    "vllm": ("triton", "vllm._C_stable_libtorch", "vllm.vllm_flash_attn"),
    "sglang": ("triton", "sgl_kernel", "flashinfer.norm", "sglang.srt.layers.attention.triton_backend"),
}
"""Kernels, where torch sees a GPU."""

SUITE = ("suite.cli", "suite.runner", "suite.replay", "suite.report.html", "suite.backends.front.server")
"""What the suite imports, its backend and its front."""
ROUTER = ("sglang_router.router",)

MOST = 30
"""Packages that may be missing before nothing more is tried."""


_ATTEMPT = "--without"
_MISSING = "missing: "


def main(engine: str) -> int:
    """Print a line for each problem."""
    missing: list[str] = []
    while (told := _attempt(engine, missing)) and told.startswith(_MISSING) and len(missing) < MOST:
        missing.append(told.removeprefix(_MISSING))
    for name in sorted(missing):
        if not any(name.startswith(f"{other}.") for other in missing):
            print(f"{_MISSING}{name}")
    if told and not told.startswith(_MISSING):
        print(told)
    return 1 if missing or told else 0


def _attempt(engine: str, missing: list[str]) -> str:
    """The first problem of a fresh process in which the missing packages are replaced; empty if none."""
    command = [sys.executable, __file__, engine, _ATTEMPT, *missing]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    told = done.stdout.strip().rpartition("\n")[2]
    return told if done.returncode == 1 else f"ended with code {done.returncode}" if done.returncode else ""


def attempt(engine: str, missing: list[str]) -> int:
    """Import all; the last line printed is the first problem."""
    for name in missing:
        sys.modules[name] = MagicMock(__path__=[], __spec__=ModuleSpec(name, None), __version__="0")
    for module in _wanted(engine):
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            print(f"\n{_MISSING}{error.name}")
            return 1
        except Exception as error:
            print(f"\n{module} cannot be imported: {type(error).__name__}: {' '.join(str(error).split())}")
            return 1
    return 0


def _wanted(engine: str) -> Iterator[str]:
    yield from ("torch", "transformers")
    yield from MODULES[engine]
    yield from (*SUITE, f"suite.backends.{engine}", *ROUTER)
    if importlib.import_module("torch").cuda.is_available():
        yield from KERNELS[engine]


if __name__ == "__main__":
    engine, *rest = sys.argv[1:]
    sys.exit(attempt(engine, rest[1:]) if rest[:1] == [_ATTEMPT] else main(engine))
