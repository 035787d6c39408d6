"""Metadata that has every case DataComp's filters tell apart, and the filters once more, a pair at a time."""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fasttext
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipdata_jax.filters import languages

CAPTIONS = [
    "a photograph of a red house beside the river",
    "the house is old",
    "the house",
    "house",
    "a b c",
    "a b cd",
    "a\tb\ncd",
    "a photo\nof the\nsea",
    "two\u00a0words here",
    "a small house — “on the hill” 🏠",
    "ein kleines rotes Haus steht neben dem Fluss",
    "一只猫坐在红色的房子旁边",
    "",
    "      ",
    "\n\n\n\n\n\n",
    None,
]
SIZES = [
    (200, 200),
    (199, 400),
    (400, 199),
    (600, 200),
    (200, 601),
    (1000, 334),
    (999, 333),
    (0, 0),
    (None, 300),
    (300, None),
]
# Many pairs share a score; 0.28 as float32 lies above 0.28.
SCORES = [0.28, 0.27999, 0.25, 0.25, 0.31, 0.12, None, math.nan, -0.1, 0.25, 0.31]
Row = dict[str, Any]


def rows() -> list[Row]:
    """Every caption with every size, scores going round."""
    made = []
    for index, (caption, (width, height)) in enumerate(itertools.product(CAPTIONS, SIZES)):
        made.append(
            {
                "uid": hashlib.sha256(str(index).encode()).hexdigest()[:32],
                "text": caption,
                "original_width": width,
                "original_height": height,
                "clip_b32_similarity_score": SCORES[index % len(SCORES)],
                "clip_l14_similarity_score": SCORES[index * 7 % len(SCORES)],
            }
        )
    return made


def write(folder: Path, pairs: Sequence[Row], parts: int = 3) -> None:
    """Writes parquet files of the rows, and one of none."""
    folder.mkdir()
    schema = pa.schema(
        {
            "uid": pa.string(),
            "text": pa.string(),
            "original_width": pa.int64(),
            "original_height": pa.int64(),
            "clip_b32_similarity_score": pa.float32(),
            "clip_l14_similarity_score": pa.float64(),
        }
    )
    for part in range(parts + 1):
        here = pairs[part::parts] if part < parts else []
        pq.write_table(pa.Table.from_pylist(list(here), schema=schema), folder / f"{part:08d}.parquet")


def is_english(caption: str) -> bool:
    """What fastText says of a caption as one line."""
    labels, _ = _model().predict(caption.replace("\n", " "))
    return labels == ("__label__en",)


@functools.cache
def _model() -> Any:
    return fasttext.load_model(languages.small_model())


def basic(row: Row) -> bool:
    """DataComp's basic filter of one pair."""
    text, width, height = row["text"], row["original_width"], row["original_height"]
    if text is None or width is None or height is None or min(width, height) < 200:
        return False
    return max(width, height) / min(width, height) <= 3 and len(text.split()) > 2 and len(text) > 5 and is_english(text)


def reaches(row: Row, arch: str, threshold: float) -> bool:
    """A score of at least a threshold, in the column's precision."""
    score = row[f"clip_{arch}_similarity_score"]
    kind = {"b32": np.float32, "l14": np.float64}[arch]
    return score is not None and not math.isnan(score) and bool(kind(score) >= kind(threshold))


def fraction(pairs: Sequence[Row], arch: str, share: float) -> list[Row]:
    """The pairs that reach the score which stands after the int(N f) highest, none being lowest."""
    name = f"clip_{arch}_similarity_score"
    scored = [row for row in pairs if row[name] is not None and not math.isnan(row[name])]
    ordered = sorted((row[name] for row in scored), reverse=True)
    after = int(len(pairs) * share)
    return scored if after >= len(ordered) else [row for row in scored if row[name] >= ordered[after]]


def subset(pairs: Sequence[Row], keep: Callable[[Row], bool] = lambda row: True) -> list[str]:
    """The uids of what is kept, in order."""
    return sorted(row["uid"] for row in pairs if keep(row))
