"""The files of a checkpoint folder: their names, downloads, reading JSON and replacing files."""

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
# sentencepiece's vocabularies, as SigLIP's, XLM-V's and Gemma's folders name them.
SENTENCES = ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model")

SETTINGS = (CONFIG, OPEN_CLIP_CONFIG, PREPROCESSOR, PROCESSOR)
_TOKENS = (TOKENIZER, VOCABULARY, MERGES, TOKENIZER_CONFIG, SPECIAL_TOKENS, *SENTENCES)
_HUB, _LOCAL = "hf-hub:", "local-dir:"  # open_clip's prefixes of names
# The form of a repository's name on the Hugging Face hub, "owner/name".
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def checkpoint_folder(path: str | Path) -> Path:
    """Returns the folder of a checkpoint: `path` itself, or a download if it is not a folder but "owner/name".

    Args:
      path: a folder (also of the hub's cache, `models--owner--name`), or the name of a repository on the Hugging
        Face hub; a cached copy needs no network. open_clip's prefixes `local-dir:` and `hf-hub:` say which.

    Raises:
      InputError: neither a folder nor a repository that can be downloaded.
    """
    name = str(path)
    if not name.startswith(_HUB):
        folder = Path(name.removeprefix(_LOCAL))
        if folder.is_dir():
            return _snapshot(folder)
        if folder.is_file():
            raise InputError(f"{path} is a file, expected a folder with {CONFIG} and {WEIGHTS}; give its folder")
    if isinstance(path, str) and _HUB_NAME.fullmatch(found := name.removeprefix(_HUB)):
        return _download(found)
    hint = (
        "" if "/" in name else "; a model of the Hugging Face hub is named owner/name, open_clip's names aren't known"
    )
    raise InputError(f"{path}: no such folder; expected a folder of {CONFIG}, {WEIGHTS} and a tokenizer{hint}")


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON file that holds one object.

    Raises:
      InputError: the file can't be read, or holds something else.
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
    with replace_file(file) as temporary:
        temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextlib.contextmanager
def replace_file(file: Path) -> Iterator[Path]:
    """Yields a temporary file to write, renamed to `file` if the block succeeds, else removed."""
    # Not named by the process id, which containers that share a volume may share too.
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        # Some writers replace it by a file that only its owner may read; the one created here obeys the umask.
        temporary.chmod(mode)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _snapshot(folder: Path) -> Path:
    """The checkpoint in a repository's folder in the hub's cache: what its main branch is, or the only snapshot."""
    snapshots, main = folder / "snapshots", folder / "refs" / "main"
    if (folder / CONFIG).is_file() or not snapshots.is_dir():
        return folder
    there = sorted(found for found in snapshots.iterdir() if found.is_dir())
    named = snapshots / main.read_text(encoding="utf-8").strip() if main.is_file() else None
    if named in there:
        return named
    if len(there) == 1:
        return there[0]
    raise InputError(f"{snapshots} has {len(there)} snapshots, expected one; give the folder of one of them")


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
            f"{name} is not a folder and can't be downloaded from the Hugging Face hub "
            f"({type(error).__name__}: {reason}); check the name and the network, or "
            f"give the path of a folder of {CONFIG}, {WEIGHTS} and a tokenizer"
        ) from error
    if not any((folder / config).is_file() for config in (CONFIG, OPEN_CLIP_CONFIG)):
        return folder  # perhaps only a tokenizer
    raise InputError(
        f"{name} has no safetensors weights on the Hugging Face hub, and pickles are never loaded; if you trust them,"
        f" run hf download {name} --local-dir FOLDER, then give FOLDER: the error explains how to convert them"
    )
