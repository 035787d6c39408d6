"""Tokens: as transformers makes them from CLIP's files, and from a vocabulary of one's own."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from clipdata_jax.errors import InputError
from clipdata_jax.models import load_tokenizer, train_tokenizer

CAPTIONS = [
    "A red circle beside two blue squares",
    "a RED   circle, isn't it?",
    "three green triangles over a café",
    "ein gelber Stern 2024",
    "a red square and a blue circle",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    train_tokenizer(CAPTIONS, tmp_path / "own", vocab_size=560, context_length=16)
    return tmp_path / "own"


@pytest.mark.parametrize("files", [["tokenizer.json"], ["vocab.json", "merges.txt"]])
def test_ids_are_those_of_transformers(shared, files: list[str], tmp_path: Path):
    source = shared("golden/clip_tokenizer")
    for name in files:
        shutil.copyfile(source / name, tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    expected = json.loads((source / "expected.json").read_text())
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.context_length, tokenizer.vocab_size, tokenizer.eos_token_id) == (77, 49408, 49407)
    ids = tokenizer(expected["captions"])
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, expected["hf"])


def test_a_row_is_start_tokens_end_padding(folder: Path):
    tokenizer = load_tokenizer(folder)
    start, end = tokenizer.eos_token_id - 1, tokenizer.eos_token_id
    assert end == tokenizer.vocab_size - 1
    empty, short, long = tokenizer(["", "a red circle", "a red circle " * 20])
    assert empty.tolist() == [start] + [end] * 15
    assert short[0] == start
    assert short[-1] == end
    assert long[0] == start
    assert long[-1] == end
    assert end not in long[:-1]
    np.testing.assert_array_equal(tokenizer(["A  RED\ncircle"])[0], short)
    assert tokenizer([]).shape == (0, 16)


def test_any_text_can_be_said_in_a_vocabulary_of_ones_own(folder: Path):
    tokenizer = load_tokenizer(folder)
    ids = tokenizer(["日本", "🦄 x", "\0\x7f", "ß"])
    assert (ids < tokenizer.vocab_size).all()
    # No two share their tokens, so nothing was read as "unknown".
    assert len({tuple(row) for row in ids.tolist()}) == 4
    assert (ids[0] != tokenizer.eos_token_id).sum() == 1 + 6  # two characters of three bytes each


def test_the_files_depend_on_the_captions_alone(tmp_path: Path):
    words = [" ".join(random.Random(seed).choices("abcdefgé", k=9)) for seed in range(300)]
    words += ["".join(random.Random(seed).choices("abcdé", k=4)) for seed in range(300)]
    script = (
        "import sys, json; from clipdata_jax.models import train_tokenizer; "
        "train_tokenizer(json.loads(sys.argv[1]), sys.argv[2], vocab_size=700, context_length=16)"
    )
    for name, captions in (("a", words), ("b", words[::-1])):
        command = [sys.executable, "-W", "error", "-c", script, json.dumps(captions), str(tmp_path / name)]
        root = str(Path(__file__).resolve().parents[2])
        subprocess.run(command, check=True, timeout=60, env={**os.environ, "PYTHONPATH": root})
    names = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert names == ["merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert load_tokenizer(tmp_path / "a").vocab_size == 700


def test_both_forms_of_the_files_give_the_same_ids(folder: Path):
    before = load_tokenizer(folder)(CAPTIONS)
    (folder / "tokenizer.json").unlink()
    np.testing.assert_array_equal(load_tokenizer(folder)(CAPTIONS), before)


def test_a_small_corpus_gives_a_small_vocabulary(tmp_path: Path):
    tokenizer = train_tokenizer(["ab ab"], tmp_path, vocab_size=600, context_length=8)
    assert tokenizer.vocab_size == 515
    assert tokenizer(["ab"])[0].tolist() == [513, 512] + [514] * 6
    assert train_tokenizer(CAPTIONS, tmp_path, vocab_size=514, context_length=8).vocab_size == 514


def test_impossible_vocabularies_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="vocab_size is 513, expected at least 514"):
        train_tokenizer(CAPTIONS, tmp_path, vocab_size=513, context_length=8)
    with pytest.raises(ValueError, match="context_length is 2, expected at least 3"):
        train_tokenizer(CAPTIONS, tmp_path, vocab_size=514, context_length=2)


def test_the_files_are_read_by_transformers_alike(folder: Path):
    from transformers import CLIPTokenizer

    theirs = CLIPTokenizer.from_pretrained(folder)
    ids = theirs(CAPTIONS, padding="max_length", max_length=16, truncation=True)["input_ids"]
    np.testing.assert_array_equal(load_tokenizer(folder)(CAPTIONS), ids)


def test_padding_is_what_the_files_say(folder: Path):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": {"content": "!"}}))
    assert load_tokenizer(folder)([""])[0, -1] == 0
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text('{"pad_token": "<pad>"}')
    with pytest.raises(InputError, match="pad_token '<pad>', which is not one of its tokens"):
        load_tokenizer(folder)


@pytest.mark.usefixtures("types_unchecked")
def test_bad_captions_are_named_by_their_place(folder: Path):
    tokenizer = load_tokenizer(folder)
    with pytest.raises(ValueError, match="one string, expected a list"):
        tokenizer("a red circle")
    with pytest.raises(InputError, match="caption 1 is a NoneType, expected a string"):
        tokenizer(["a", None])
    with pytest.raises(InputError, match=r"caption 2 is not valid Unicode .*at 1"):
        tokenizer(["a", "b", "c\ud800"])


def test_missing_and_foreign_files_are_named(folder: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        InputError, match=r"has no tokenizer; put the model's tokenizer\.json there, or its vocab\.json and merges"
    ):
        load_tokenizer(tmp_path / "empty")
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match="has no context length"):
        load_tokenizer(folder)
    text = {"vocab_size": 530, "eos_token_id": 529}
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "text_config": text}))
    with pytest.raises(InputError, match=r"has \d+ tokens, but the model's vocab_size is 530"):
        load_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(InputError, match=r"ends captions with id .* eos_token_id is 49407"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="can't be read"):
        load_tokenizer(folder)


def test_a_tokenizer_that_is_not_clips_is_refused(folder: Path):
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "<|endoftext|>": 2}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(InputError, match=r"not CLIP's: it has no token '<\|startoftext\|>'"):
        load_tokenizer(folder)


@pytest.fixture
def no_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip's convention without what ftfy repairs."""
    monkeypatch.setitem(sys.modules, "ftfy", types.SimpleNamespace(fix_text=str))


