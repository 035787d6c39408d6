"""`clipdata demo`: draws a pool with known faults, runs the real commands on it, and prints what they kept."""

from __future__ import annotations

import dataclasses
import importlib
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from clipdata_jax import config, storage
from clipdata_jax.commands import dedup
from clipdata_jax.demo import pairs
from clipdata_jax.demo import pool as drawn
from clipdata_jax.errors import InputError
from clipdata_jax.formats import uid_files, uids
from clipdata_jax.runs import manifest, records
from clipdata_jax.runtime import console

MODEL = str(Path(__file__).parents[1] / "demo" / "model")
_KINDS = ("sound", "shuffled", "generic", "boilerplate", "text_image", "blank", "duplicate")
_DUPLICATES = 0.985  # cosine of images and of captions: different scenes are hardly ever as near
_TRAIN_SEEDS = (0, 1, 2)
_TEST_PAIRS = 1_000


def run(options: config.Demo) -> dict[str, Any]:
    """Runs the demo, with all output below `options.out`; run again, it only does what is missing.

    Returns:
      method -> {"kept": pairs, "sound": share, and each kind of fault: share}.
    """
    start = time.monotonic()
    place = {name: storage.join(options.out, name) for name in _PLACES}
    print(f"Drawing {options.pairs:,} image-text pairs, about half of them bad, and 300 target images: {options.out}")
    _draw(options, place)
    _score(options, place)
    subsets = _select(options, place)
    chosen = subsets["negCLIPLoss, then NormSim"]
    _call("reshard", config.Reshard(sources=(place["pool"],), subset=chosen, out=place["selected"]))
    page = config.Report(
        scores=(place["scores"],),
        subset=chosen,
        pool=(place["pool"],),
        title="Demo pool: negCLIPLoss, then NormSim",
        out=storage.join(options.out, "report.html"),
    )
    _call("report", page)
    table = _judge(subsets, place["pool"], options.seed)
    print(f"\n{_table(table)}\n\nDone in {time.monotonic() - start:.0f} s. Open the report: {page.out}")
    if options.train:
        _train_and_compare(options, subsets, place, storage.join(options.out, "comparison.html"))
    return table


def _score(options: config.Demo, place: dict[str, str]) -> None:
    model = (f"demo={MODEL}",)
    _call("embed", config.Embed(sources=(place["pool"],), model=model, out=place["metadata"]))
    target = config.Embed(sources=(place["target"],), model=model, images_only=True, out=place["target_emb"])
    _call("embed", target)
    score = config.Score(
        pool=place["metadata"],
        out=place["scores"],
        neg_clip_loss=config.NegClipLoss(batch_size=1_024),
        norm_sim=config.NormSim(target=(f"target={place['target_emb']}",)),
        seed=options.seed,
    )
    _call("score", score)


def _select(options: config.Demo, place: dict[str, str]) -> dict[str, str]:
    """Selects by each method; returns method -> subset file, all of the same size."""
    keep, first = options.keep, min(1.0, round(1.2 * options.keep, 6))
    found = config.Dedup(
        pool=place["metadata"],
        out=storage.join(options.out, "dedup.npy"),
        threshold=_DUPLICATES,
        by="both",
        keep="best:neg_clip_loss",
        scores=place["scores"],
    )
    _call("dedup", found)
    both = f"top(neg_clip_loss, {first:g}) >> top(norm_sim_inf_target, {keep:g})"
    rules = {
        "CLIPScore": f"top(clip_score, {keep:g})",
        "negCLIPLoss": f"top(neg_clip_loss, {keep:g})",
        "negCLIPLoss, then NormSim": both,
        "the same, deduplicated": f"{both} >> best_of(group, by=neg_clip_loss)",
    }
    subsets = {"random": _random_subset(options, place)}
    for name, rule in rules.items():
        subsets[name] = storage.join(options.out, f"subset-{len(subsets)}.npy")
        columns = (dedup.table_of(found.out),) if "group" in rule else ()
        _call("select", config.Select(scores=(place["scores"],), columns=columns, rule=rule, out=subsets[name]))
    return subsets


_PLACES = ("pool", "target", "metadata", "target_emb", "scores", "selected", "test", "zero_shot", "runs")


def _draw(options: config.Demo, place: dict[str, str]) -> None:
    """Draws what is missing: the manifest comes last, so a folder that has it is complete."""
    jobs: dict[str, Callable[[str], Any]] = {
        "pool": lambda folder: drawn.make_pool(folder, pairs=options.pairs, seed=options.seed),
        "target": lambda folder: drawn.make_target(folder, seed=options.seed),
    }
    if options.train:
        jobs["test"] = lambda folder: drawn.make_clean_tars(folder, pairs=_TEST_PAIRS, seed=options.seed)
        jobs["zero_shot"] = lambda folder: drawn.make_zero_shot(folder, seed=options.seed)
    for name, draw in jobs.items():
        plan = {"command": "demo", "pairs": options.pairs, "seed": options.seed}
        before = manifest.read_facts(place[name])
        if before and before != plan:
            raise InputError(
                f"{place[name]}: holds another demo (--pairs {before.get('pairs')} --seed {before.get('seed')});"
                " choose another --out, or delete it"
            )
        if before != plan:
            draw(place[name])
            storage.write_bytes(storage.join(place[name], manifest.NAME), records.to_json(plan))


