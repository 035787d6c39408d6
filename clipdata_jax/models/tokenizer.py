"""Captions to rows of tokens, as CLIP, open_clip and SigLIP read them."""

from __future__ import annotations

import html
import string
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int32

from clipdata_jax.errors import InputError
from clipdata_jax.models.checkpoint_files import SENTENCES, TOKENIZER, TOKENIZER_CONFIG
from clipdata_jax.models.open_clip_config import Cleaning

if TYPE_CHECKING:
    import tokenizers

START, END = "<|startoftext|>", "<|endoftext|>"
# CLIP's words: the parts of English contractions, letters, single digits, what is left but white space.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
# open_clip's names of the two special tokens, which it also recognises in captions.
_SPECIAL = {"<start_of_text>": START, "<end_of_text>": END}


class Tokenizer:
    """Converts captions to rows of tokens: start token, lower-case byte-pair tokens, end token, padding.

    Returned by `load_tokenizer`. Rows equal those of transformers' CLIP tokenizer: a caption that is too long is cut
    and keeps its end token, and a special token in a caption is read as that token.
    """

    _backend: Any

    def __init__(self, backend: tokenizers.Tokenizer, *, context_length: int, pad_token: str = END) -> None:
        self.context_length = context_length
        """Length of a row, the start and the end token included."""
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        """Number of ids."""
        self.eos_token_id = _id(backend, END)
        """Id of the end token."""
        self._backend = backend
        backend.enable_truncation(context_length)
        backend.enable_padding(length=context_length, pad_id=_id(backend, pad_token), pad_token=pad_token)

    def __call__(self, captions: Iterable[str]) -> Int32[np.ndarray, "n context_length"]:
        """Converts captions to the model's input.

        Args:
          captions: n strings; they may be empty.

        Returns:
          Tokens, shape (n, context_length), int32, on the host.

        Raises:
          InputError: a caption, named by its index, is not a string or holds half a surrogate pair.
          ValueError: a single string instead of several.
        """
        if isinstance(captions, str):
            raise ValueError("captions is one string, expected a list of strings; give [caption]")
        captions = list(captions)
        for row, caption in enumerate(captions):
            if not isinstance(caption, str):
                raise InputError(f"caption {row} is a {type(caption).__name__}, expected a string")
            try:
                caption.encode()
            except UnicodeEncodeError as error:
                raise InputError(f"caption {row} is not valid Unicode ({error.reason} at {error.start})") from error
        return np.asarray(self._rows(captions), np.int32).reshape(len(captions), self.context_length)

    def _rows(self, captions: list[str]) -> Sequence[Sequence[int]]:
        return [encoding.ids for encoding in self._backend.encode_batch(captions)]


