"""A pool with scores and a subset, and pages made of them."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from clipdata_jax import config
from clipdata_jax.commands import report
from clipdata_jax.formats import score_tables, tars, uids
from clipdata_jax.runs import records

RULE = "top(neg_clip_loss, 0.3) >> top(norm_sim_inf_in1k, 0.2)"


def image(seed: int) -> bytes:
    buffer = io.BytesIO()
    colour = tuple(int(c) for c in np.random.default_rng(seed).integers(0, 256, 3))
    Image.new("RGB", (32, 24), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def uid_hex(row: int) -> str:
    return hashlib.sha256(str(row).encode()).hexdigest()[:32]


def make_pool(folder: Path) -> Path:
    """120 pairs in two tars and a score table of two parts; the second tar's samples bring no uid."""
    random = np.random.default_rng(0)
    names = [uid_hex(row) if row < 60 else uids.uid_of("b.tar", f"{row:04d}") for row in range(120)]
    for tar, rows in (("a", range(60)), ("b", range(60, 120))):
        members = []
        for row in rows:
            members += [(f"{row:04d}.jpg", image(row)), (f"{row:04d}.txt", f"caption {row}".encode())]
            members += [(f"{row:04d}.json", json.dumps({"uid": names[row]}).encode())] if row < 60 else []
        tars.write_tar(str(folder / f"tars/{tar}.tar"), members)
    scores = {
        name: random.normal(size=120).astype(np.float32)
        for name in ("clip_score", "neg_clip_loss", "norm_sim_inf_in1k")
    }
    null = np.arange(120) == 7
    uid = uids.from_hex(names)
    (folder / "scores").mkdir()
    for part, rows in (("a", slice(0, 60)), ("b", slice(60, 120))):
        data = score_tables.part_bytes(uid[rows], {n: v[rows] for n, v in scores.items()}, null[rows])
        (folder / f"scores/{part}.parquet").write_bytes(data)
    kept = np.argsort(-np.where(null, -9, scores["neg_clip_loss"]))[:30]
    uids.write_subset(str(folder / "subset.npy"), uid[kept])
    step = {"rule": "top(neg_clip_loss, 0.3)", "seen": 120, "kept": 36, "asked": 36}
    select = {
        "command": "select",
        "rule": RULE,
        "steps": [step],
        "replaced_share": 0.034,
        "versions": {"clipdata_jax": "9.8.7"},
    }
    (folder / "subset.npy.manifest.json").write_bytes(records.to_json(select))
    return folder


def options(folder: Path, **changes) -> config.Report:
    given = {
        "scores": (str(folder / "scores"),),
        "subset": str(folder / "subset.npy"),
        "out": str(folder / "page.html"),
        "pool": (str(folder / "tars"),),
        "images": 3,
    }
    return config.Report(**(given | changes))


def page_of(chosen: config.Report) -> str:
    report.run(chosen)
    return Path(chosen.out).read_text("utf-8")
