"""What a report takes from the pool's tars: pictures and captions of pairs, lengths and languages of captions."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from clipdata_jax.embedding import samples
from clipdata_jax.errors import InputError
from clipdata_jax.filters.languages import Languages
from clipdata_jax.formats import score_tables, tars, uids
from clipdata_jax.report import page, thumbnails
from clipdata_jax.report.captions import Caption
from clipdata_jax.runtime import console


def read(
    table: score_tables.ScoreTable,
    paths: Sequence[str],
    *,
    shown: Collection[int],
    described: Collection[int],
    skipped: list[str] | None = None,
) -> tuple[dict[int, page.Pair], dict[int, Caption]]:
    """Reads the tars once, to the end or until all rows are found.

    Args:
      table: names the rows' uids.
      paths: of the tars.
      shown: rows whose pictures and captions are wanted.
      described: rows of whose captions length and language are wanted; rows may be in both.
      skipped: takes the reasons why tars could not be read; None: the first such is an error.

    Returns:
      row -> caption and picture, and row -> what its caption is like, of those rows that the tars hold.

    Raises:
      InputError: a tar is damaged.
    """
    wanted: dict[str, list[int]] = {}
    rows = sorted({*shown, *described})
    for row, uid in zip(rows, uids.to_hex(_uids_of(table, rows)), strict=True):
        wanted.setdefault(uid, []).append(row)
    pairs: dict[int, page.Pair] = {}
    captions: dict[int, Caption] = {}
    languages = _languages()
    with console.bar(total=len(paths), unit="tar", name="pictures") as bar:
        for path in paths:
            if not wanted:
                break
            for sample in _samples(path, skipped):
                found = wanted.pop(_uid(path, sample), ())
                here = [row for row in found if row in shown]
                if here:
                    pairs.update(dict.fromkeys(here, _pair(sample)))
                if there := [row for row in found if row in described]:
                    captions.update(dict.fromkeys(there, _described(_caption(sample), languages)))
            bar.update(1)
    return pairs, captions


def _languages() -> Languages | None:
    """The model in fastText's small form; None where the extra that brings it isn't installed."""
    try:
        return Languages()
    except InputError:
        return None


def _described(caption: str, languages: Languages | None) -> Caption:
    return Caption(len(caption.split()), None if languages is None else languages.of(caption))


def _samples(path: str, skipped: list[str] | None) -> Iterator[tars.Sample]:
    try:
        yield from tars.read_tar(path)
    except InputError as error:
        if skipped is None:
            raise InputError(f"{error} (or use --on-bad skip)") from error
        skipped.append(str(error))


def _uids_of(table: score_tables.ScoreTable, rows: Sequence[int]) -> np.ndarray:
    """The uids of some rows of the whole table, reading no part that holds none of them."""
    ends = np.cumsum(table.rows)
    order = np.asarray(rows, np.int64)
    part_of = np.searchsorted(ends, order, side="right")
    found = np.empty(len(order), uids.DTYPE)
    several = np.unique(part_of).tolist()
    read = table.ahead(table.read_uids, [table.parts[part] for part in several])
    for part, uid in zip(several, read, strict=True):
        here = part_of == part
        found[here] = uid[order[here] - (ends[part] - table.rows[part])]
    return found


def _uid(path: str, sample: tars.Sample) -> str:
    try:
        return samples.sample_uid(path, sample)
    except InputError:  # `embed` stops at such a sample or leaves it out, so it has no score
        return ""


def _pair(sample: tars.Sample) -> page.Pair:
    picture = sample.image()
    return page.Pair(_caption(sample), "no picture" if picture is None else thumbnails.make(picture))


def _caption(sample: tars.Sample) -> str:
    """The caption that `embed` takes, in whatever state it is."""
    if "txt" in sample.members:
        return sample.members["txt"].decode("utf-8", "replace")
    fields = object_of(sample.members.get("json", b""))
    several = fields.get("captions")
    caption = fields.get("caption")
    if caption is None and isinstance(several, list) and several:
        caption = several[0]
    return caption if isinstance(caption, str) else ""


def object_of(data: bytes) -> dict[str, Any]:
    """The JSON object that strangers' bytes hold; {} if they hold anything else."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