class OpenClipTokenizer(Tokenizer):
    """Converts captions to CLIP's tokens as open_clip does: repaired and unescaped first, padded with 0.

    Args:
      vocabulary: token to id, CLIP's start and end tokens included.
      merges: pairs of tokens, in the order of joining.
      context_length: length of a row, the start and the end token included.

    Raises:
      InputError: the package ftfy is missing.
    """

    def __init__(self, vocabulary: dict[str, int], merges: list[tuple[str, str]], *, context_length: int) -> None:
        import tokenizers
        from tokenizers import Regex, models, pre_tokenizers

        self._clean = caption_cleaner("lower")
        self.context_length, self.vocab_size = context_length, len(vocabulary)
        self._start, self.eos_token_id = vocabulary[START], vocabulary[END]
        self._special = {text: vocabulary[token] for text, token in _SPECIAL.items()}
        # Contractions are matched ignoring case, where the long s is an s; all else is lower-case already.
        pattern = "|".join([*_SPECIAL, WORDS.replace("'s", "'[sſ]", 1)])
        self._words = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
        self._backend = tokenizers.Tokenizer(
            models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", unk_token=END)
        )
        self._backend.pre_tokenizer = pre_tokenizers.Sequence(
            [self._words, pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )

    def _rows(self, captions: list[str]) -> Sequence[Sequence[int]]:
        clean = [self._clean(caption) for caption in captions]
        rows = []
        for text, encoding in zip(clean, self._backend.encode_batch(clean), strict=True):
            ids = encoding.ids
            if any(special in text for special in self._special):
                ids = self._with_special(text)
            ids = [self._start, *ids[: self.context_length - 2], self.eos_token_id]
            rows.append(ids + [0] * (self.context_length - len(ids)))
        return rows

    def _with_special(self, text: str) -> list[int]:
        ids: list[int] = []
        for word, _ in self._words.pre_tokenize_str(text):
            ids += [self._special[word]] if word in self._special else self._backend.encode(word).ids
        return ids


class TransformersTokenizer(Tokenizer):
    """A tokenizer read by transformers' AutoTokenizer, such as SigLIP's; rows are padded to the context length.

    Args:
      folder: the checkpoint.
      context_length: length of a row.
      clean: how open_clip's models clean captions first; None for transformers' models, which don't.
      lower_gemma: whether captions are lower-cased if the tokenizer is Gemma's, which leaves their case. SigLIP 2 was
        trained so, but its published files name Gemma's class instead of its own, `Siglip2Tokenizer`.

    Raises:
      InputError: transformers, a package that the tokenizer needs, or the tokenizer's files are missing.
    """

    def __init__(
        self, folder: Path, *, context_length: int, clean: Cleaning | None = None, lower_gemma: bool = False
    ) -> None:
        files = (TOKENIZER, *SENTENCES, TOKENIZER_CONFIG)
        if not any((folder / name).is_file() for name in files):
            raise InputError(
                f"{folder} has no tokenizer; put the model's {TOKENIZER_CONFIG} there, and {TOKENIZER} or spiece.model"
            )
        try:
            import transformers

            if not (folder / TOKENIZER).is_file() and any((folder / name).is_file() for name in SENTENCES):
                import sentencepiece  # noqa: F401, I001
                import google.protobuf  # noqa: F401
        except ImportError as error:
            raise InputError(
                f"the tokenizer in {folder} needs the package {error.name}: pip install transformers sentencepiece"
                " protobuf"
            ) from error
        told = transformers.logging.get_verbosity()
        try:
            # Else it warns of token ids in the model's config that nobody reads.
            transformers.logging.set_verbosity_error()
            self._backend = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # transformers raises nearly anything on broken files and missing packages
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"the tokenizer in {folder} can't be read: {reason}") from error
        finally:
            transformers.logging.set_verbosity(told)
        if self._backend.pad_token_id is None:
            raise InputError(f"the tokenizer in {folder} has no pad_token; copy the model's own files")
        if lower_gemma and type(self._backend).__name__.startswith("Gemma"):
            from tokenizers import normalizers

            words = self._backend.backend_tokenizer
            words.normalizer = normalizers.Sequence([normalizers.Lowercase(), words.normalizer])
        self._clean = None if clean is None else caption_cleaner(clean)
        self.context_length, self.vocab_size = context_length, len(self._backend)
        self.eos_token_id = self._backend.eos_token_id

    def _rows(self, captions: list[str]) -> Sequence[Sequence[int]]:
        if not captions:
            return []
        if self._clean is not None:
            captions = [self._clean(caption) for caption in captions]
        return self._backend(captions, padding="max_length", truncation=True, max_length=self.context_length)[
            "input_ids"
        ]


def caption_cleaner(kind: Cleaning) -> Callable[[str], str]:
    """Makes the function with which open_clip cleans captions.

    It repairs mojibake, resolves HTML entities and makes white space single spaces. "lower" lower-cases too;
    "canonicalize" also takes out ASCII punctuation, of which the underscore becomes a space.

    Raises:
      InputError: the package ftfy is missing.
    """
    try:
        import ftfy
    except ImportError as error:
        raise InputError("open_clip's models need the package ftfy to repair captions: pip install ftfy") from error
    removed = str.maketrans({"_": " "} | dict.fromkeys(string.punctuation.replace("_", "")))

    def clean(caption: str) -> str:
        # Entities are often escaped twice on the web.
        text = html.unescape(html.unescape(ftfy.fix_text(caption)))
        text = " ".join((text.translate(removed) if kind == "canonicalize" else text).split())
        return text if kind == "whitespace" else text.lower()

    return clean


def clip_backend(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    """Builds CLIP's byte-level BPE over a vocabulary, with its splitting of captions into words.

    Args:
      vocabulary: token to id, the start and end tokens included.
      merges: pairs of tokens, in the order of joining.
    """
    import tokenizers
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END
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
