"""`clipdata norm-sim-d`: a pool's embeddings in, a subset by NormSim_2-D out; resumes after any step."""

from __future__ import annotations

import dataclasses
import json

import numpy as np

from clipdata_jax import storage
from clipdata_jax.config import NormSimD
from clipdata_jax.errors import InputError, StoppedEarly
from clipdata_jax.formats import uid_files, uids
from clipdata_jax.formats.embedding_shards import BAD_REASONS, EmbeddingPool, open_pool
from clipdata_jax.runs import manifest, profiling, records, telemetry
from clipdata_jax.runs.output import Output, is_done, open_output
from clipdata_jax.runs.records import Facts, Manifest, RunPlan
from clipdata_jax.runtime import console, parallel
from clipdata_jax.scoring.norm_sim_d_rows import UNIT, RowReader, count_members, open_rows
from clipdata_jax.scoring.norm_sim_d_steps import Rows, State, rows_scored, take_step
from clipdata_jax.scoring.units import shard_files
from clipdata_jax.selection import ranking

_WORK, _STATE = "work", "state.npz"


def run(options: NormSimD) -> Manifest | None:
    """Selects a subset; writes it with its manifest, the trace of the steps and their times beside it.

    A stopped run continues after its last step when the same command is given again.

    Returns:
      The manifest; None in processes other than the first, which alone writes files that all must see.

    Raises:
      InputError: bad input, or `out` holds something else.
    """
    _check_out(options.out)
    storage.sweep_beside(options.out)
    share = parallel.start(options.workers)
    pool = open_pool(
        options.pool, on_bad=options.on_bad, texts=False, keys=(options.image_key, None), uid_column=options.uid_column
    )
    tag = pool.tag(options.tag)
    survivors = None if options.survivors is None else _read_survivors(options.survivors)
    plan = manifest.describe(
        "norm-sim-d",
        options,
        inputs=[] if options.survivors is None else [options.survivors],
        pool=[path for shard in pool.shards for path in shard_files(shard, texts=False)],
        devices=True,
        tag=tag,
        pairs=len(pool),
        has_uids=pool.has_uids,
        unreadable=list(pool.unreadable),
        keep=options.keep(len(pool)),
    )
    made: Manifest | None = None
    if is_done(options.out, plan):
        made = records.read(Manifest, manifest.beside(options.out))
    else:
        output, facts, drop = _prepare(options, pool, tag, plan, survivors, share)
        rows = open_rows(output, facts["pool_rows"])
        state = _select(output, rows, plan.facts["keep"], drop, options, share)
        if not share.index:
            made = _write(options.out, plan, facts, rows, state)
    if share.index or made is None:
        print(f"{options.out}: process {share.index + 1} of {share.count} is done; process 1 writes the subset")
        return None
    _remove(f"{options.out}.{_WORK}")
    print(_text(made.facts, options))
    return made


def _check_out(out: str) -> None:
    if not out.endswith(".npy"):
        raise InputError(f"--out is {out!r}, expected a file name that ends in .npy")
    if not storage.Folder(out).is_local:
        raise InputError(f"--out is {out!r}, expected a local path: the embeddings are mapped from a file beside it")


def _read_survivors(path: str) -> np.ndarray:
    survivors = uid_files.read_subset(path)
    if not len(survivors):
        raise InputError(f"{path}: the subset is empty, so there is nothing to select from")
    return survivors


def _prepare(
    options: NormSimD, pool: EmbeddingPool, tag: str, plan: RunPlan, survivors: np.ndarray | None, share: parallel.Share
) -> tuple[Output, Facts, int]:
    """The working folder with the rows in it, their facts, and the number of rows that a step drops."""
    folder = f"{options.out}.{_WORK}"
    if share.index:
        _wait(share)
        output = open_output(folder, plan=plan, units=[UNIT], share=share, together=True)
    else:
        output = open_output(folder, plan=plan, units=[UNIT], share=share, together=True)
        try:
            _read_rows(output, pool, tag, options, survivors)
            check_steps(options, _facts(output)["rows"], plan.facts["keep"])
        except InputError:
            _remove(folder)  # no step is lost, and other options can be tried
            raise
        _wait(share)
    facts = _facts(output)
    return output, facts, check_steps(options, facts["rows"], plan.facts["keep"])


def _wait(share: parallel.Share) -> None:
    """Waits until the first process has read the rows."""
    if share.count > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("the rows are read")


def _read_rows(output: Output, pool: EmbeddingPool, tag: str, options: NormSimD, survivors: np.ndarray | None) -> None:
    """Reads the rows into the working folder, unless that is done."""
    if UNIT in output.receipts():
        return
    # Steps that were taken on other rows are void.
    _remove(output.path(_STATE))
    members, missing = len(pool), 0
    if survivors is not None and options.survivors is not None:
        skip = options.on_bad == "skip"
        members, missing = count_members(pool, survivors, options.survivors, skip=skip)
    check_steps(options, members, options.keep(len(pool)))
    reader = RowReader(
        pool,
        tag,
        survivors,
        whole=options.init == "pool",
        normalize=options.normalize,
        max_bad_rows=options.max_bad_rows,
        on_bad=options.on_bad,
    )
    reader.facts |= {"missing_survivors": missing}
    reader.write(output)