def _call(command: str, options: Any) -> Any:
    """Prints a command line, and runs that command."""
    print(f"\n$ clipdata {command} {_as_typed(options)}", flush=True)
    return importlib.import_module(f"clipdata_jax.commands.{command}").run(options)


def _as_typed(options: Any) -> str:
    """The flags that give these options, without defaults."""
    positional, flags = [], []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        default = field.default
        if value == default:
            continue
        if dataclasses.is_dataclass(value):
            flags.append(_as_typed(value))
            continue
        words = [str(one) for one in value] if isinstance(value, tuple) else [str(value)]
        flag = f"--{field.name.replace('_', '-')}"
        if "Positional" in str(field.type):
            positional += words
        elif isinstance(value, bool):
            flags.append(flag)
        else:
            flags.append(" ".join([flag, *map(shlex.quote, words)]))
    return " ".join([*map(shlex.quote, positional), *flags])


def _truth(pool: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The uids (u8,u8, sorted), kinds and scenes of the pool's pairs, as recorded when they were drawn."""
    with storage.open_read(storage.join(pool, "truth.parquet")) as file:
        table = pq.read_table(file)
    uid, kinds = uids.from_hex(table["uid"]), table["kind"].to_pylist()
    order = np.lexsort((uid["f1"], uid["f0"]))
    return uid[order], np.asarray(kinds)[order], np.asarray(pairs.scenes(kinds, seed))[order]


def _random_subset(options: config.Demo, place: dict[str, str]) -> str:
    uid, _, _ = _truth(place["pool"], options.seed)
    chosen = np.random.default_rng(options.seed).permutation(len(uid))[: int(options.keep * len(uid))]
    path = storage.join(options.out, "subset-0.npy")
    uids.write_subset(path, uid[chosen])
    return path


def _judge(subsets: dict[str, str], pool: str, seed: int) -> dict[str, Any]:
    """Counts the pairs of each subset, and the share of each kind; the only copy of a sound pair is sound."""
    uid, kind, scene = _truth(pool, seed)
    table = {}
    for name, path in subsets.items():
        rows = uids.find(uid, uid_files.read_subset(path))
        kept, seen = kind[rows], set(scene[rows][kind[rows] == "sound"].tolist())
        for at in np.flatnonzero(kept == "duplicate"):
            if (shown := int(scene[rows[at]])) not in seen:
                seen.add(shown)
                kept[at] = "sound"
        table[name] = {"kept": len(kept), **{one: float(np.mean(kept == one)) for one in _KINDS}}
    return table


def _table(table: dict[str, Any]) -> str:
    head = ["kept by", "pairs", *(kind.replace("_", " ") for kind in _KINDS)]
    rows = [head] + [
        [name, f"{row['kept']:,}", *(f"{row[kind]:.1%}" for kind in _KINDS)] for name, row in table.items()
    ]
    return "Composition of the kept pairs, by the recorded truth:\n" + console.table(rows)


def _train_and_compare(options: config.Demo, subsets: dict[str, str], place: dict[str, str], page: str) -> None:
    """Trains small models for equal steps on random and on selected pairs, and compares them."""
    methods = []
    for number, name in enumerate(("random", "negCLIPLoss, then NormSim")):
        runs = [storage.join(place["runs"], f"{number}-{seed}") for seed in _TRAIN_SEEDS]
        figures = [
            _train_and_evaluate(options, subsets[name], seed, out, place)
            for seed, out in zip(_TRAIN_SEEDS, runs, strict=True)
        ]
        methods.append(f"{name}={','.join(figures)}")
    title = f"Models trained for {options.train_steps} steps of 128 pairs"
    _call("compare", config.CompareModels(results=tuple(methods), out=page, title=title))


def _train_and_evaluate(options: config.Demo, subset: str, seed: int, out: str, place: dict[str, str]) -> str:
    """Trains a model on a subset; returns the file of its figures."""
    training = config.Train(
        sources=(place["pool"],),
        subset=subset,
        tokenizer=MODEL,
        out=out,
        model=config.ModelChoice(patch_size=16, width=96, layers=3, embed_dim=64),
        optimiser=config.Optimiser(
            steps=options.train_steps,
            batch_size=128,
            warmup=min(50, options.train_steps // 4),
            weight_decay=0.1,
            clip_norm=1.0,
        ),
        # The drawn pool's captions say where in the image things are.
        input=config.TrainingInput(min_crop=1.0),
        seed=seed,
    )
    _call("train", training)
    evaluation = config.Evaluate(
        model=storage.join(out, "model"),
        retrieval=(place["test"],),
        classification=(place["zero_shot"],),
        classnames=storage.join(place["zero_shot"], "classnames.json"),
        templates=storage.join(place["zero_shot"], "templates.json"),
        out=storage.join(out, "figures.json"),
    )
    _call("evaluate", evaluation)
    return evaluation.out
