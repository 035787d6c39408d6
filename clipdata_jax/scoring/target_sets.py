"""The target sets of NormSim: embeddings that are there, or images that are embedded on the way, once."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import numpy as np

from clipdata_jax import storage
from clipdata_jax.config import Embed, Score
from clipdata_jax.embedding import embedder
from clipdata_jax.errors import InputError
from clipdata_jax.formats import sources
from clipdata_jax.formats.embedding_shards import read_target
from clipdata_jax.runs import manifest
from clipdata_jax.runtime import console


def open_targets(
    options: Score, *, tag: str, dim: int, made_by: dict[str, Any]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The embeddings of all targets, and the files they are in.

    Args:
      options: of the command.
      tag: the pool's model.
      dim: the pool's dimension.
      made_by: what the pool's manifest says of its model, {} if nothing.

    Raises:
      InputError: a target is missing, empty, no unit rows, of another dimension or model than the pool's, or is
        of images and no checkpoint is given to embed them with.
    """
    targets: dict[str, np.ndarray] = {}
    read: list[str] = []
    paths = options.norm_sim.targets()
    # What is wrong with embeddings is told before images are embedded, which takes long.
    for name, path in sorted(paths.items(), key=lambda item: not is_embedded(item[1])):
        if not is_embedded(path):
            path = _embedded(name, path, options, tag, made_by)
        _check_model(path, tag, made_by, options)
        targets[name] = read_target(path, tag, dim=dim)
        read += storage.Folder(path).files(".npz") if storage.is_folder(path) else [path]
    return {name: targets[name] for name in paths}, read


def is_embedded(path: str) -> bool:
    """Whether a target is embeddings, not images: a .npy or .npz, or a folder of such."""
    if path.endswith((".npy", ".npz")):
        return True
    at = storage.Folder(path)
    return at.is_folder() and bool(at.files(".npz"))


def _embedded(name: str, path: str, options: Score, tag: str, made_by: dict[str, Any]) -> str:
    """The file with the embeddings of a target's images, made now if it isn't there."""
    found = sources.find_sources([path], images_only=True)
    checkpoint = options.norm_sim.target_model
    if checkpoint is None:
        raise InputError(
            f"--target {name}={path}: holds images, no embeddings; name the pool's model to embed them with,"
            " --target-model CHECKPOINT"
        )
    from clipdata_jax import models

    digest = models.checkpoint_digest(checkpoint)
    if made_by.get("digest", digest) != digest and not options.force:
        raise InputError(
            f"--target-model {checkpoint}: is another model than the pool's, {made_by.get('name')}; name that, or add"
            " --force"
        )
    cache = _cache(options)
    out = storage.join(cache, f"{name}-{_key(found, digest, tag, cache)}.npz")
    made_before = storage.exists(out) and bool(manifest.read_facts(out))
    print(f"Target {name}: {path}, embeddings in {out}{', made before' if made_before else ''}")
    if made_before:
        return out
    if options.workers.worker is not None or options.workers.coordinator not in (None, "none"):
        raise InputError(
            f"--target {name}={path}: isn't embedded yet, and each worker would do it; first run clipdata embed {path}"
            f" --images-only --model {tag}={checkpoint} --out {out}"
        )
    embedder.run(
        Embed(
            sources=(path,),
            model=(f"{tag}={checkpoint}",),
            images_only=True,
            out=out,
            on_bad=options.on_bad,
        )
    )
    return out


def _key(found: sources.Sources, digest: str, tag: str, cache: str) -> str:
    """Tells embeddings apart: by the images' bytes and order, the model, and what runs it."""
    made_with = manifest.describe("embed", Embed(sources=("",), model=("",), out=""), devices=True)
    content = [digest, tag, made_with.facts["versions"], made_with.facts["hardware"], _content(found, cache)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _content(found: sources.Sources, cache: str) -> str:
    """A digest of the images, wherever they lie; not computed again for files that nobody has touched since."""
    by_unit = [unit.image_files() for unit in found.units.values()]
    paths = [path for of_unit in by_unit for path in of_unit if storage.exists(path)]
    # What has no files of its own, a TFDS split, is told by its name, version and number of rows.
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


def _cache(options: Score) -> str:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return options.norm_sim.target_cache or os.path.join(home, "clipdata", "targets")


def _check_model(path: str, tag: str, made_by: dict[str, Any], options: Score) -> None:
    of_target = made_by_model(path, tag).get("digest")
    of_pool = made_by.get("digest")
    if of_target is None or of_pool is None or of_target == of_pool or options.force:
        return  # other tools' embeddings don't say
    raise InputError(
        f"{path}: the target is of another model than the pool ({made_by_model(path, tag).get('name')}, not"
        f" {made_by.get('name')}); embed both with the same one, or add --force"
    )


def made_by_model(path: str, tag: str) -> dict[str, Any]:
    """What the manifest of embeddings, in a folder or beside a file, says of a model; {} if it says nothing."""
    content = manifest.read_facts(path)
    if not content:  # it may be a shard of a folder
        folder, _, name = path.rpartition("/")
        whole = manifest.read_facts(folder or ".")
        content = whole if name in (whole.get("outputs") or {}) else {}
    models = content.get("models")
    found = models.get(tag) if isinstance(models, dict) else None
    return found if isinstance(found, dict) else {}
