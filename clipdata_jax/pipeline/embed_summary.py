"""What is told of a run of `embed`: its totals for the manifest, and in words."""

from __future__ import annotations

from typing import Any

from clipdata_jax.config import Embed
from clipdata_jax.errors import InputError
from clipdata_jax.pipeline import targets
from clipdata_jax.runs import manifest, output
from clipdata_jax.runtime import console


def summarise(receipts: list[dict[str, Any]]) -> dict[str, Any]:
    """The run's own facts, from its units' receipts.

    Raises:
      InputError: everything was skipped, so that there is nothing to go on with.
    """
    facts = list(output.read_receipts(receipts))
    samples, tars, pool = (
        [entry for fact in facts for entry in fact[name]]
        for name in ("skipped_samples", "skipped_tars", "inputs")
    )
    pairs = sum(fact["pairs"] for fact in facts)
    if not pairs:
        raise InputError(
            f"all that was to be embedded is bad and was skipped; mend it. The first: {_listed(samples, tars)[0]}"
        )
    return {
        "pairs": pairs,
        "skipped_samples": samples,
        "skipped_tars": tars,
        "repeated_uids": sum(fact["repeated_uids"] for fact in facts),
        "pool": pool,
    }


def tell(result: dict[str, Any], options: Embed) -> None:
    """Prints what was embedded and what was left out."""
    noun = "picture" if options.images_only else "pair"
    for tag, model in result["models"].items():
        print(
            f"Embedded {console.counted(result['pairs'], noun)} as {tag}, dimension {model['dim']}, temperature"
            f" {model['temperature']:.4g}: {options.out}"
        )
    if result["repeated_uids"]:
        print(f"{result['repeated_uids']:,} pairs repeat an uid of their tar")
    skipped = _listed(result["skipped_samples"], result["skipped_tars"])
    if skipped:
        listed = f"{options.out}.{manifest.NAME}" if targets.is_file(options.out) else manifest.NAME
        print(
            f"Skipped {console.counted(len(result['skipped_tars']), 'tar')} and"
            f" {console.counted(len(result['skipped_samples']), 'sample')}, listed in {listed};"
            f" the first: {skipped[0]}"
        )


def _listed(samples: list[dict[str, Any]], tars: list[str]) -> list[str]:
    return tars + [f"{sample['tar']}: sample {sample['key']!r}: {sample['reason']}" for sample in samples]
