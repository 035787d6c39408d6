"""`clipdata dedup`: a pool's embeddings in, a subset without near-duplicates out, some rows or clusters at a time."""

from __future__ import annotations

import contextlib
import dataclasses

import numpy as np

from clipdata_jax import storage
from clipdata_jax.config import Dedup, NormSim
from clipdata_jax.errors import InputError, StoppedEarly
from clipdata_jax.formats import score_tables, uid_files
from clipdata_jax.formats.embedding_shards import BAD_REASONS, EmbeddingPool, open_pool
from clipdata_jax.formats.uid_sets import UidSorter
from clipdata_jax.runs import file_output, manifest, records
from clipdata_jax.runs.output import Output, is_done, open_output
from clipdata_jax.runs.records import Facts, Manifest, Receipt, RunPlan
from clipdata_jax.runtime import console, parallel
from clipdata_jax.scoring import duplicate_clusters, duplicate_groups, duplicate_rows, duplicate_table, target_sets
from clipdata_jax.scoring.duplicate_units import DuplicateSearch
from clipdata_jax.scoring.units import UnitReader, dimension, shard_files

_PIECE = 1 << 20  # rows


def run(options: Dedup) -> Manifest | None:
    """Finds the near-duplicates of a pool; writes the kept uids and the table of duplicates, each with its manifest.

    Returns:
      The manifest; None if another process reports the run.

    Raises:
      InputError: bad input, or an output holds something else.
    """
    if not storage.Folder(options.out).is_local:
        raise InputError(
            f"--out is {options.out!r}, expected a local path: the embeddings are mapped from a file beside it"
        )
    storage.sweep_beside(options.out)
    share = parallel.start(options.workers)
    pool = _open(options)
    tag = pool.tag(options.tag)
    dim = dimension(pool, tag)
    if options.clusters is not None and options.clusters > len(pool):
        raise InputError(f"--clusters is {options.clusters}, but the pool has {len(pool):,} pairs; use fewer clusters")
    targets, target_files = _read_targets(options, tag, dim)
    plan = manifest.describe(
        "dedup",
        options,
        inputs=[*target_files, *_score_files(options, pool), *([options.centroids] if options.centroids else [])],
        pool=[path for shard in pool.shards for path in shard_files(shard)],
        devices=True,
        tag=tag,
        pairs=len(pool),
        has_uids=pool.has_uids,
        unreadable=list(pool.unreadable),
        sets={name: len(target) for name, target in targets.items()},
    )
    if not options.overwrite:
        if is_done(options.out, plan):
            _remove(f"{options.out}.work")
            print(f"Already complete: {options.out}")
            return records.read(Manifest, manifest.beside(options.out))
        file_output.check_replaceable(table_of(options.out), plan, overwrite=False)
    search = DuplicateSearch(
        pool=pool,
        reader=UnitReader(tag=tag, dim=dim, normalize=options.normalize, on_bad=options.on_bad),
        compared=("image", "text") if options.by == "both" else (options.by,),
        threshold=options.threshold,
        targets=targets,
        clusters=options.clusters,
        centroids=options.centroids,
        seed=options.seed,
        max_bad_rows=options.max_bad_rows,
    )
    output = open_output(f"{options.out}.work", plan=plan, units=search.units, share=share)
    todo = output.remaining(share)
    now = todo[: options.stop_after]
    search.do(output, now, share)
    if len(now) < len(todo):
        raise StoppedEarly(len(now), len(todo))
    return _finish(search, options, output, plan, share)


def table_of(out: str) -> str:
    """The path of the table of duplicates that belongs to a subset."""
    return f"{out.removesuffix('.npy')}.duplicates.parquet"


def _open(options: Dedup) -> EmbeddingPool:
    pool = open_pool(
        options.pool,
        on_bad=options.on_bad,
        texts=False,
        keys=(options.image_key, options.text_key),
        uid_column=options.uid_column,
    )
    if options.by == "image":
        return dataclasses.replace(pool, shards=tuple(dataclasses.replace(one, texts=None) for one in pool.shards))
    if not pool.has_texts:
        named = " (name their array with --text-key)" if options.image_key and not options.text_key else ""
        raise InputError(
            f"{pool.folder}: has no embeddings of captions{named}, but --by is {options.by}; use --by image"
        )
    return pool


