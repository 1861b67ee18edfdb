"""Models by name, without a hub: small ones made on the spot, architectures without weights, and any other.

`tiny` and `mid` get weights from a seed, in the same bytes on every machine, so that what they generate can
be compared. The large architectures get none: the engine makes them up, which gives the real speed. Both have
a tokenizer in which the text "w5 w6" is the ids 5 and 6.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import AliasChoices, BaseModel, Field
from safetensors.numpy import save_file

from suite import environments, hub
from suite.backends.simulator.presets import MODELS
from suite.backends.simulator.presets import Model as Architecture
from suite.content import SPECIAL, word
from suite.errors import BadInput, did_you_mean
from suite.files import DRAFT, writing
from suite.validation import at, validated

RECIPE = 1
"""Raised when the files are made in another way, so that none made before is taken for the new."""
SEED = 0

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Model:
    """What a backend has to know of a model.

    `vocabulary` is a number of token ids; those below `first_token` are special and stand in no prompt.
    `max_length` is in tokens. `weight_bytes` and `kv_bytes`, of a token in the KV cache, are those of a dense
    transformer of its shape: too few for a mixture of experts, too many for a compressed KV cache.
    """

    name: str
    path: str
    """What the engine is to load: a folder, or a name on the hub."""
    dummy: bool
    """True if there are no weights and the engine is to make them up."""
    dtype: str
    """What the engine is to compute in: float32, bfloat16 or float16."""
    vocabulary: int
    first_token: int
    max_length: int
    weight_bytes: int
    kv_bytes: int

    @property
    def is_made(self) -> bool:
        """True if the suite has made it, so that `suite.content.spelled` writes its tokens."""
        return self.name in RECIPES

    @property
    def is_local(self) -> bool:
        """True if it is a folder, so that the engine needs no hub."""
        return Path(self.path).is_dir()


@dataclass(frozen=True)
class Recipe:
    """How a model is made on the spot."""

    architecture: Architecture
    dtype: str
    max_length: int
    seed: int | None
    """Of the weights; None for a model without weights."""


RECIPES = {
    "tiny": Recipe(Architecture(2, 128, 4, 2, 32, 256, 2048, tied_embeddings=False), "float32", 8192, SEED),
    "mid": Recipe(
        Architecture(4, 1024, 16, 4, 64, 2048, 8192, tied_embeddings=False), "bfloat16", 8192, SEED
    ),
    **{name: Recipe(architecture, "bfloat16", 131072, None) for name, architecture in MODELS.items()},
}


def model(name: str, cache: Path | None = None) -> Model:
    """The model called so: one of `RECIPES`, else a folder with a config.json, else a name on the hub.

    What is made is kept in the folder `cache`, by default `models` beside the engines' environments. Raises
    `BadInput` for an unknown name, and for a config.json that lacks something.
    """
    if name in RECIPES:
        folder = _made(name, RECIPES[name], cache or environments.root() / "models")
        return _described(name, str(folder), folder / "config.json", dummy=RECIPES[name].seed is None)
    folder = Path(name).expanduser()
    if folder.is_dir():
        weightless = not any(next(folder.glob(kind), None) for kind in ("*.safetensors", "*.bin", "*.pt"))
        return _described(name, str(folder.absolute()), folder / "config.json", dummy=weightless)
    if _HUB_NAME.fullmatch(name):
        return _described(name, name, _from_hub(name), dummy=False)
    raise BadInput(
        f"no model {name!r}; {did_you_mean(name, RECIPES)} (or give a folder with a config.json, or "
        f"ORGANISATION/NAME on the hub)"
    )


# -- reading a config.json -------------------------------------------------------------------------------


class _Config(BaseModel):
    """What is read of a config.json."""

    vocab_size: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    num_hidden_layers: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = Field(ge=1)
    tie_word_embeddings: bool = False
    dtype: str = Field("bfloat16", validation_alias=AliasChoices("dtype", "torch_dtype"))
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    @property
    def architecture(self) -> Architecture:
        return Architecture(
            self.num_hidden_layers,
            self.hidden_size,
            self.num_attention_heads,
            self.num_key_value_heads or self.num_attention_heads,
            self.head_dim or self.hidden_size // self.num_attention_heads,
            self.intermediate_size,
            self.vocab_size,
            self.tie_word_embeddings,
        )

    @property
    def first_token(self) -> int:
        """The id after the special ones at the low end of the vocabulary, where many models have them."""
        ends = self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]
        known = [i for i in (self.bos_token_id, self.pad_token_id, *ends) if i is not None]
        return max((i + 1 for i in known if i < self.vocab_size // 2), default=0)


def _described(name: str, path: str, file: Path, *, dummy: bool) -> Model:
    with at(str(file)):
        config = validated(_Config, _read(file))
        if config.dtype not in _BYTES:
            raise BadInput(f"dtype: {config.dtype!r} is not known; {did_you_mean(config.dtype, _BYTES)}")
    scale = _BYTES[config.dtype] / 2  # the architecture counts two bytes a number
    return Model(
        name,
        path,
        dummy,
        config.dtype,
        config.vocab_size,
        config.first_token,
        config.max_position_embeddings,
        int(config.architecture.weight_bytes * scale),
        int(config.architecture.kv_bytes * scale),
    )


def _read(file: Path) -> Mapping[str, Any]:
    """The JSON object of a file, or the part of it on text if the model reads more than text."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise BadInput(f"{error.strerror}; a model is a folder with a config.json and a tokenizer") from None
    except ValueError as error:
        raise BadInput(f"no JSON: {error}; fetch it again") from None
    if not isinstance(content, dict):
        raise BadInput("must hold a JSON object")
    text = content.get("text_config")
    return {**content, **text} if isinstance(text, dict) else content


