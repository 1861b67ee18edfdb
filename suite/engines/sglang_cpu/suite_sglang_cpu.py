"""Lets SGLang be imported without a GPU; `suite_sglang_cpu.pth` loads it when its Python starts.

SGLang imports `sgl_kernel`, `torchvision` and `triton` whatever it runs on, and no build of them for CPUs can
be installed. Here they are empty: any name of theirs can be imported, taken for a class, and used to define
kernels, since importing SGLang and torch does just that. To call one raises `NotImplementedError` with its
name. A package that is really there goes first. torch is told to compile nothing, since it would ask Triton.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType

PACKAGES = ("sgl_kernel", "torchvision", "triton")
WITHOUT = ("sgl_kernel.scalar_type", "triton.knobs")
"""Modules of theirs that SGLang can do without, and has to, because it calls what is in them."""


class Absent(type):
    """The class of names that are not there. They are classes in turn, because some are inherited from."""

    def __getattr__(cls, name: str) -> Absent:
        return absent(f"{cls.__name__}.{name}")

    def __call__(cls, *_: object, **__: object) -> object:
        raise NotImplementedError(f"{cls.__name__} is not there: SGLang on a CPU has only what torch can do")

    def __getitem__(cls, _: object) -> Absent:  # kernel[grid], which is then called
        return cls

    def __iter__(cls) -> Iterator[object]:  # torch asks which backends Triton has
        return iter(())


class Empty(ModuleType):
    """A package, or a module of one, with nothing in it."""

    __version__ = "0.0"  # of Triton: what torch takes for none

    def __getattr__(self, name: str) -> Absent:
        return absent(f"{self.__name__}.{name}")


def absent(name: str) -> Absent:
    """What stands for a name, given in full."""
    if name in WITHOUT or name.rpartition(".")[2].startswith("__"):
        raise AttributeError(f"{name} is not there")
    return Absent(name, (), {})


def kernel(function: object = None, *_: object, **__: object) -> Absent | Callable[..., object]:
    """Triton's `jit`, `autotune` and `heuristics`, with arguments or without. Of a kernel its name stays."""
    return absent(getattr(function, "__name__", "a kernel")) if callable(function) else kernel


class Config:
    """Triton's `Config`, a way to compile a kernel: nothing is compiled."""

    def __init__(self, *_: object, **__: object) -> None: ...


class Constant:
    """Triton's `constexpr`, a value known when a kernel is compiled."""

    def __init__(self, value: object) -> None:
        self.value = value


DEFINING: dict[str, dict[str, object]] = {
    "triton": {"jit": kernel, "autotune": kernel, "heuristics": kernel, "Config": Config},
    "triton.language": {"constexpr": Constant},
}
"""What is called where kernels are defined."""


class Shim(Loader):
    """Finds the packages and their modules, and makes them."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Asked when no other finder has the module."""
        mine = name.partition(".")[0] in PACKAGES and name not in WITHOUT
        return ModuleSpec(name, self, is_package=True) if mine else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Nothing, but a module."""
        return Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Fill it with what must be there."""
        vars(module).update(DEFINING.get(module.__name__, {}))


os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
sys.meta_path.append(Shim())
