"""Captions to CLIP's tokens, from the files that lie beside a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int32

from clipdata_jax.errors import InputError
from clipdata_jax.models.clip_config import TextConfig
from clipdata_jax.models.files import (
    CONFIG,
    MERGES,
    SPECIAL_TOKENS,
    TOKENIZER,
    TOKENIZER_CONFIG,
    VOCABULARY,
    checkpoint_folder,
    read_json,
)
from clipdata_jax.models.layout import Convention, find_layout
from clipdata_jax.models.open_clip_config import open_clip_tokenizer_options
from clipdata_jax.models.transformers_config import is_siglip

if TYPE_CHECKING:
    import tokenizers

START, END = "<|startoftext|>", "<|endoftext|>"
# CLIP's words: the parts of English contractions, letters, single digits, what is left but white space.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Tokenizer:
    """Captions to rows of tokens: start token, lower-case byte-pair tokens, end token, padding.

    Made by `load_tokenizer`. These rows are those of transformers' CLIP tokenizer: a caption that is too long
    is cut and keeps its end token, and a special token that stands in a caption is read as that token.
    """

    _backend: Any

    def __init__(self, backend: tokenizers.Tokenizer, *, context_length: int, pad_token: str = END) -> None:
        self.context_length = context_length
        """Tokens in a row, the start and the end token included."""
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        """Number of ids."""
        self.eos_token_id = _id(backend, END)
        """Id of the end token."""
        self._backend = backend
        backend.enable_truncation(context_length)
        backend.enable_padding(length=context_length, pad_id=_id(backend, pad_token), pad_token=pad_token)

    def __call__(self, captions: Iterable[str]) -> Int32[np.ndarray, "n context_length"]:
        """Makes the model's input of captions.

        Args:
          captions: n strings, any of them may be empty.

        Returns:
          Tokens, int32, on the host.

        Raises:
          InputError: one of them, named by its place, is no string or holds half a surrogate pair.
          ValueError: a single string instead of several.
        """
        if isinstance(captions, str):
            raise ValueError("captions is one string, expected a list of strings: give [caption]")
        captions = list(captions)
        for row, caption in enumerate(captions):
            if not isinstance(caption, str):
                raise InputError(f"caption {row} is a {type(caption).__name__}, expected a string")
            try:
                caption.encode()
            except UnicodeEncodeError as error:
                raise InputError(
                    f"caption {row} is no Unicode text ({error.reason} at {error.start})"
                ) from error
        return np.asarray(self._rows(captions), np.int32).reshape(len(captions), self.context_length)

    def _rows(self, captions: list[str]) -> Sequence[Sequence[int]]:
        return [encoding.ids for encoding in self._backend.encode_batch(captions)]


def load_tokenizer(path: str | Path, *, convention: Convention | None = None) -> Tokenizer:
    """Reads a tokenizer's files, in SigLIP's case by transformers' AutoTokenizer.

    CLIP's are `tokenizer.json`, or the older `vocab.json` and `merges.txt`.

    Args:
      path: as for `load_clip`. The context length is the model's, or, in a folder without a model, that of
        `tokenizer_config.json`.
      convention: whose reading of captions: transformers', or open_clip's, which first repairs mojibake and
        resolves html entities, reads CLIP's own special tokens as plain text, and pads with 0. Default that
        of the checkpoint's layout. SigLIP's tokenizer has one alone.

    Raises:
      InputError: a file or a package is missing, a file is broken, or the tokens are not the model's.
    """
    from clipdata_jax.models import other_tokenizers

    folder = checkpoint_folder(path)
    layout = find_layout(folder)
    text = layout.config().text if layout else None
    if layout is not None and (options := open_clip_tokenizer_options(layout.content)):
        raise InputError(
            f"{layout.config_file} asks for {', '.join(options)}: only CLIP's own tokenizer is here"
        )
    tokenizer: Tokenizer
    if layout is not None and text is not None and is_siglip(layout.config()):
        tokenizer = other_tokenizers.AutoTokenizer(folder, context_length=text.context_length)
    elif (convention or (layout.kind if layout else "transformers")) == "open_clip":
        length = _context_length(folder, text, _settings(folder))
        tokenizer = other_tokenizers.OpenClipTokenizer(*_vocabulary(folder), context_length=length)
    else:
        tokenizer = _load_clip_tokenizer(folder, text)
    if text is not None:
        _check_same_model(folder, tokenizer, text)
    return tokenizer


def _load_clip_tokenizer(folder: Path, text: TextConfig | None) -> Tokenizer:
    backend, settings = _read_backend(folder), _settings(folder)
    _check_clips(folder, {token: backend.token_to_id(token) for token in (START, END)})
    return Tokenizer(
        backend,
        context_length=_context_length(folder, text, settings),
        pad_token=_pad_token(folder, settings, backend),
    )


def clip_backend(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    """CLIP's byte-level BPE over a vocabulary, with its way of cutting captions into words.

    Args:
      vocabulary: token to id, the start and end tokens included.
      merges: pairs of tokens, the first to be joined first.
    """
    import tokenizers
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            unk_token=END,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    pattern = rf"<\|startoftext\|>|<\|endoftext\|>|{WORDS}"
    words = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    if START in vocabulary and END in vocabulary:
        backend.add_special_tokens([tokenizers.AddedToken(token, special=True) for token in (START, END)])
        backend.post_processor = processors.RobertaProcessing(
            (END, vocabulary[END]), (START, vocabulary[START]), trim_offsets=False, add_prefix_space=False
        )
    return backend


def _id(backend: tokenizers.Tokenizer, token: str) -> int:
    found = backend.token_to_id(token)
    if found is None:
        raise ValueError(f"the tokenizer has no token {token!r}")
    return found


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
        raise InputError(
            f"the tokenizer's files in {folder} can't be read ({error}); copy them again"
        ) from error
    raise InputError(
        f"{folder} has no tokenizer: put {TOKENIZER}, or {VOCABULARY} and {MERGES}, of the model there"
    )


def _read_merges(file: Path) -> list[tuple[str, str]]:
    lines = file.read_text(encoding="utf-8").split("\n")
    merges = []
    for line in lines[1:] if lines[0].startswith("#version") else lines:
        if line:
            left, right = line.split(" ")
            merges.append((left, right))
    return merges


def _vocabulary(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's vocabulary and merges, whichever files hold them."""
    try:
        if (folder / VOCABULARY).is_file() and (folder / MERGES).is_file():
            vocabulary, merges = read_json(folder / VOCABULARY), _read_merges(folder / MERGES)
        else:
            _read_backend(folder)  # refuses what is missing or broken
            model = read_json(folder / TOKENIZER)["model"]
            vocabulary = model["vocab"]
            pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
            merges = [(left, right) for left, right in pairs]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"the tokenizer's files in {folder} hold no byte-pair vocabulary ({error}): copy the model's"
        ) from error
    _check_clips(folder, vocabulary)
    return vocabulary, merges