def _read_targets(options: Dedup, tag: str, dim: int) -> tuple[dict[str, np.ndarray], list[str]]:
    sets = target_sets.TargetSets(
        settings=NormSim(target=options.against, target_model=options.target_model, target_cache=options.target_cache),
        tag=tag,
        made_by=target_sets.made_by_model(options.pool, tag),
        force=options.force,
        on_bad=options.on_bad,
        alone=options.workers.worker is None and options.workers.coordinator in (None, "none"),
    )
    targets, files = sets.read(dim)
    return {name: target.astype(np.float16, copy=False) for name, target in targets.items()}, files


def _score_files(options: Dedup, pool: EmbeddingPool) -> list[str]:
    """The parts of the score table; checks that it has the column, and is of the pool."""
    if options.scores is None or options.column is None:
        return []
    table = score_tables.open_tables([options.scores])
    if options.column not in table.columns:
        raise InputError(
            f"--keep {options.keep}: {options.scores} has no column {options.column!r}; it has"
            f" {', '.join(sorted(table.columns)) or 'none'}"
        )
    theirs, ours = dict(zip(table.parts, table.rows, strict=True)), {one.name: one.rows for one in pool.shards}
    if theirs != ours and not pool.unreadable:
        odd = sorted(set(theirs.items()) ^ set(ours.items()))[0][0]
        raise InputError(
            f"{options.scores}: its parts differ from the shards of {options.pool} (see {odd}): not its scores"
        )
    return [storage.join(options.scores, f"{part}.parquet") for part in table.parts]


def _finish(
    search: DuplicateSearch, options: Dedup, output: Output, plan: RunPlan, share: parallel.Share
) -> Manifest | None:
    """Joins what the units found if all are done, and writes the outputs; removes the work files."""
    try:
        result = output.finish(_summarise, share)
        made = None if result is None else _write(search, options, output, plan, result.facts)
        if made is not None:
            output.folder.remove()
            print(_text(made.facts, options))
        return made
    except (InputError, OSError):
        # Another process may have done it, and removed the work files while this one was reading them.
        if not storage.exists(manifest.beside(options.out)) or not is_done(options.out, plan):
            raise
        console.say(f"{options.out}: process {share.index + 1} of {share.count} is done, and so is the run")
        return None


def _summarise(receipts: list[Receipt]) -> Facts:
    rows = receipts[0]
    found = {name: value for name, value in rows.facts.items() if name != "squared_norms"}
    clusters = [receipt.facts["clusters"] for receipt in receipts if receipt.unit == duplicate_clusters.UNIT]
    entries = [entry.without_fingerprint() for entry in rows.inputs]
    return {**found, "pool": entries, **({"clusters": clusters[0]} if clusters else {})}


def _write(search: DuplicateSearch, options: Dedup, output: Output, plan: RunPlan, facts: Facts) -> Manifest:
    rows = duplicate_rows.open_pool_rows(output)
    criterion = search.criterion(output, rows)
    components, in_sets, nearest = search.results(output, len(rows.uid))
    joined, roots = components.joined()
    members, names = np.concatenate([np.unique(roots), joined]), np.concatenate([np.unique(roots), roots])
    apart = np.isin(members, in_sets.row, invert=True)
    members, names = members[apart].astype(np.int64), names[apart]
    score = _scores(search, options, output, rows, members)
    groups = duplicate_groups.group(criterion, members, names, score, rows.uid[members], options.groups)
    keep = ~rows.unread
    keep[groups.dropped] = keep[in_sets.row] = False
    sets = list(search.targets)
    per_set = {name: int((in_sets.set == number).sum()) for number, name in enumerate(sets)}
    found = {
        **facts,
        "kept": int(keep.sum()),
        "duplicates": len(groups.dropped),
        "near": per_set,
        "rows_not_compared": int((~rows.good).sum()),
        "nearest": duplicate_table.count_nearest(nearest),
    }
    table = table_of(options.out)
    found["groups"] = duplicate_table.write(table, rows.uid, groups, in_sets, sets, nearest)
    found["largest_group"] = int(np.bincount(groups.representative).max()) if len(groups.row) else 0
    found["uids"] = _write_subset(options.out, rows.uid, keep)
    manifest.write_beside(table, plan, found)
    return manifest.write_beside(options.out, plan, found)


