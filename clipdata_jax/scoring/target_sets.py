"""Target sets of NormSim: embeddings, or images that are embedded once and cached."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
from typing import Any

import numpy as np

from clipdata_jax import storage
from clipdata_jax.config import NormSim
from clipdata_jax.embedding import embedder
from clipdata_jax.errors import InputError, OnBad
from clipdata_jax.formats import file_kinds
from clipdata_jax.formats.embedding_shards import read_target
from clipdata_jax.formats.sources import discovery
from clipdata_jax.runs import manifest
from clipdata_jax.runtime import console


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetSets:
    """The target sets of a run, and the pool that they must fit.

    Attributes:
      settings: the targets, and the model and cache for those that are images.
      tag: the pool's model.
      made_by: record of that model in the pool's manifest, {} if there is none.
      force: whether targets may be embedded with another model than the pool.
      on_bad: what to do with broken images.
      alone: whether no other process might embed the same images.
    """

    settings: NormSim
    tag: str
    made_by: dict[str, Any]
    force: bool = False
    on_bad: OnBad = "stop"
    alone: bool = True

    def read(self, dim: int) -> tuple[dict[str, np.ndarray], list[str]]:
        """Reads the embeddings of all targets, and embeds those that are images.

        Args:
          dim: the pool's dimension.

        Returns:
          Name -> embeddings (n, dim), and the files that were read.

        Raises:
          InputError: a target is missing, empty, not of unit rows, of another dimension or model than the pool, or
            consists of images without a checkpoint to embed them with.
        """
        targets: dict[str, np.ndarray] = {}
        read: list[str] = []
        paths = self.settings.targets()
        # Errors in embeddings are found before images are embedded, which takes long.
        for name, path in sorted(paths.items(), key=lambda item: not is_embedded(item[1])):
            if not is_embedded(path):
                path = self._embed(name, path)
            self._check_model(path)
            targets[name] = read_target(path, self.tag, dim=dim)
            read += storage.Folder(path).files(".npz") if storage.is_folder(path) else [path]
        return {name: targets[name] for name in paths}, read

    def _embed(self, name: str, path: str) -> str:
        """The file with the embeddings of a target's images, made now unless it is in the cache."""
        found = discovery.find_sources([path], images_only=True)
        checkpoint, target = self.settings.target_model, f"--target {name}={path}"
        if checkpoint is None:
            raise InputError(
                f"{target}: holds images, not embeddings; name the pool's model to embed them with, --target-model"
                " CHECKPOINT"
            )
        from clipdata_jax import models

        digest = models.checkpoint_digest(checkpoint)
        if self.made_by.get("digest", digest) != digest and not self.force:
            raise InputError(
                f"--target-model {checkpoint}: is not the pool's model, {self.made_by.get('name')}; name that one, or"
                " add --force"
            )
        home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        cache = self.settings.target_cache or os.path.join(home, "clipdata", "targets")
        out = storage.join(cache, f"{name}-{_key(found, digest, self.tag, cache)}.npz")
        is_cached = storage.exists(out) and bool(manifest.read_facts(out))
        console.say(f"Target {name}: {path}, embeddings in {out}{', made before' if is_cached else ''}")
        if found.passed_over:
            console.say(console.passed_over(found.passed_over))
        if is_cached:
            return out
        if not self.alone:
            raise InputError(
                f"{target}: is not embedded yet, and each worker would do it; first run clipdata embed {path}"
                f" --images-only --model {self.tag}={checkpoint} --out {out}"
            )
        settings = embedder.EmbedSettings(images_only=True, on_bad=self.on_bad)
        embedder.embed((path,), {self.tag: checkpoint}, out, settings)
        return out

    def _check_model(self, path: str) -> None:
        target, pool = made_by_model(path, self.tag), self.made_by
        if None in (target.get("digest"), pool.get("digest")) or self.force:
            return  # embeddings of other tools don't say
        if target["digest"] != pool["digest"]:
            raise InputError(
                f"{path}: the target is of another model than the pool ({target.get('name')}, not {pool.get('name')});"
                " embed both with the same one, or add --force"
            )


def is_embedded(path: str) -> bool:
    """Whether a target is embeddings (.npy, .npz or a folder of .npz), not images; a pickle is meant to be some."""
    if path.endswith((".npy", ".npz")) or file_kinds.is_pickle(path):
        return True
    at = storage.Folder(path)
    return at.is_folder() and bool(at.files(".npz"))


def _key(found: discovery.Sources, digest: str, tag: str, cache: str) -> str:
    """Identifies embeddings by the images' bytes and order, the model, and the software and hardware."""
    made_with = manifest.describe("embed", embedder.EmbedSettings(), devices=True)
    content = [digest, tag, made_with.facts["versions"], made_with.facts["hardware"], _content(found, cache)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _content(found: discovery.Sources, cache: str) -> str:
    """A digest of the images, wherever they lie; computed once for files that don't change."""
    by_unit = [unit.image_files() for unit in found.units.values()]
    # Units may be parts of one file.
    paths = [path for path in dict.fromkeys(itertools.chain(*by_unit)) if storage.exists(path)]
    # A TFDS split has no files of its own; its name, version and number of rows identify it.
    facts = json.dumps([] if all(by_unit) else found.facts, sort_keys=True)
    touched = json.dumps([facts, *((path, storage.fingerprint(path)) for path in paths)])
    known = storage.join(cache, "seen", hashlib.sha256(touched.encode()).hexdigest()[:16])
    if not storage.exists(known):
        whole = hashlib.sha256(facts.encode())
        with console.bar(total=len(paths), unit="file", name="digest") as bar:
            for path in paths:
                whole.update(storage.digest(path).encode())
                bar.update(1)
        storage.write_bytes(known, whole.hexdigest().encode())
    return storage.read_bytes(known).decode()


def made_by_model(path: str, tag: str) -> dict[str, Any]:
    """The record of a model in the manifest of embeddings (a folder or a file); {} if there is none."""
    content = manifest.read_facts(path)
    if not content:  # it may be a shard of a folder
        folder, _, name = path.rpartition("/")
        whole = manifest.read_facts(folder or ".")
        content = whole if name in (whole.get("outputs") or {}) else {}
    models = content.get("models")
    found = models.get(tag) if isinstance(models, dict) else None
    return found if isinstance(found, dict) else {}
