"""Loading a checkpoint's tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipdata_jax.errors import InputError
from clipdata_jax.models.checkpoint_files import (
    CONFIG,
    MERGES,
    SPECIAL_TOKENS,
    TOKENIZER,
    TOKENIZER_CONFIG,
    VOCABULARY,
    checkpoint_folder,
    read_json,
)
from clipdata_jax.models.checkpoint_layout import Convention, find_layout
from clipdata_jax.models.clip_config import TextConfig
from clipdata_jax.models.tokenizer import END, START, OpenClipTokenizer, Tokenizer, TransformersTokenizer, clip_backend

if TYPE_CHECKING:
    import tokenizers


def load_tokenizer(path: str | Path, *, convention: Convention | None = None) -> Tokenizer:
    """Reads the tokenizer of a checkpoint.

    CLIP's files are `tokenizer.json`, or the older `vocab.json` and `merges.txt`; SigLIP's, MetaCLIP 2's and those
    that open_clip's config names under `hf_tokenizer_name` are read by transformers' AutoTokenizer.

    Args:
      path: as for `load_clip`. The context length is the model's or, in a folder without a model, that of
        `tokenizer_config.json`.
      convention: "transformers", or "open_clip", which repairs mojibake and resolves HTML entities first, reads
        CLIP's own special tokens as plain text, and pads with 0. Default: the checkpoint's layout. Other tokenizers
        than CLIP's have only one.

    Returns:
      A callable from n captions to int32 tokens of shape (n, context_length).

    Raises:
      InputError: a file or a package is missing, a file is broken, the tokens are not the model's, or the model
        has no text tower.

    >>> from importlib.resources import files
    >>> from clipdata_jax import load_tokenizer
    >>> folder = files("clipdata_jax") / "demo" / "model"
    >>> load_tokenizer(folder)(["a red circle", ""]).shape
    (2, 32)
    """
    folder = checkpoint_folder(path)
    layout = find_layout(folder)
    text = layout.config().text if layout else None
    if layout is not None and text is None:
        raise InputError(
            f"{layout.config_file}: {layout.content['model_type']!r} has no text tower; take a whole model, or embed"
            " with --images-only"
        )
    tokenizer: Tokenizer
    clean = layout.cleaning() if layout else None
    if layout and text and (clean or layout.family not in ("clip", "open_clip")):
        tokenizer = TransformersTokenizer(
            folder, context_length=text.context_length, clean=clean, lower_gemma=layout.family == "siglip"
        )
    elif (convention or (layout.kind if layout else "transformers")) == "open_clip":
        length = _context_length(folder, text, _settings(folder))
        tokenizer = OpenClipTokenizer(*_vocabulary(folder), context_length=length)
    else:
        tokenizer = _load_clip_tokenizer(folder, text)
    if text is not None:
        _check_same_model(folder, tokenizer, text)
    return tokenizer


def _load_clip_tokenizer(folder: Path, text: TextConfig | None) -> Tokenizer:
    backend, settings = _read_backend(folder), _settings(folder)
    _check_clips(folder, {token: backend.token_to_id(token) for token in (START, END)})
    return Tokenizer(
        backend, context_length=_context_length(folder, text, settings), pad_token=_pad_token(folder, settings, backend)
    )


def _read_backend(folder: Path) -> tokenizers.Tokenizer:
    import tokenizers

    try:
        if (folder / TOKENIZER).is_file():
            return tokenizers.Tokenizer.from_file(str(folder / TOKENIZER))
        if (folder / VOCABULARY).is_file() and (folder / MERGES).is_file():
            return clip_backend(read_json(folder / VOCABULARY), _read_merges(folder / MERGES))
    except InputError:
        raise
    except Exception as error:  # the tokenizers library raises plain Exception
        raise InputError(f"the tokenizer's files in {folder} can't be read ({error}); copy them again") from error
    raise InputError(f"{folder} has no tokenizer; put the model's {TOKENIZER} there, or its {VOCABULARY} and {MERGES}")


def _read_merges(file: Path) -> list[tuple[str, str]]:
    lines = file.read_text(encoding="utf-8").split("\n")
    merges = []
    for line in lines[1:] if lines[0].startswith("#version") else lines:
        if line:
            left, right = line.split(" ")
            merges.append((left, right))
    return merges


def _vocabulary(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Reads CLIP's vocabulary and merges, whichever files hold them."""
    try:
        if (folder / VOCABULARY).is_file() and (folder / MERGES).is_file():
            vocabulary, merges = read_json(folder / VOCABULARY), _read_merges(folder / MERGES)
        else:
            _read_backend(folder)  # raises where a file is missing or broken
            model = read_json(folder / TOKENIZER)["model"]
            vocabulary = model["vocab"]
            pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
            merges = [(left, right) for left, right in pairs]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"the tokenizer's files in {folder} have no byte-pair vocabulary ({error}); copy the model's"
        ) from error
    _check_clips(folder, vocabulary)
    return vocabulary, merges


def _check_clips(folder: Path, vocabulary: Mapping[str, int | None]) -> None:
    for token in (START, END):
        if vocabulary.get(token) is None:
            raise InputError(f"the tokenizer in {folder} is not CLIP's: it has no token {token!r}; copy the model's")


def _settings(folder: Path) -> dict[str, Any]:
    return read_json(folder / TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else {}


def _context_length(folder: Path, text: TextConfig | None, settings: dict[str, Any]) -> int:
    if text is not None:
        return text.context_length
    longest = settings.get("model_max_length")
    # transformers writes 1e30 for "unknown".
    if isinstance(longest, int) and 2 <= longest <= 1 << 20:
        return longest
    raise InputError(f"{folder} has no context length; put the model's {CONFIG} there too")


def _pad_token(folder: Path, settings: dict[str, Any], backend: tokenizers.Tokenizer) -> str:
    if "pad_token" not in settings and (folder / SPECIAL_TOKENS).is_file():
        settings = read_json(folder / SPECIAL_TOKENS)
    token = settings.get("pad_token", END)
    token = token.get("content") if isinstance(token, dict) else token
    if not isinstance(token, str) or backend.token_to_id(token) is None:
        raise InputError(f"the tokenizer in {folder} has pad_token {token!r}, which is not one of its tokens")
    return token


def _check_same_model(folder: Path, tokenizer: Tokenizer, text: TextConfig) -> None:
    if tokenizer.vocab_size > text.vocab_size:
        raise InputError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} tokens, but the model's vocab_size is "
            f"{text.vocab_size}; copy the model's own tokenizer files"
        )
    if text.pool == "end" and text.eos_token_id not in (None, tokenizer.eos_token_id):
        raise InputError(
            f"the tokenizer in {folder} ends captions with id {tokenizer.eos_token_id}, but the model's "
            f"eos_token_id is {text.eos_token_id}; copy the model's own tokenizer files"
        )
