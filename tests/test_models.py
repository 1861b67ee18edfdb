"""Models by name: what is made is whole and always the same, what is read is checked."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from suite import hub, models
from suite.errors import BadInput
from suite.files import DRAFT
from suite.models import model

CONFIG = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def folder_with(place: Path, **changes: object) -> Path:
    """A folder with a config.json; a field changed to None is left out."""
    place.mkdir(exist_ok=True)
    config = {key: value for key, value in (CONFIG | changes).items() if value is not None}
    (place / "config.json").write_text(json.dumps(config))
    return place


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


# -- made on the spot ------------------------------------------------------------------------------------


def test_the_same_bytes_every_time(tmp_path: Path):
    one, other = (contents(model("tiny", tmp_path / cache).path) for cache in ("a", "b"))
    assert one == other
    assert set(one) == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_the_weights_are_those_of_the_recipe(tmp_path: Path):
    """If this fails, models.RECIPE must be raised too, or caches would keep the old weights."""
    weights = load_file(Path(model("tiny", tmp_path).path) / "model.safetensors")
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].tobytes())
    assert (models.RECIPE, digest.hexdigest()[:16]) == (1, "637732bbc2d47a82")


def test_weights_fit_the_configuration(tmp_path: Path):
    tiny = model("tiny", tmp_path)
    weights = load_file(Path(tiny.path) / "model.safetensors")
    assert weights["model.embed_tokens.weight"].shape == weights["lm_head.weight"].shape == (2048, 128)
    assert weights["model.layers.1.self_attn.k_proj.weight"].shape == (64, 128)
    assert weights["model.layers.1.mlp.down_proj.weight"].shape == (128, 256)
    assert "model.layers.2.input_layernorm.weight" not in weights
    matrices = [tensor for tensor in weights.values() if tensor.ndim == 2]
    assert tiny.weight_bytes == sum(matrix.nbytes for matrix in matrices)
    assert all(matrix.std() * matrix.shape[1] ** 0.5 == pytest.approx(1, abs=0.05) for matrix in matrices)


def test_mid_is_stored_in_half_the_bits(tmp_path: Path):
    mid = model("mid", tmp_path)
    size = (Path(mid.path) / "model.safetensors").stat().st_size
    assert mid.weight_bytes < size < mid.weight_bytes + 50_000
    assert (mid.dtype, mid.kv_bytes, mid.dummy) == ("bfloat16", 2 * 2 * 4 * 4 * 64, False)


def test_it_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = model("tiny", tmp_path)
    monkeypatch.setattr(models, "_write", lambda *_: pytest.fail("made twice"))
    assert model("tiny", tmp_path) == first


def test_another_recipe_makes_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = model("tiny", tmp_path)
    monkeypatch.setattr(models, "RECIPE", models.RECIPE + 1)
    assert model("tiny", tmp_path).path != first.path


def test_what_breaks_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(models, "save_file", full)
    with pytest.raises(BadInput, match=r"tiny-.*No space left"):
        model("tiny", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_at_once_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write = models._write

    def overtaken(folder: Path, recipe: models.Recipe) -> None:
        write(folder, recipe)
        monkeypatch.setattr(models, "_write", write)
        model("tiny", tmp_path)

    monkeypatch.setattr(models, "_write", overtaken)
    made = model("tiny", tmp_path)
    assert [str(folder) for folder in tmp_path.iterdir()] == [made.path]
    assert DRAFT not in made.path


def test_words_are_ids(tmp_path: Path):
    tiny = model("tiny", tmp_path)
    tokenizer = json.loads((Path(tiny.path) / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    assert sorted(words.values()) == list(range(tiny.vocabulary))
    assert (words["w5"], words["</s>"]) == (5, 2)
    assert [token["id"] for token in tokenizer["added_tokens"]] == list(range(tiny.first_token))


@pytest.mark.parametrize(
    ("name", "kv_bytes", "billions"), [("llama-3.2-3b", 114688, 3.2), ("llama-3.1-8b", 131072, 8.0)]
)
def test_architectures_have_their_published_size_and_no_weights(
    tmp_path: Path, name: str, kv_bytes: int, billions: float
):
    found = model(name, tmp_path)
    assert found.dummy
    assert not list(Path(found.path).glob("*.safetensors"))
    assert (found.kv_bytes, found.vocabulary) == (kv_bytes, 128256)
    assert found.weight_bytes / 2e9 == pytest.approx(billions, abs=0.05)


# -- a folder of one's own -------------------------------------------------------------------------------


def test_a_folder_is_read(tmp_path: Path):
    folder = folder_with(tmp_path / "own", torch_dtype="float32", bos_token_id=1, eos_token_id=[2, 900])
    found = model(str(folder))
    assert found.path == str(folder)
    assert (found.vocabulary, found.max_length, found.first_token) == (1000, 512, 3)
    assert (found.dtype, found.kv_bytes) == ("float32", 2 * 4 * 2 * 2 * 16)
    assert found.is_local


def test_without_weights_the_engine_makes_them_up(tmp_path: Path):
    folder = folder_with(tmp_path / "own")
    assert model(str(folder)).dummy
    (folder / "model-00001-of-00002.safetensors").touch()
    assert not model(str(folder)).dummy


def test_of_a_model_that_also_sees_the_text_part_counts(tmp_path: Path):
    folder = folder_with(
        tmp_path / "own", vocab_size=None, text_config={"vocab_size": 77, "dtype": "float16"}
    )
    found = model(str(folder))
    assert (found.vocabulary, found.dtype) == (77, "float16")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": None}, "vocab_size: missing"),
        ({"hidden_size": 0}, "hidden_size: .*greater than or equal to 1"),
        ({"num_hidden_layers": "many"}, "num_hidden_layers: .*many"),
        ({"dtype": "float61"}, "dtype: 'float61' is not known; did you mean 'float16'"),
    ],
    ids=str,
)
def test_what_a_config_lacks_is_named(tmp_path: Path, changes: dict[str, object], message: str):
    folder = folder_with(tmp_path / "own", **changes)
    with pytest.raises(BadInput, match=f"{folder}/config.json: {message}"):
        model(str(folder))


@pytest.mark.parametrize(
    ("text", "message"), [("{", "no JSON"), ("[]", "JSON object"), (None, "No such file")]
)
def test_a_folder_that_is_no_model(tmp_path: Path, text: str | None, message: str):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(BadInput, match=f"{tmp_path}/config.json: .*{message}"):
        model(str(tmp_path))


@pytest.mark.parametrize("name", ["tny", "./nowhere", "a/b/c", "../tiny"])
def test_an_unknown_name_is_told(name: str):
    with pytest.raises(BadInput, match=f"no model '{name}'; "):
        model(name)


# -- a name on the hub -----------------------------------------------------------------------------------


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the hub's cache has of a model, with a stand-in for the hub's client in front of it."""
    folder = folder_with(tmp_path / "cache", eos_token_id=999)

    def download(name: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        assert (name, allow_patterns) == ("maker/thing", ["config.json"])
        if local_files_only and not folder.is_dir():
            raise FileNotFoundError("nothing in the cache")
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr(hub, "commit", lambda name: "0123abc")
    return folder


def offline(*_: str) -> str:
    raise ConnectionError("Cannot reach the hub.\nTry later. And more")


def test_a_name_on_the_hub_is_passed_on(cached: Path):
    found = model("maker/thing")
    assert (found.name, found.path, found.dummy, found.is_local) == (
        "maker/thing",
        "maker/thing",
        False,
        False,
    )
    assert (found.vocabulary, found.first_token) == (1000, 0)


def test_without_a_network_the_cache_will_do(cached: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub, "commit", offline)
    assert model("maker/thing").vocabulary == 1000


def test_a_hub_out_of_reach_is_one_line(cached: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub, "commit", offline)
    refusal = r"model 'maker/thing': no folder, and .*: no connection: Cannot reach the hub$"
    (cached / "config.json").unlink()
    with pytest.raises(BadInput, match=refusal):
        model("maker/thing")
    shutil.rmtree(cached)
    with pytest.raises(BadInput, match=refusal):
        model("maker/thing")