def _from_hub(name: str) -> Path:
    """The model's config.json in the hub's cache, fetched if need be."""
    try:
        return hub.fetched(name, "config.json") / "config.json"
    except Exception as error:  # the hub's errors have no common base
        raise BadInput(
            f"model {name!r}: no folder, and not to be had from the hub: {hub.reason(error)}"
        ) from None


# -- making a model --------------------------------------------------------------------------------------


def _made(name: str, recipe: Recipe, cache: Path) -> Path:
    """The folder of a model, made if it is not there; it is whole or not there at all."""
    digest = hashlib.sha256(json.dumps([RECIPE, asdict(recipe)]).encode()).hexdigest()[:12]
    folder = cache / f"{name}-{digest}"
    if not folder.is_dir():
        with _draft(folder) as draft:
            _write(draft, recipe)
    return folder


@contextmanager
def _draft(folder: Path) -> Iterator[Path]:
    """A new folder to fill, moved to `folder` at the end unless another process was first."""
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=DRAFT))
        try:
            yield draft
            draft.chmod(0o755)
            if not folder.is_dir():
                draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _write(folder: Path, recipe: Recipe) -> None:
    for name, content in {
        "config.json": _config(recipe),
        "tokenizer.json": _tokenizer(recipe.architecture.vocabulary),
        "tokenizer_config.json": _tokenizer_config(recipe.max_length),
    }.items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")
    if recipe.seed is not None:
        weights = dict(
            _weights(recipe.architecture, recipe.dtype, np.random.Generator(np.random.PCG64(recipe.seed)))
        )
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _config(recipe: Recipe) -> dict[str, Any]:
    shape = recipe.architecture
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied_embeddings,
        "max_position_embeddings": recipe.max_length,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "unk_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": recipe.dtype,
    }


def _tokenizer(vocabulary: int) -> dict[str, Any]:
    words = {word(i): i for i in range(vocabulary)}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": t, "special": True, **plain} for i, t in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": SPECIAL[0]},
    }


def _tokenizer_config(max_length: int) -> dict[str, Any]:
    unknown, begin, end = SPECIAL
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": unknown,
        "bos_token": begin,
        "eos_token": end,
        "model_max_length": max_length,
        "chat_template": "{% for message in messages %}{{ message['content'] }} {% endfor %}",
    }


def _weights(
    shape: Architecture, dtype: str, random: np.random.Generator
) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """The tensors of a Llama by name. 16-bit ones are float16, which the engine turns into its own type.

    Entries are uniform, with a variance that keeps the size of activations: small ones would let the output
    depend on the last token alone, and a wrong KV cache go unnoticed. Uniform numbers take exact arithmetic
    only, hence the same bytes everywhere.
    """
    stored = np.float32 if dtype == "float32" else np.float16

    def matrix(rows: int, columns: int) -> np.ndarray[Any, Any]:
        entries = random.random((rows, columns), dtype=np.float32) * np.float32(2) - np.float32(1)
        return (entries * np.float32(math.sqrt(3 / columns))).astype(stored)

    yield "model.embed_tokens.weight", matrix(shape.vocabulary, shape.hidden)
    yield "lm_head.weight", matrix(shape.vocabulary, shape.hidden)
    yield "model.norm.weight", np.ones(shape.hidden, stored)
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    for layer in range(shape.layers):
        block = f"model.layers.{layer}"
        yield f"{block}.input_layernorm.weight", np.ones(shape.hidden, stored)
        yield f"{block}.post_attention_layernorm.weight", np.ones(shape.hidden, stored)
        yield f"{block}.self_attn.q_proj.weight", matrix(queries, shape.hidden)
        yield f"{block}.self_attn.k_proj.weight", matrix(keys, shape.hidden)
        yield f"{block}.self_attn.v_proj.weight", matrix(keys, shape.hidden)
        yield f"{block}.self_attn.o_proj.weight", matrix(shape.hidden, queries)
        yield f"{block}.mlp.gate_proj.weight", matrix(shape.intermediate, shape.hidden)
        yield f"{block}.mlp.up_proj.weight", matrix(shape.intermediate, shape.hidden)
        yield f"{block}.mlp.down_proj.weight", matrix(shape.hidden, shape.intermediate)
