"""`clipdata embed`: images and captions in, metadata shards out."""

from __future__ import annotations

from clipdata_jax.config import Embed
from clipdata_jax.embedding import embedder, single_file
from clipdata_jax.formats import pool_names
from clipdata_jax.runs import manifest
from clipdata_jax.runs.records import Facts, Manifest
from clipdata_jax.runtime import console, parallel


def run(options: Embed) -> Manifest | None:
    """Embeds what the sources hold; returns the manifest, or None if another process reports the run.

    Raises:
      InputError: bad input; finished units are kept, and the same command continues from there.
    """
    settings = embedder.EmbedSettings(
        images_only=options.images_only,
        reading=options.reading,
        batch_size=options.batch_size,
        dtype=options.dtype,
        decoders=options.decoders,
        on_bad=options.on_bad,
        limit=options.limit,
    )
    share = parallel.start(options.workers)
    result = embedder.embed(
        options.sources,
        options.models(),
        options.out,
        settings,
        share=share,
        stop_after=options.stop_after,
        profile=options.profile,
    )
    if result is None:
        return None
    print(f"Already complete: {options.out}" if result.was_complete else _summary(result.manifest.facts, options))
    return result.manifest


def _summary(content: Facts, options: Embed) -> str:
    """The counts of what was embedded and what was left out."""
    noun = "image" if options.images_only else "pair"
    lines = []
    for tag, model in content["models"].items():
        temperature = f", temperature {model['temperature']:.4g}" if "temperature" in model else ""
        count = console.counted(content["pairs"], noun)
        lines.append(f"Embedded {count} as {tag}, dimension {model['dim']}{temperature}: {options.out}")
    if content["repeated_uids"]:
        lines.append(f"{content['repeated_uids']:,} pairs repeat a uid of their file")
    if own := content.get("own_ids"):
        lines.append(f"The uids of {console.counted(own, noun)} are made of their ids, which the column id keeps")
    lines.append(pool_names.repeats_text(content.get("repeated_names", {})))
    if content["several_captions"]:
        lines.append(
            f"{console.counted(content['several_captions'], 'sample')} with several captions: the first is used"
        )
    if content["several_lines"]:
        lines.append(f"{console.counted(content['several_lines'], 'caption')} of several lines: each is one caption")
    lines.append(console.passed_over(content["passed_over"]))
    lines.append(parallel.computed_on())
    listed = manifest.beside(options.out) if single_file.is_file(options.out) else manifest.NAME
    samples = console.skipped_samples(content["skipped_samples"])
    lines.append(console.skipped(listed, tar=content["skipped_tars"], sample=samples))
    return "\n".join(filter(None, lines))
