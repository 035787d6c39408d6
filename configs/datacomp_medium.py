"""DataComp medium: negCLIPLoss, then NormSim to ImageNet, keep 20 % of the pool.

The fractions are those of the paper's authors for the medium pool (30 %, then 20 %). Expects DataComp's metadata
in `datacomp/medium/metadata` and ImageNet's picture embeddings by the same model, OpenAI's ViT-L/14, in `in1k.npy`
(`clipdata embed imagenet --images-only --tag l14 ...` makes them).
"""

from clipdata_jax.config import NegClipLoss, NormSim, Report, Reshard, Run, Score, Select


def get_config() -> Run:
    """Options of `score`, `select`, `reshard` and `report`; run each with `--config configs/datacomp_medium.py`."""
    work = "datacomp/medium/negcliploss_normsim"
    return Run(
        score=Score(
            pool="datacomp/medium/metadata",
            out=f"{work}/scores",
            tag="l14",
            neg_clip_loss=NegClipLoss(batch_size=32_768, repeats=10, temperature=0.01),
            norm_sim=NormSim(target=("in1k=in1k.npy",)),
        ),
        select=Select(
            scores=(f"{work}/scores",),
            rule="top(neg_clip_loss, 0.3) >> top(norm_sim_inf_in1k, 0.2)",  # of the whole pool
            out=f"{work}/subset.npy",
        ),
        reshard=Reshard(
            tars=("datacomp/medium/shards",), subset=f"{work}/subset.npy", out=f"{work}/shards", on_bad="skip"
        ),
        report=Report(
            scores=(f"{work}/scores",),
            subset=f"{work}/subset.npy",
            tars=("datacomp/medium/shards",),
            out=f"{work}/report.html",
        ),
    )
