"""Training a byte-level BPE vocabulary of CLIP's kind."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from clipdata_jax.models.checkpoint_files import (
    MERGES,
    TOKENIZER,
    TOKENIZER_CONFIG,
    VOCABULARY,
    replace_file,
    write_json,
)
from clipdata_jax.models.tokenizer import END, START, Tokenizer, clip_backend
from clipdata_jax.models.tokenizer_files import load_tokenizer

_WORD_END = "</w>"
_BASE = 2 * 256 + 2


def train_tokenizer(captions: Iterable[str], folder: str | Path, *, vocab_size: int, context_length: int) -> Tokenizer:
    """Learns a vocabulary from captions and writes it as CLIP's tokenizer files.

    Ids are in CLIP's order: 256 bytes, 256 bytes that end a word, the merges, the start and the end token. The
    same captions in any order give the same files. Byte-pair encoding of Sennrich et al. 2016, arXiv:1508.07909.

    Args:
      captions: strings, read once.
      folder: created if missing; gets `tokenizer.json`, `vocab.json`, `merges.txt` and `tokenizer_config.json`.
      vocab_size: number of ids, at least 514. A small corpus gives fewer: see `Tokenizer.vocab_size`.
      context_length: length of a row, at least 3, the start and the end token included.

    Returns:
      The tokenizer, as `load_tokenizer(folder)` reads it.

    Raises:
      ValueError: `vocab_size` below 514 or `context_length` below 3.
      InputError: the folder holds a model that these tokens don't fit.

    >>> from clipdata_jax.models import train_tokenizer
    >>> tokenizer = train_tokenizer(["a red circle", "a blue circle"], "tokenizer", vocab_size=520, context_length=6)
    >>> tokenizer(["red"])
    array([[518,  81,  68, 323, 519, 519]], dtype=int32)
    """
    if vocab_size < _BASE:
        raise ValueError(f"vocab_size is {vocab_size}, expected at least {_BASE}: every byte twice, start and end")
    if context_length < 3:
        raise ValueError(f"context_length is {context_length}, expected at least 3: start, one token, end")
    vocabulary, merges = _clip_order(_learn_merges(captions, vocab_size), vocab_size)
    _write(Path(folder), vocabulary, merges, context_length)
    return load_tokenizer(folder)


def _write(folder: Path, vocabulary: dict[str, int], merges: list[tuple[str, str]], context_length: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with replace_file(folder / TOKENIZER) as temporary:
        clip_backend(vocabulary, merges).save(str(temporary))
    with replace_file(folder / MERGES) as temporary:
        lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(folder / VOCABULARY, vocabulary)
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": context_length, "bos_token": START}
    ends = dict.fromkeys(("eos_token", "pad_token", "unk_token"), END)
    write_json(folder / TOKENIZER_CONFIG, settings | ends)


def _byte_letters() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _learn_merges(captions: Iterable[str], vocab_size: int) -> list[tuple[str, str]]:
    import json

    from tokenizers import trainers

    letters = _byte_letters()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        initial_alphabet=letters,
        end_of_word_suffix=_WORD_END,
        continuing_subword_prefix="",
        # Ties go by id, and letters that end a word would get theirs in the random order of a hash table.
        special_tokens=[letter + _WORD_END for letter in letters],
    )
    backend = clip_backend({END: 0}, [])
    backend.train_from_iterator(captions, trainer)
    return [(left, right) for left, right in json.loads(backend.to_str())["model"]["merges"]]


def _clip_order(merges: list[tuple[str, str]], vocab_size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    letters = _byte_letters()
    tokens = dict.fromkeys([*letters, *(letter + _WORD_END for letter in letters)])
    kept = []
    for left, right in merges:
        if left + right not in tokens and len(tokens) + 2 >= vocab_size:
            break
        tokens[left + right] = None
        kept.append((left, right))
    return {token: index for index, token in enumerate([*tokens, START, END])}, kept
