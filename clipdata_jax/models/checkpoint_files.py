"""The files of a checkpoint folder: their names, finding the folder, reading and replacing them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import textwrap
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipdata_jax.errors import InputError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
TOKENIZER = "tokenizer.json"
VOCABULARY, MERGES = "vocab.json", "merges.txt"
TOKENIZER_CONFIG, SPECIAL_TOKENS = "tokenizer_config.json", "special_tokens_map.json"

SENTENCES = "spiece.model"

SETTINGS = (CONFIG, OPEN_CLIP_CONFIG, PREPROCESSOR, PROCESSOR)
_TOKENS = (TOKENIZER, VOCABULARY, MERGES, TOKENIZER_CONFIG, SPECIAL_TOKENS, SENTENCES)
# The form of a repository's name on the Hugging Face hub, "owner/name".
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def checkpoint_folder(path: str | Path) -> Path:
    """The folder of a checkpoint: `path` itself, or a download if it reads "owner/name" and is no folder.

    Args:
      path: a folder, or the name of a repository on the Hugging Face hub; a cached copy needs no network.

    Raises:
      InputError: there is no such folder, and nothing to download.
    """
    folder = Path(path)
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise InputError(f"{path} is a file, expected a folder with {CONFIG} and {WEIGHTS}: give its folder")
    if isinstance(path, str) and _HUB_NAME.fullmatch(path):
        return _download(path)
    raise InputError(f"there is no folder {path}; put {CONFIG}, {WEIGHTS} and the tokenizer's files there")


def read_json(file: Path) -> dict[str, Any]:
    """A file that holds one JSON object.

    Raises:
      InputError: it can't be read, or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} can't be read as JSON ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} holds a JSON {type(content).__name__}, expected an object; copy it again")
    return content


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Writes JSON as transformers does (sorted, indented by two), whole or not at all."""
    with replace_file(file) as aside:
        aside.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextlib.contextmanager
def replace_file(file: Path) -> Iterator[Path]:
    """Gives a path beside `file` to write to, which replaces it if the block ends well, else is removed."""
    # Containers that share a volume may share a process id too.
    aside = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
    try:
        aside.touch()
        mode = aside.stat().st_mode
        yield aside
        # Some writers put a file in its place that only its owner may read; the one made here obeys the umask.
        aside.chmod(mode)
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=[*SETTINGS, *_TOKENS]))
        # Repositories often hold the weights in several formats, gigabytes each: fetch one.
        for config, weights in ((CONFIG, WEIGHTS), (OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS)):
            if (folder / config).is_file():
                stem = weights.removesuffix(".safetensors")
                patterns = [weights, f"{weights}.index.json", f"{stem}-*-of-*.safetensors"]
                folder = Path(snapshot_download(name, allow_patterns=patterns))
                if any(folder.glob(f"{stem}*.safetensors")):
                    return folder
    except Exception as error:  # the hub's client raises its own, its transport's and the system's errors
        reason = textwrap.shorten(str(error), 120, placeholder=" ...")
        raise InputError(
            f"{name} is no folder here and can't be fetched from the Hugging Face hub "
            f"({type(error).__name__}: {reason}); check the name and the network, or "
            f"make a folder of {CONFIG}, {WEIGHTS} and the tokenizer's files, and give its path"
        ) from error
    if not any((folder / config).is_file() for config in (CONFIG, OPEN_CLIP_CONFIG)):
        return folder  # a tokenizer alone, perhaps
    raise InputError(
        f"{name} has no weights in safetensors' format on the Hugging Face hub, and pickles are never loaded: where you"
        f" trust them, hf download {name} --local-dir FOLDER, then give FOLDER, which says how to convert them"
    )