def _check_clips(folder: Path, vocabulary: Mapping[str, int | None]) -> None:
    for token in (START, END):
        if vocabulary.get(token) is None:
            raise InputError(
                f"the tokenizer in {folder} is not CLIP's, it has no token {token!r}: copy the model's"
            )


def _settings(folder: Path) -> dict[str, Any]:
    return read_json(folder / TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else {}


def _context_length(folder: Path, text: TextConfig | None, settings: dict[str, Any]) -> int:
    if text is not None:
        return text.context_length
    longest = settings.get("model_max_length")
    # transformers writes 1e30 for "unknown".
    if isinstance(longest, int) and 2 <= longest <= 1 << 20:
        return longest
    raise InputError(
        f"{folder} says no context length: put the model's {CONFIG} beside the tokenizer's files"
    )


def _pad_token(folder: Path, settings: dict[str, Any], backend: tokenizers.Tokenizer) -> str:
    if "pad_token" not in settings and (folder / SPECIAL_TOKENS).is_file():
        settings = read_json(folder / SPECIAL_TOKENS)
    token = settings.get("pad_token", END)
    token = token.get("content") if isinstance(token, dict) else token
    if not isinstance(token, str) or backend.token_to_id(token) is None:
        raise InputError(f"the tokenizer in {folder} has pad_token {token!r}, which is none of its tokens")
    return token


def _check_same_model(folder: Path, tokenizer: Tokenizer, text: TextConfig) -> None:
    if tokenizer.vocab_size > text.vocab_size:
        raise InputError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} tokens, but the model's vocab_size is "
            f"{text.vocab_size}: copy the model's own tokenizer files"
        )
    if text.pool == "end" and text.eos_token_id not in (None, tokenizer.eos_token_id):
        raise InputError(
            f"the tokenizer in {folder} ends captions with id {tokenizer.eos_token_id}, but the model's "
            f"eos_token_id is {text.eos_token_id}: copy the model's own tokenizer files"
        )
