"""DataComp medium without a target: negCLIPLoss to 30 % of the pool, then NormSim_2-D to 20 % in 500 steps.

The fractions and steps are those of the paper's authors. Expects DataComp's metadata in `datacomp/medium/metadata`.
"""

from clipdata_jax.config import NegClipLoss, NormSimD, Reshard, Run, Score, Select


def get_config() -> Run:
    """Options of `score`, `select`, `norm-sim-d` and `reshard`, in this order."""
    pool, work = "datacomp/medium/metadata", "datacomp/medium/negcliploss_normsim2d"
    return Run(
        score=Score(
            pool=pool,
            out=f"{work}/scores",
            tag="l14",
            scores=("neg_clip_loss",),
            neg_clip_loss=NegClipLoss(temperature=0.01),
        ),
        select=Select(scores=(f"{work}/scores",), rule="top(neg_clip_loss, 0.3)", out=f"{work}/survivors.npy"),
        norm_sim_d=NormSimD(
            pool=pool, survivors=f"{work}/survivors.npy", tag="l14", fraction=0.2, steps=500, out=f"{work}/subset.npy"
        ),
        reshard=Reshard(
            sources=("datacomp/medium/shards",), subset=f"{work}/subset.npy", out=f"{work}/shards", on_bad="skip"
        ),
    )
