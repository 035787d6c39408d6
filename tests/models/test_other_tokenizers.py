"""Tokenizers other than CLIP's, XLM-V's and Gemma's, against the classes that transformers has for them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipdata_jax.errors import InputError
from clipdata_jax.models import load_tokenizer

CONTEXT = 10
# Of every kind that tokenizers are known to treat differently.
HARD = [
    "A Red Circle beside two BLUE squares",
    "a red circle beside two blue squares",
    "",
    "   ",
    "  leading,\ttabs\nand   spaces  ",
    'snake_case and isn\'t it? "quoted" (done)!',
    "café CAFÉ naïve ÅNGSTRÖM Straße İstanbul",
    "ΟΔΟΣ ὈΔΥΣΣΕΎΣ",
    "日本語の猫 고양이 кошка قطة",
    "🦄👩‍👩‍👧 x🇩🇪",
    "\x00\x07 \x7f\u200b\ufeff control\u2028line",
    "</s> <s> <pad> <EOS> <eos> <bos> <mask>",
    "&amp;lt;b&gt; cafÃ© \u2581 ▁x",
    "ſ \u0345 ﬁ ½ Ⅳ ㎏",
    "a red circle " * 20,
    "x" * 300,
]


@pytest.fixture(scope="module")
def xlm_v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of XLM-V's tokenizer class with a small vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import XLMRobertaTokenizer

    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    backend.train_from_iterator(
        HARD, trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    folder = tmp_path_factory.mktemp("xlm-v")
    pieces = json.loads(backend.to_str())["model"]["vocab"]
    XLMRobertaTokenizer(vocab=[(piece, score) for piece, score in pieces]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of Gemma's tokenizer class with a small vocabulary, set up as SigLIP 2's folders have it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import GemmaTokenizer

    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend.train_from_iterator(
        [*HARD[:-2], *map(str.lower, HARD[:-2])],
        trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False),
    )
    model = json.loads(backend.to_str())["model"]
    folder = tmp_path_factory.mktemp("gemma")
    options = {"padding_side": "right", "add_bos_token": False, "add_eos_token": True, "model_max_length": 64}
    GemmaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]], **options).save_pretrained(
        folder
    )
    return folder


def copied(tokenizer: Path, folder: Path, content: dict[str, Any], name: str = "config.json") -> Path:
    """A folder with the tokenizer's files and a model's config file."""
    for file in tokenizer.iterdir():
        shutil.copyfile(file, folder / file.name)
    (folder / name).write_text(json.dumps(content))
    return folder


def text_config(tokenizer: Any, **others: Any) -> dict[str, Any]:
    return {"vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT, **others}


def padded(tokenizer: Any, captions: list[str]) -> np.ndarray:
    options = {"padding": "max_length", "truncation": True, "max_length": CONTEXT}
    return np.array([tokenizer(caption, **options)["input_ids"] for caption in captions])


def test_metaclips_ids_are_those_of_its_class(xlm_v: Path, tmp_path: Path):
    from transformers import XLMRobertaTokenizer

    theirs = XLMRobertaTokenizer.from_pretrained(xlm_v)
    model = {"model_type": "metaclip_2", "text_config": text_config(theirs, eos_token_id=2)}
    ours = load_tokenizer(copied(xlm_v, tmp_path, model))
    rows = ours(HARD)
    np.testing.assert_array_equal(rows, padded(theirs, HARD))
    assert (ours.context_length, ours.vocab_size, ours.eos_token_id) == (CONTEXT, len(theirs), 2)
    assert (rows[:, 0] == 0).all()
    assert (rows == 2).any(axis=1).all()  # each is pooled at its end token, the longest too
    assert rows[2].tolist() == [0, 2] + [1] * 8
    assert rows[-1][-1] == 2
    model["text_config"]["eos_token_id"] = 1
    (tmp_path / "config.json").write_text(json.dumps(model))
    with pytest.raises(InputError, match="ends captions with id 2, but the model's eos_token_id is 1"):
        load_tokenizer(tmp_path)


def test_siglip_2s_ids_are_those_of_its_class_though_its_files_name_gemmas(gemma: Path, tmp_path: Path):
    import transformers

    if not hasattr(transformers, "Siglip2Tokenizer"):
        pytest.skip("needs a transformers that has Siglip2Tokenizer")
    bare = transformers.GemmaTokenizer.from_pretrained(gemma)
    model = {"model_type": "siglip", "text_config": text_config(bare, hidden_size=768)}
    rows = load_tokenizer(copied(gemma, tmp_path, model))(HARD)
    np.testing.assert_array_equal(rows, padded(transformers.Siglip2Tokenizer.from_pretrained(gemma), HARD))
    plain = [caption.lower() for caption in HARD[:2]]
    np.testing.assert_array_equal(rows[:2], padded(bare, plain))
    assert not (rows == padded(bare, HARD)).all()  # Gemma's own keeps capitals
    np.testing.assert_array_equal(rows[0], rows[1])
    assert rows[2].tolist() == [1] + [0] * 9
    assert rows[-2][-1] == 1


@pytest.mark.parametrize("clean", ["canonicalize", "lower", "whitespace", None])
def test_open_clips_captions_are_cleaned_before_another_tokenizer_reads_them(
    clean: str | None, gemma: Path, tmp_path: Path
):
    from transformers import GemmaTokenizer

    theirs = GemmaTokenizer.from_pretrained(gemma)
    text = {"context_length": CONTEXT, "vocab_size": len(theirs), "hf_tokenizer_name": "timm/ViT-B-16-SigLIP2"}
    text |= {"pool_type": "last", "tokenizer_kwargs": {"clean": clean} if clean else {}}
    model = {"model_cfg": {"embed_dim": 512, "vision_cfg": {}, "text_cfg": text}}
    ours = load_tokenizer(copied(gemma, tmp_path, model, "open_clip_config.json"))
    raw = ["Café,  isn&amp;#39;t_it?", " two\tBLUE\n squares! ", "", "cafÃ© <b>"]
    cleaned = {
        "canonicalize": ["café isnt it", "two blue squares", "", "café b"],
        "lower": ["café, isn't_it?", "two blue squares!", "", "café <b>"],
        "whitespace": ["Café, isn't_it?", "two BLUE squares!", "", "café <b>"],
    }[clean or "whitespace"]
    np.testing.assert_array_equal(ours(raw), padded(theirs, cleaned))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer_mode": "clips"}, r"text_cfg\.tokenizer_mode 'clips'"),
        ({"tokenizer_kwargs": {"clean": "none", "language": "de"}}, r"\.language 'de', text_cfg\..*\.clean 'none'"),
        ({"hf_tokenizer_name": None, "tokenizer_kwargs": {"clean": "whitespace"}}, r"tokenizer_kwargs\.clean 'white"),
    ],
)
def test_open_clips_other_settings_of_tokenizers_are_refused(change: dict, message: str, gemma: Path, tmp_path: Path):
    text = {"hf_tokenizer_name": "someone/words", **change}
    model = {"model_cfg": {"embed_dim": 512, "vision_cfg": {}, "text_cfg": text}}
    with pytest.raises(
        InputError, match=rf"open_clip_config\.json: unsupported settings of the tokenizer: .*{message}"
    ):
        load_tokenizer(copied(gemma, tmp_path, model, "open_clip_config.json"))
