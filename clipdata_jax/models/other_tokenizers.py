"""Captions as open_clip reads them, and as the tokenizers that transformers knows do."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from clipdata_jax.errors import InputError
from clipdata_jax.models.files import SENTENCES, TOKENIZER, TOKENIZER_CONFIG
from clipdata_jax.models.tokenizer import END, START, WORDS, Tokenizer

# What open_clip calls the two special tokens, and so reads as them where they stand in a caption.
_SPECIAL = {"<start_of_text>": START, "<end_of_text>": END}


class OpenClipTokenizer(Tokenizer):
    """CLIP's tokens by open_clip's convention: captions are repaired and unescaped first, padding is 0.

    Args:
      vocabulary: token to id, CLIP's start and end tokens included.
      merges: pairs of tokens, the first to be joined first.
      context_length: tokens in a row, the start and the end token included.

    Raises:
      InputError: the package ftfy is missing.
    """

    def __init__(
        self, vocabulary: dict[str, int], merges: list[tuple[str, str]], *, context_length: int
    ) -> None:
        import tokenizers
        from tokenizers import Regex, models, pre_tokenizers

        try:
            import ftfy
        except ImportError as error:
            raise InputError(
                "captions of open_clip's models are repaired by the package ftfy, which is missing: "
                "pip install ftfy"
            ) from error
        self.context_length, self.vocab_size = context_length, len(vocabulary)
        self._start, self.eos_token_id = vocabulary[START], vocabulary[END]
        self._special = {text: vocabulary[token] for text, token in _SPECIAL.items()}
        # Contractions are matched without regard to case, in which the long s is an s; the rest is lower-case.
        pattern = "|".join([*_SPECIAL, WORDS.replace("'s", "'[sſ]", 1)])
        self._words = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
        self._repair = ftfy.fix_text
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

    def _clean(self, caption: str) -> str:
        # Entities are often escaped twice on the web.
        text = html.unescape(html.unescape(self._repair(caption)))
        return " ".join(text.split()).lower()

    def _with_special(self, text: str) -> list[int]:
        ids: list[int] = []
        for word, _ in self._words.pre_tokenize_str(text):
            ids += [self._special[word]] if word in self._special else self._backend.encode(word).ids
        return ids


class AutoTokenizer(Tokenizer):
    """The tokenizer of a folder as transformers' AutoTokenizer reads it, rows padded to the context length.

    Args:
      folder: the checkpoint.
      context_length: tokens in a row.

    Raises:
      InputError: transformers, a package that the tokenizer needs, or the tokenizer's files are missing.
    """

    def __init__(self, folder: Path, *, context_length: int) -> None:
        files = (TOKENIZER, SENTENCES, TOKENIZER_CONFIG)
        if not any((folder / name).is_file() for name in files):
            raise InputError(
                f"{folder} has no tokenizer: put {TOKENIZER_CONFIG}, with {TOKENIZER} or {SENTENCES}, of the "
                "model there"
            )
        try:
            import transformers
        except ImportError as error:
            raise InputError(
                f"the tokenizer in {folder} is not CLIP's and is read by the package transformers, which is "
                "missing: pip install transformers sentencepiece"
            ) from error
        try:
            self._backend = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # transformers raises nearly anything on broken files and missing packages
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"the tokenizer in {folder} can't be read: {reason}") from error
        if self._backend.pad_token_id is None:
            raise InputError(f"the tokenizer in {folder} has no pad_token: copy the model's own files")
        self.context_length, self.vocab_size = context_length, len(self._backend)
        self.eos_token_id = self._backend.eos_token_id

    def _rows(self, captions: list[str]) -> Sequence[Sequence[int]]:
        if not captions:
            return []
        return self._backend(captions, padding="max_length", truncation=True, max_length=self.context_length)[
            "input_ids"
        ]
