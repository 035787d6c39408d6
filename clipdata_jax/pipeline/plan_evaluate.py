"""What `evaluate` will take: as `embed`, over pictures with captions and labelled pictures. Imports no jax."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from clipdata_jax.config import Embed, Evaluate
from clipdata_jax.data import files, sources, tars
from clipdata_jax.errors import InputError
from clipdata_jax.pipeline import plan_embed, plan_probe_embed, samples
from clipdata_jax.pipeline.evaluate import read_strings
from clipdata_jax.pipeline.plan_estimates import Estimate, Machine, Times
from clipdata_jax.pipeline.plan_probe_embed import EmbedFacts
from clipdata_jax.pipeline.progress import counted

_LOOKED_AT = 100  # samples, to tell how many captions a picture has
_STORED = 100_000  # bytes of a picture on its way to a decoder
_COPIES = 2  # of all embeddings, float32, when they are joined
_FIGURES = 2_000  # bytes of the figures and their manifest


def estimate(options: Evaluate, machine: Machine) -> Estimate:
    """What the evaluation takes.

    Raises:
      InputError: a tar, a list or the model is missing, or a batch can't fit in memory.
    """
    captioned, labelled = (_units(found) for found in (options.retrieval, options.classification))
    pictures = [round(sum(unit.bytes for unit in units) * _each(units)) for units in (captioned, labelled)]
    captions = round(pictures[0] * _captions(captioned[0])) if captioned else 0
    prompts = len(read_strings(options.classnames, "class names")) if options.classnames else 0
    prompts *= len(read_strings(options.templates, "prompts")) if options.templates else 1
    as_embed = Embed(
        sources=(*options.retrieval, *options.classification),
        model=(options.model,),
        out=options.out,
        batch_size=options.batch_size,
    )
    facts: EmbedFacts = machine.probe.ask(plan_probe_embed.embed, as_embed, machine.calibrate)
    rows, texts = sum(pictures), captions + prompts
    dim = facts.numbers // 2
    memory = plan_embed.host_memory(as_embed, facts, _STORED, machine) + _COPIES * 4 * dim * (rows + texts)
    plan_embed.refuse_large("evaluate", as_embed, facts, memory, machine)
    compared = 2.0 * dim * (pictures[0] * captions + pictures[1] * prompts)
    times = Times.one_by_one(
        facts.start, decode=rows * facts.decode, pictures=rows * facts.picture, captions=texts * facts.caption
    )
    return Estimate(
        command="evaluate",
        rows=rows,
        work=f"about {counted(rows, 'picture')}, {counted(captions, 'caption')} and {counted(prompts, 'prompt')}",
        read=sum(unit.bytes for unit in (*captioned, *labelled)),
        written=_FIGURES,
        out=options.out,
        memory=memory,
        device_memory=plan_embed.device_memory(facts),
        operations=rows * facts.of_picture + texts * facts.of_caption + compared,
        times=times if machine.calibrate else None,
        alone=True,
    )


def _units(found: Sequence[str]) -> list[sources.Tar]:
    return [sources.Tar(path, files.size(path)) for path in (tars.find_tars(found) if found else ())]


def _each(units: Sequence[sources.Tar]) -> float:
    return plan_embed.look(units)[0] if units else 0.0


def _captions(unit: sources.Tar) -> float:
    """Captions a picture, by the first ones."""
    read = list(itertools.islice(unit.samples(), _LOOKED_AT))
    return sum(_count(sample) for sample in read) / max(len(read), 1)


def _count(sample: tars.Sample) -> int:
    try:
        return len(samples.captions_of(sample))
    except InputError:
        return 0
