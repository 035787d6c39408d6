"""`clipdata embed` with checkpoints of every kind that people have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from support.images import jpeg, write_pairs

from clipdata_jax.models import CLIP, load_clip, open_clip_config
from clipdata_jax.runs import manifest

CAPTIONS = ["A red house", "a red house", "two blue boats"]


def words(folder: Path, *, start: bool) -> Path:
    """Puts a tokenizer of whole words, of case, into a folder; its end token has id 2."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "red": 5, "house": 6, "A": 7, "two": 8, "blue": 9}
    backend = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    single = "<s> $A </s>" if start else "$A </s>"
    backend.post_processor = processors.TemplateProcessing(single, special_tokens=[("<s>", 0), ("</s>", 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", eos_token="</s>", bos_token="<s>"
    ).save_pretrained(folder)
    return folder


def write_pool(folder: Path) -> None:
    """A tar of three pairs."""
    folder.mkdir()
    texts = {f"0000{row}__txt": caption.encode() for row, caption in enumerate(CAPTIONS)}
    images = {f"0000{row}__jpg": jpeg(row) for row in range(3)}
    write_pairs(folder / "0.tar", [], **dict(sorted({**texts, **images}.items())))


def embedded(model: CLIP, ids: list[list[int]]) -> np.ndarray:
    return np.asarray(jax.jit(CLIP.encode_text)(model, np.array(ids, np.int32)))


def test_one_tower_embeds_a_target_and_no_captions(clipdata: Callable, golden: Path, tmp_path: Path):
    write_pool(tmp_path / "pool")
    tower = f"local-dir:{golden / 'models' / 'hf_clip_vision'}"
    done = clipdata("embed", "pool", "--images-only", "--model", f"v={tower}", "--out", "target")
    assert done.returncode == 0, done.stderr
    assert "Embedded 3 images as v, dimension 12: target" in done.stdout
    assert np.load("target/0.npz")["v_img"].shape == (3, 12)
    assert "temperature" not in json.loads(Path("target", manifest.NAME).read_text())["models"]["v"]
    refused = clipdata("embed", "pool", "--model", f"v={tower}", "--out", "pairs")
    assert refused.returncode == 2
    assert "'clip_vision_model' has no text tower; take a whole model, or embed with --images-only" in refused.stderr


def test_metaclip_2_in_the_hubs_cache_and_open_clips_siglip_embed_pairs(
    clipdata: Callable, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(open_clip_config._TIMM_SIZES, "tiny", (16, 2, 2, 4.0))  # the golden model's, not one of timm's
    write_pool(tmp_path / "pool")
    metaclip = tmp_path / "models--acme--metaclip" / "snapshots" / "0123456789abcdef"
    for name, folder in (("hf_metaclip_2", metaclip), ("open_clip_siglip", tmp_path / "siglip")):
        shutil.copytree(golden / "models" / name, folder)
        words(folder, start=folder == metaclip)
    done = clipdata("embed", "pool", "--model", "m=models--acme--metaclip", "s=siglip", "--out", "meta")
    assert done.returncode == 0, done.stderr
    assert "Embedded 3 pairs as m, dimension 12, temperature 0.04579: meta" in done.stdout
    found = np.load("meta/0.npz")
    ends = [[0, 7, 5, 6, 2], [0, 4, 5, 6, 2], [0, 8, 9, 3, 2]]
    want = embedded(load_clip(metaclip), [row + [1] * 5 for row in ends])
    np.testing.assert_allclose(found["m_txt"], want, atol=1e-3)
    # "canonicalize", as its config says, lower-cases; SigLIP pools at the last position, padding or not.
    ends = [[4, 5, 6, 2], [4, 5, 6, 2], [8, 9, 3, 2]]
    want = embedded(load_clip(tmp_path / "siglip"), [row + [1] * 6 for row in ends])
    np.testing.assert_allclose(found["s_txt"], want, atol=1e-3)
    np.testing.assert_array_equal(found["s_txt"][0], found["s_txt"][1])