def _facts(output: Output) -> Facts:
    """The facts about the rows for the manifest."""
    receipt = output.receipts().get(UNIT)
    if receipt is None:
        raise InputError(f"{output.folder}: the pool's files change while they are read; run the command again")
    return {**receipt.facts, "pool_files": [entry.without_fingerprint() for entry in receipt.inputs]}


def check_steps(options: NormSimD, rows: int, keep: int) -> int:
    """The number of rows that a step drops: all rows to drop divided by the steps, rounded up.

    Raises:
      InputError: the pool has no more rows than are to be kept, or fewer to drop than there are steps.
    """
    source = "the pool's rows" if options.survivors is None else f"the survivors in {options.survivors}"
    flag = f"--count {options.count:,}" if options.fraction is None else f"--fraction {options.fraction:g}"
    if not keep:
        raise InputError(f"{flag} of the pool keeps no pair; raise it")
    if keep >= rows:
        raise InputError(
            f"{flag} keeps {console.counted(keep, 'pair')}, but {source} are {rows:,} with usable embeddings;"
            " keep fewer than that"
        )
    if options.steps > rows - keep:
        raise InputError(
            f"--steps is {options.steps:,}, but from {rows:,} to {keep:,} pairs there are only {rows - keep:,} to drop;"
            " take fewer steps"
        )
    return -(-(rows - keep) // options.steps)


def _select(output: Output, rows: Rows, keep: int, drop: int, options: NormSimD, share: parallel.Share) -> State:
    """Takes the remaining steps; the first process writes state and trace after each."""
    path = output.path(_STATE)
    state = State.from_bytes(storage.read_bytes(path)) if storage.exists(path) else State.start(rows)
    total = sum(rows_scored(state.trace[0]["rows"], keep, drop))
    before = total - sum(rows_scored(int(state.alive.sum()), keep, drop))
    last = -(-(len(rows.uid) - keep) // drop)
    first, stop = state.step, last if options.stop_after is None else state.step + options.stop_after
    watch = telemetry.Stopwatch(share.index)
    with (
        console.bar(total=total, unit="row", name="norm-sim-d", done=before) as bar,
        profiling.Profiler(options.profile, steps=3) as profiler,
    ):
        while state.trace[-1]["rows"] > keep and state.step < stop:
            bar.set_postfix_str(f"step {state.step + 1} of {last}", refresh=False)
            profiler.step()
            seconds, scored = telemetry.Seconds(), state.trace[-1]["rows"]
            state = take_step(rows, state, keep=keep, drop=drop, share=share, scored=bar.update, seconds=seconds)
            if not share.index:
                with seconds.on("write"):
                    storage.write_bytes(path, state.to_bytes())
                    _write_trace(options.out, state)
                times = dataclasses.replace(watch.lap(scored, **seconds), step=state.step)
                telemetry.append(storage.beside(options.out, storage.TIMES), times)
    if not share.index:
        _write_trace(options.out, state)
    if state.trace[-1]["rows"] > keep:
        raise StoppedEarly(state.step - first, last - first, "step")
    return state


def _write_trace(out: str, state: State) -> None:
    lines = "".join(json.dumps(line) + "\n" for line in state.trace)
    storage.write_bytes(storage.beside(out, storage.TRACE), lines.encode())


def _write(out: str, plan: RunPlan, facts: Facts, rows: Rows, state: State) -> Manifest:
    chosen = np.array(rows.uid[state.alive])
    kept = uids.sort_unique(chosen)
    uids.write_subset(out, kept)
    counts = {"kept": len(chosen), "uids": len(kept), "repeats": ranking.count_repeats(np.array(rows.uid))}
    found = {**facts, **counts, "steps_taken": state.step, "trace": [state.trace[0], state.trace[-1]]}
    return manifest.write_beside(out, plan, found)


def _remove(path: str) -> None:
    if storage.exists(path):
        storage.remove(path)


def _text(content: Facts, options: NormSimD) -> str:
    kept, pairs, rows, steps = (content[name] for name in ("kept", "pairs", "rows", "steps_taken"))
    share = console.percent(kept / pairs)
    start = "pairs with usable embeddings" if options.survivors is None else "survivors"
    first, last = (line["eigenvalues"][0] for line in content["trace"])
    lines = [
        f"kept {kept:,} of {pairs:,} pairs ({share}): {options.out}",
        f"from {rows:,} {start}, in {console.counted(steps, 'step')} of {-(-(rows - kept) // steps):,} pairs",
        f"the second moment's leading direction holds {first:.1%} of it at the start, {last:.1%} at the end;"
        f" every step: {storage.beside(options.out, storage.TRACE)}",
    ]
    masked = [f"{content['masked'][reason]:,} {reason}" for reason in BAD_REASONS.values() if content["masked"][reason]]
    if masked:
        listed = ", ".join(masked)
        lines.append(f"left out, bad image embeddings: {listed}; listed in {manifest.beside(options.out)}")
    if content["missing_survivors"]:
        lines.append(f"{content['missing_survivors']:,} survivors are not in the shards that can be read")
    if content["repeats"]:
        lines.append(
            f"{content['repeats']:,} pairs repeat the uid of another; the subset holds each uid once:"
            f" {content['uids']:,}"
        )
    lines.append(parallel.computed_on())
    skipped = [*content["unreadable"], *(entry["reason"] for entry in content["skipped"])]
    lines.append(console.skipped(manifest.beside(options.out), shard=skipped))
    return "\n".join(filter(None, lines))
