"""Checkpoints: read, written, told apart, and refused with a sentence that helps."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from clipdata_jax.errors import InputError
from clipdata_jax.models import (
    CLIP,
    CLIPConfig,
    ImageTransform,
    checkpoint_digest,
    load_clip,
    load_image_transform,
    load_tokenizer,
    save_clip,
)
from clipdata_jax.models.weight_tables import CLIP_TABLE, SIGLIP_TABLE, open_clip_table, source_name

MODELS = ["hf_clip_quickgelu", "hf_clip_gelu_legacy_eos", "hf_siglip", "hf_metaclip_2"]
OPEN_CLIP = ("open_clip_config.json", "open_clip_model.safetensors")


@pytest.fixture
def folder(golden: Path, tmp_path: Path) -> Path:
    """A copy of a checkpoint, to spoil."""
    copy = tmp_path / "clip"
    copy.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(golden / "models" / MODELS[0] / name, copy / name)
    return copy


def edit_tensors(folder: Path, **changes: np.ndarray | None) -> None:
    """Puts tensors into the file, or, with None, takes them out."""
    tensors = {**load_file(folder / "model.safetensors"), **changes}
    kept = {name: array for name, array in tensors.items() if array is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def parameters(model: CLIP) -> dict[str, np.ndarray]:
    flat, _ = jax.tree.flatten_with_path(nnx.to_pure_dict(nnx.state(model)))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_loads_to_the_same_bits_and_pytorchs_names(name: str, golden: Path, tmp_path: Path):
    original = golden / "models" / name
    model = load_clip(original)
    save_clip(model, tmp_path / "new" / "folder")
    again = load_clip(tmp_path / "new" / "folder")
    assert again.config == model.config
    assert parameters(again).keys() == parameters(model).keys()
    for path, array in parameters(model).items():
        np.testing.assert_array_equal(parameters(again)[path], array)
    ours, theirs = (load_file(path / "model.safetensors") for path in (tmp_path / "new" / "folder", original))
    assert ours.keys() == theirs.keys()
    for tensor, array in theirs.items():
        np.testing.assert_array_equal(ours[tensor], array)
    assert sorted(file.name for file in (tmp_path / "new" / "folder").iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]


def test_float16_and_bfloat16(folder: Path, tmp_path: Path):
    model = load_clip(folder)
    save_clip(model, tmp_path / "half", dtype="float16")
    size = (folder / "model.safetensors").stat().st_size
    assert (tmp_path / "half" / "model.safetensors").stat().st_size < 0.6 * size
    for path, array in parameters(load_clip(tmp_path / "half")).items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, parameters(model)[path], rtol=1e-3, atol=1e-6)
    stored = {name: array.astype(jnp.bfloat16) for name, array in load_file(folder / "model.safetensors").items()}
    save_file(stored, tmp_path / "half" / "model.safetensors")
    for path, array in parameters(load_clip(tmp_path / "half")).items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, parameters(model)[path].astype(jnp.bfloat16))
    narrow = load_clip(folder, dtype=jnp.bfloat16)
    save_clip(narrow, tmp_path / "narrow")
    for path, array in parameters(load_clip(tmp_path / "narrow", dtype=jnp.bfloat16)).items():
        np.testing.assert_array_equal(array, parameters(narrow)[path])


def test_a_saved_model_says_its_moments_and_its_size(folder: Path, tmp_path: Path):
    settings = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25], "size": 32, "crop_size": 32}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    model = load_clip(folder)
    assert (model.config.image_mean, model.config.image_std) == ((0.5,) * 3, (0.25,) * 3)
    save_clip(model, tmp_path / "again")
    assert load_clip(tmp_path / "again").config == model.config
    assert load_image_transform(tmp_path / "again").size == 32


@pytest.mark.usefixtures("types_unchecked")
def test_saving_leaves_no_half_written_file(folder: Path, tmp_path: Path):
    model, before = load_clip(folder), (folder / "model.safetensors").read_bytes()
    model.text.token[...] = model.text.token[...].at[0, 0].set(1e6)
    with pytest.raises(ValueError, match=r"text\.token is not finite in float16"):
        save_clip(model, folder, dtype="float16")
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        save_clip(model, folder, dtype="int8")
    assert (folder / "model.safetensors").read_bytes() == before
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize(
    ("name", "table"), [(MODELS[0], CLIP_TABLE), (MODELS[2], SIGLIP_TABLE), ("open_clip_gelu", open_clip_table())]
)
def test_the_table_is_the_same_both_ways(name: str, table: tuple, golden: Path):
    file = next((golden / "models" / name).glob("*.safetensors"))
    with safe_open(file, framework="numpy") as tensors:
        names = set(tensors.keys())
    used = set()
    for tensor in names:
        rules = [rule for rule in table if re.fullmatch(rule.source, tensor)]
        assert len(rules) == (3 if "in_proj" in tensor else 1)
        for rule in rules:
            target = re.sub(rule.source, rule.target, tensor)
            assert source_name(target, table) == (tensor, rule)
            used.add(target)
    assert len(used) == len(names) + 2 * sum("in_proj" in tensor for tensor in names)
    with pytest.raises(ValueError, match=r"no parameter 'text\.nothing'"):
        source_name("text.nothing", table)


def test_position_buffers_of_older_files_are_ignored(folder: Path):
    buffers = {f"{tower}_model.embeddings.position_ids": np.arange(9)[None] for tower in ("text", "vision")}
    edit_tensors(folder, **buffers)
    load_clip(folder)


def test_leftover_and_missing_tensors_are_one_error(folder: Path):
    edit_tensors(
        folder,
        **{
            "text_model.encoder.layers.3.mlp.fc1.bias": np.zeros(96, np.float32),
            "adapter.weight": np.zeros(3, np.float32),
            "vision_model.encoder.layers.1.self_attn.k_proj.weight": None,
            "visual_projection.weight": None,
        },
    )
    with pytest.raises(InputError) as caught:
        load_clip(folder)
    assert str(caught.value) == (
        f"{folder / 'model.safetensors'} does not fit its config.json: tensors left over: adapter.weight, "
        "text_model.encoder.layers.3.mlp.fc1.bias; tensors missing: "
        "vision_model.encoder.layers.1.self_attn.k_proj.weight, visual_projection.weight; "
        "check that both files are of the same model"
    )


def test_a_wrong_shape_names_the_tensor_as_the_file_has_it(folder: Path):
    edit_tensors(folder, **{"text_model.encoder.layers.0.mlp.fc1.weight": np.zeros((48, 96), np.float32)})
    with pytest.raises(InputError, match=r"fc1\.weight of .* has shape \(48, 96\), .* needs \(96, 48\)"):
        load_clip(folder)
    kernel = {"vision_model.embeddings.patch_embedding.weight": np.zeros((64, 3, 4, 4), np.float32)}
    edit_tensors(folder, **{"text_model.encoder.layers.0.mlp.fc1.weight": np.zeros((96, 48), np.float32)}, **kernel)
    with pytest.raises(InputError, match=r"\(64, 3, 4, 4\), but config\.json needs \(64, 3, 8, 8\)"):
        load_clip(folder)


def test_one_tower_is_loaded_whatever_its_names_and_never_written(golden: Path, tmp_path: Path):
    source, older = golden / "models" / "hf_siglip_vision", tmp_path / "older"
    older.mkdir()
    shutil.copyfile(source / "config.json", older / "config.json")
    renamed = {f"vision_model.{name}": array for name, array in load_file(source / "model.safetensors").items()}
    save_file(renamed, older / "model.safetensors")  # as transformers 4 has them
    want = parameters(load_clip(source))
    assert all((array == want[path]).all() for path, array in parameters(load_clip(older)).items())
    assert load_image_transform(older) == ImageTransform(size=16, fit="squash")
    with pytest.raises(InputError, match=r"'siglip_vision_model' has no text tower; take a whole model, or embed with"):
        load_tokenizer(older)
    with pytest.raises(ValueError, match="one tower, but only whole models are written"):
        save_clip(load_clip(older), tmp_path / "saved")
    (older / "model.safetensors").rename(older / "pytorch_model.bin")
    with pytest.raises(InputError, match="from transformers import SiglipVisionModel as M"):
        load_clip(older)
    with pytest.raises(ValueError, match="both None"):
        CLIPConfig(vision=None, text=None, embed_dim=8)


def float8(file: Path) -> None:
    """Replaces a file's tensors by one of float8, which the library's NumPy side can't write."""
    header = json.dumps({"logit_scale": {"dtype": "F8_E4M3", "shape": [], "data_offsets": [0, 1]}}).encode()
    tensors = load_file(file)
    del tensors["logit_scale"]
    save_file(tensors, file.with_name("model-00002-of-00002.safetensors"))
    file.with_name("model-00001-of-00002.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    shards = dict.fromkeys(tensors, "model-00002-of-00002.safetensors")
    shards["logit_scale"] = "model-00001-of-00002.safetensors"
    file.with_name("model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    file.unlink()


def test_float8_is_refused_by_name(folder: Path):
    float8(folder / "model.safetensors")
    with pytest.raises(InputError, match=r"logit_scale of .* has dtype F8_E4M3, expected one of F64, F32, F16, BF16"):
        load_clip(folder)


def test_quantised_and_broken_weights_are_refused(folder: Path):
    edit_tensors(folder, logit_scale=np.array(3, np.int8))
    with pytest.raises(
        InputError, match=r"logit_scale of .* has dtype I8, expected one of F64, F32, F16, BF16; take the unq"
    ):
        load_clip(folder)
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    with pytest.raises(InputError, match="is not a readable safetensors file"):
        load_clip(folder)


def test_digest_tells_checkpoints_apart(folder: Path, golden: Path):
    digest = checkpoint_digest(folder)
    assert digest.startswith("sha256:")
    assert len(digest) == 71
    assert digest == checkpoint_digest(golden / "models" / MODELS[0])
    assert digest != checkpoint_digest(golden / "models" / MODELS[1])
    (folder / "notes.txt").write_text("not part of the model")
    assert checkpoint_digest(folder) == digest
    edit_config(folder, logit_scale_init_value=1.0)
    assert checkpoint_digest(folder) != digest


def test_missing_folders_and_files_are_named(folder: Path, tmp_path: Path):
    with pytest.raises(
        InputError, match=r"nowhere: no such folder; expected a folder of config\.json, model\.safetensors"
    ):
        load_clip(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is a file, expected a folder"):
        load_clip(folder / "config.json")
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
        with pytest.raises(InputError, match=rf"has no {name}"):
            load_clip(folder)


def test_pickles_are_refused_with_the_command_that_converts(folder: Path):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match=r"only pytorch_model\.bin: pickles .* never loaded.*save_pretrained"):
        load_clip(folder)
    with pytest.raises(InputError, match="pickles"):
        checkpoint_digest(folder)


def test_weights_in_several_files_are_read(folder: Path):
    want, file = parameters(load_clip(folder)), folder / "model.safetensors"
    tensors = sorted(load_file(file).items())
    file.unlink()
    shards = {"model-00001-of-00002.safetensors": tensors[:9], "model-00002-of-00002.safetensors": tensors[9:]}
    for name, part in shards.items():
        save_file(dict(part), folder / name)
    places = {tensor: name for name, part in shards.items() for tensor, _ in part}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    got, digest = parameters(load_clip(folder)), checkpoint_digest(folder)
    assert got.keys() == want.keys()
    assert all((got[path] == want[path]).all() for path in want)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks model-00002-of-00002\.safetensors, named by model\.safe"):
        load_clip(folder)
    save_file(dict(shards["model-00001-of-00002.safetensors"]), folder / "model-00002-of-00002.safetensors")
    assert checkpoint_digest(folder) != digest
    index.write_text('{"weight_map": {"logit_scale": "../model.safetensors"}}')
    with pytest.raises(InputError, match="expected a file in the same folder"):
        load_clip(folder)
    index.write_text("{}")
    with pytest.raises(InputError, match="has no weight_map"):
        load_clip(folder)


def test_of_two_layouts_the_one_whose_weights_are_there_is_read(golden: Path, folder: Path):
    ours = load_clip(folder).config
    for name in OPEN_CLIP:
        shutil.copyfile(golden / "models" / "open_clip_gelu" / name, folder / name)
    assert load_clip(folder).config == ours
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert load_clip(folder).config.vision.activation == "gelu" != ours.vision.activation
    edit_config(folder, model_type="timm")
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    assert load_clip(folder).config.vision.activation == "gelu"


def test_other_models_and_broken_configs_are_refused(folder: Path):
    edit_config(folder, model_type="blip")
    with pytest.raises(InputError, match=r"config\.json: model_type is 'blip', expected one of 'clip', "):
        load_clip(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json can't be read as JSON"):
        load_clip(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(InputError, match="holds a JSON list, expected an object"):
        load_clip(folder)


def test_a_hub_name_is_fetched_or_the_files_are_named(golden: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def fetch(name: str, *, allow_patterns: list[str]) -> str:
        if name != "someone/clip":
            raise OSError("no such\nrepository")
        asked.extend(allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert checkpoint_digest("someone/clip") == checkpoint_digest(folder)
    assert "model.safetensors" in asked
    assert "tokenizer.json" in asked
    assert not any("bin" in pattern or "open_clip_model" in pattern for pattern in asked)
    shutil.copyfile(golden / "models" / "open_clip_gelu" / OPEN_CLIP[0], folder / OPEN_CLIP[0])
    (folder / "model.safetensors").rename(folder / OPEN_CLIP[1])
    checkpoint_digest("someone/clip")
    assert OPEN_CLIP[1] in asked
    (folder / OPEN_CLIP[1]).unlink()
    with pytest.raises(
        InputError, match=r"someone/clip has no safetensors weights .* hf download someone/clip --local-dir"
    ):
        load_clip("someone/clip")
    expected = r"someone/else is not a folder .*\(OSError: no such repository\); .*the path of a folder of config\.json"
    with pytest.raises(InputError, match=expected):
        load_clip("someone/else")
    with pytest.raises(InputError, match="no such folder"):
        load_clip("./someone/clip")


def test_names_are_read_as_open_clip_and_the_hubs_cache_write_them(
    golden: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    want = checkpoint_digest(folder)
    assert checkpoint_digest(f"local-dir:{folder}") == want
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: (asked.append(name), str(folder))[1])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone" / "clip").mkdir(parents=True)  # the prefix says that this isn't meant
    assert checkpoint_digest("hf-hub:someone/clip") == want
    assert set(asked) == {"someone/clip"}
    cache = tmp_path / "models--someone--clip"
    shutil.copytree(folder, cache / "snapshots" / "0a")
    assert checkpoint_digest(cache) == want
    shutil.copytree(golden / "models" / MODELS[1], cache / "snapshots" / "0b")
    with pytest.raises(InputError, match=r"models--someone--clip/snapshots has 2 snapshots, expected one; give the fo"):
        load_clip(cache)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0a")
    assert checkpoint_digest(cache) == want
    for name in ("ViT-B-32", "local-dir:ViT-B-32"):
        with pytest.raises(
            InputError, match=r"ViT-B-32: no such folder; .* hub is named owner/name, open_clip's names"
        ):
            load_clip(name)
    with pytest.raises(InputError, match="no such folder"):
        load_clip("hf-hub:clip")