def _scores(
    search: DuplicateSearch, options: Dedup, output: Output, rows: duplicate_rows.PoolRows, members: np.ndarray
) -> np.ndarray:
    """What decides which row of a group stays: a column, the distance from the centroid, or nothing but uids."""
    if options.scores is None or options.column is None:
        if options.groups != "semdedup":
            return np.zeros(len(members))
        clusters = duplicate_clusters.open_clusters(output)
        return -clusters.cosines(rows.emb[members][:, search.kinds.index(search.compared[0])], members)
    table = score_tables.open_tables([options.scores])
    score, start = np.full(len(members), np.nan), 0
    for shard in search.pool.shards:
        here = np.flatnonzero((members >= start) & (members < start + shard.rows))
        uid, columns = table.read_part(shard.name, [options.column])
        own = rows.uid[start : start + shard.rows]
        unread = rows.unread[start : start + shard.rows]
        if len(uid) != shard.rows or not np.array_equal(uid[~unread], own[~unread]):
            path = storage.join(options.scores, f"{shard.name}.parquet")
            raise InputError(f"{path}: its uids differ from those of {shard.metadata}: not scores of this pool")
        score[here] = columns[options.column][members[here] - start]
        start += shard.rows
    return score


def _write_subset(out: str, uid: np.ndarray, keep: np.ndarray) -> int:
    """Writes the kept uids, sorted; returns how many there are."""
    with contextlib.ExitStack() as stack:
        sorter = UidSorter(lambda: stack.enter_context(storage.scratch("clipdata-dedup-")))
        for start in range(0, len(uid), _PIECE):
            some = slice(start, start + _PIECE)
            sorter.add(np.array(uid[some][keep[some]]))
        return uid_files.write(out, sorter.blocks())


def _remove(path: str) -> None:
    with contextlib.suppress(InputError, OSError):  # another process may be removing it
        if storage.exists(path):
            storage.remove(path)


def _text(content: Facts, options: Dedup) -> str:
    kept, pairs, groups = (content[name] for name in ("kept", "pairs", "groups"))
    inside = f", inside {content['clusters']:,} clusters" if "clusters" in content else ""
    named = {"image": "images", "text": "captions", "both": "images and captions"}[options.by]
    found = f"{console.counted(groups, 'group')} of near-duplicates"
    lines = [
        f"kept {kept:,} of {pairs:,} pairs ({console.percent(kept / pairs)}): {options.out}",
        f"{found}, {named} of cosine {options.threshold:g} and up{inside}:"
        f" {content['duplicates']:,} dropped; the largest group has {content['largest_group']:,} pairs;"
        f" listed in {table_of(options.out)}",
    ]
    lines += [f"dropped, too near an image of {name}: {count:,}" for name, count in content["near"].items()]
    masked = [f"{content['masked'][reason]:,} {reason}" for reason in BAD_REASONS.values() if content["masked"][reason]]
    if masked:
        listed = manifest.beside(options.out)
        lines.append(f"kept without a comparison, bad embeddings: {', '.join(masked)}; listed in {listed}")
    if kept > content["uids"]:
        lines.append(
            f"{kept - content['uids']:,} kept pairs repeat the uid of another; the subset holds each uid once:"
            f" {content['uids']:,}"
        )
    lines.append(parallel.computed_on())
    skipped = [*content["unreadable"], *(entry["reason"] for entry in content["skipped"])]
    lines.append(console.skipped(manifest.beside(options.out), shard=skipped))
    return "\n".join(filter(None, lines))
