"""Checkpoints: read, written, told apart, and refused with a sentence that helps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from clipdata_jax.errors import InputError
from clipdata_jax.models import CLIP, checkpoint_digest, load_clip, load_image_transform, save_clip
from clipdata_jax.models.weights import CLIP_TABLE, source_name

MODELS = ["hf_clip_quickgelu", "hf_clip_gelu_legacy_eos"]


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


def test_saving_leaves_no_half_written_file(folder: Path, tmp_path: Path):
    model, before = load_clip(folder), (folder / "model.safetensors").read_bytes()
    model.text.token[...] = model.text.token[...].at[0, 0].set(1e6)
    with pytest.raises(ValueError, match=r"text\.token is not finite in float16"):
        save_clip(model, folder, dtype="float16")
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        save_clip(model, folder, dtype="int8")
    assert (folder / "model.safetensors").read_bytes() == before
    assert len(list(folder.iterdir())) == 2


def test_the_table_is_the_same_both_ways(golden: Path):
    model = nnx.eval_shape(lambda: load_clip(golden / "models" / MODELS[0]))
    for path, _ in nnx.to_flat_state(nnx.state(model)):
        target = ".".join(map(str, path))
        name, _ = source_name(target)
        assert sum(_fits(rule, name) == target for rule in CLIP_TABLE) == 1
    with pytest.raises(ValueError, match=r"no parameter 'text\.nothing'"):
        source_name("text.nothing")


def _fits(rule, name: str) -> str | None:
    import re

    match = re.fullmatch(rule.source, name)
    return match.expand(rule.target) if match and rule.target else None


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
    with pytest.raises(InputError, match=r"fc1\.weight of .* has shape \(48, 96\), .* asks for \(96, 48\)"):
        load_clip(folder)
    kernel = {"vision_model.embeddings.patch_embedding.weight": np.zeros((64, 3, 4, 4), np.float32)}
    edit_tensors(
        folder, **{"text_model.encoder.layers.0.mlp.fc1.weight": np.zeros((96, 48), np.float32)}, **kernel
    )
    with pytest.raises(InputError, match=r"\(64, 3, 4, 4\), but config\.json asks for \(64, 3, 8, 8\)"):
        load_clip(folder)


def test_quantised_and_broken_weights_are_refused(folder: Path):
    edit_tensors(folder, logit_scale=np.array(3, np.int8))
    with pytest.raises(InputError, match=r"logit_scale of .* holds int8, expected floats"):
        load_clip(folder)
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    with pytest.raises(InputError, match="is no readable safetensors file"):
        load_clip(folder)


def test_digest_tells_checkpoints_apart(folder: Path, golden: Path):
    digest = checkpoint_digest(folder)
    assert digest.startswith("sha256:") and len(digest) == 71
    assert digest == checkpoint_digest(golden / "models" / MODELS[0])
    assert digest != checkpoint_digest(golden / "models" / MODELS[1])
    (folder / "notes.txt").write_text("not part of the model")
    assert checkpoint_digest(folder) == digest
    edit_config(folder, logit_scale_init_value=1.0)
    assert checkpoint_digest(folder) != digest


def test_missing_folders_and_files_are_named(folder: Path, tmp_path: Path):
    with pytest.raises(
        InputError, match=r"there is no folder .*nowhere; put config\.json, model\.safetensors"
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
    with pytest.raises(
        InputError, match=r"only pytorch_model\.bin: pickles .* never loaded.*save_pretrained"
    ):
        load_clip(folder)
    with pytest.raises(InputError, match="pickles"):
        checkpoint_digest(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(InputError, match="several files, expected one"):
        load_clip(folder)


def test_other_models_and_broken_configs_are_refused(folder: Path):
    edit_config(folder, model_type="siglip")
    with pytest.raises(InputError, match=r"config\.json: model_type is 'siglip', expected 'clip'"):
        load_clip(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json can't be read as JSON"):
        load_clip(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(InputError, match="holds a JSON list, expected an object"):
        load_clip(folder)


def test_a_hub_name_is_fetched_or_the_files_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def fetch(name: str, *, allow_patterns: list[str]) -> str:
        if name != "someone/clip":
            raise OSError("no such\nrepository")
        assert "model.safetensors" in allow_patterns and not any(
            "bin" in pattern for pattern in allow_patterns
        )
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert checkpoint_digest("someone/clip") == checkpoint_digest(folder)
    expected = (
        r"someone/else is no folder here .*\(OSError: no such repository\); make a folder of config\.json"
    )
    with pytest.raises(InputError, match=expected):
        load_clip("someone/else")
    with pytest.raises(InputError, match="there is no folder"):
        load_clip("./someone/clip")