@pytest.mark.parametrize("files", [["tokenizer.json"], ["vocab.json", "merges.txt"]])
def test_ids_are_those_of_open_clip(shared, files: list[str], tmp_path: Path):

    source = shared("golden/clip_tokenizer")
    for name in files:
        shutil.copyfile(source / name, tmp_path / name)
    content = {"model_cfg": {"embed_dim": 512, "vision_cfg": {"patch_size": 32}, "text_cfg": {}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    expected = json.loads((source / "expected.json").read_text())
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.context_length, tokenizer.vocab_size, tokenizer.eos_token_id) == (77, 49408, 49407)
    np.testing.assert_array_equal(tokenizer(expected["captions"]), expected["open_clip"])


def test_open_clips_convention_in_a_vocabulary_of_ones_own(folder: Path, no_repair: None):
    ours, theirs = load_tokenizer(folder), load_tokenizer(folder, convention="open_clip")
    end, captions = ours.eos_token_id, ["a red circle", "A  RED\ncircle isn't", ""]
    rows = theirs(captions)
    np.testing.assert_array_equal(np.where(np.cumsum(rows == end, 1) > 0, end, rows), ours(captions))
    assert rows[2].tolist() == [end - 1, end] + [0] * 14
    long = theirs(["a red circle " * 20])[0]
    assert long[-1] == end
    assert end not in long[:-1]
    np.testing.assert_array_equal(theirs(["a &amp;lt; b"]), theirs(["a < b"]))
    special = theirs(["a <start_of_text>red<END_OF_TEXT>"])[0].tolist()
    words = theirs(["a red"])[0].tolist()
    assert special[:7] == [*words[:2], end - 1, *words[2:3], end, end, 0]
    assert (theirs(["<|endoftext|> a"])[0] == end).sum() == 1
    assert theirs([]).shape == (0, 16)


def test_what_open_clips_convention_lacks_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(InputError, match="package ftfy to repair captions: pip install ftfy"):
        load_tokenizer(folder, convention="open_clip")
    text = {"hf_tokenizer_name": "bert-base-uncased", "tokenizer_kwargs": {"strip_sep_token": True}}
    content = {"model_cfg": {"embed_dim": 512, "vision_cfg": {"patch_size": 32}, "text_cfg": text}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    with pytest.raises(
        InputError, match=r"settings of the tokenizer: text_cfg\.tokenizer_kwargs\.strip_sep_token True"
    ):
        load_tokenizer(folder)


@pytest.fixture
def siglip(golden: Path, tmp_path: Path) -> Path:
    """The folder of a SigLIP model with a tokenizer of whole words."""
    import tokenizers
    import transformers

    words = {"<unk>": 0, "</s>": 1, "a": 2, "red": 3, "circle": 4}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    ends = tokenizers.processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    backend.post_processor = ends
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", pad_token="</s>"
    )
    fast.save_pretrained(tmp_path)
    shutil.copyfile(golden / "models" / "hf_siglip" / "config.json", tmp_path / "config.json")
    return tmp_path


def test_siglips_tokenizer_is_read_by_transformers(siglip: Path):
    tokenizer = load_tokenizer(siglip)
    assert (tokenizer.context_length, tokenizer.vocab_size, tokenizer.eos_token_id) == (12, 5, 1)
    rows = tokenizer(["a red circle", "a " * 20, ""])
    assert rows.dtype == np.int32
    assert rows.tolist() == [[2, 3, 4] + [1] * 9, [2] * 11 + [1], [1] * 12]
    assert tokenizer([]).shape == (0, 12)


def test_what_siglips_tokenizer_lacks_is_named(siglip: Path, monkeypatch: pytest.MonkeyPatch):
    config = json.loads((siglip / "config.json").read_text())
    config["text_config"]["vocab_size"] = 4
    (siglip / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="has 5 tokens, but the model's vocab_size is 4"):
        load_tokenizer(siglip)
    (siglip / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"the tokenizer in .* can't be read"):
        load_tokenizer(siglip)
    (siglip / "tokenizer.json").rename(siglip / "sentencepiece.bpe.model")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(InputError, match="needs the package sentencepiece: pip install transformers sentencepiece pro"):
        load_tokenizer(siglip)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match="package transformers: pip install transformers"):
        load_tokenizer(siglip)
    for name in ("sentencepiece.bpe.model", "tokenizer_config.json"):
        (siglip / name).unlink()
    with pytest.raises(
        InputError, match=r"has no tokenizer; put .*tokenizer_config\.json there, and .* or spiece\.model"
    ):
        load_tokenizer(siglip)
