"""All steps from tars to a page and a csv, on the pool that the demo draws.

    clipdata demo
    clipdata run --config configs/demo_steps.py

The model is the small one that ships with the package; for a pool of your own name a CLIP checkpoint and your tars.
"""

from pathlib import Path

import clipdata_jax
from clipdata_jax.config import Embed, Export, NegClipLoss, Report, Reshard, Run, Score, Select

MODEL = Path(clipdata_jax.__file__).parent / "demo" / "model"


def get_config() -> Run:
    """Options of `embed`, `score`, `select`, `reshard`, `report` and `export`."""
    pool, work = "demo-output/pool", "demo-steps"
    return Run(
        embed=Embed(sources=(pool,), model=(f"demo={MODEL}",), out=f"{work}/metadata"),
        score=Score(pool=f"{work}/metadata", out=f"{work}/scores", neg_clip_loss=NegClipLoss(batch_size=1_024)),
        select=Select(scores=(f"{work}/scores",), rule="top(neg_clip_loss, 0.5)", out=f"{work}/subset.npy"),
        reshard=Reshard(sources=(pool,), subset=f"{work}/subset.npy", out=f"{work}/selected"),
        report=Report(
            scores=(f"{work}/scores",), subset=f"{work}/subset.npy", pool=(pool,), out=f"{work}/report.html", images=1
        ),
        export=Export(
            scores=(f"{work}/scores",), metadata=f"{work}/metadata", top=(100, "neg_clip_loss"), out=f"{work}/best.csv"
        ),
    )
