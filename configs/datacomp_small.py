"""DataComp small, from metadata to 38 tasks: negCLIPLoss, then NormSim to ImageNet, keep 30 % of the pool.

The fractions are those of the paper's authors for the small pool (45 %, then 30 %). Expects DataComp's metadata
in `datacomp/small/metadata` and ImageNet's image embeddings by the same model, OpenAI's ViT-L/14, in `in1k.npy`
(`clipdata embed imagenet --images-only --model l14=...` makes them). Then a ViT-B/32 is trained by DataComp's
recipe for the scale, with CLIP's tokenizer, from the hub or a folder, and evaluated on DataComp's data sets in
`datacomp/evalsets`, as its download_evalsets.py leaves them. All of it, or one command:

    clipdata run --config configs/datacomp_small.py
    clipdata train --config configs/datacomp_small.py
"""

from clipdata_jax.config import Evaluate, NegClipLoss, NormSim, Report, Reshard, Run, Score, Select, Train


def get_config() -> Run:
    """Options of `score`, `select`, `reshard`, `report`, `train` and `evaluate`."""
    return two_steps("small", first=0.45, keep=0.3)


def two_steps(scale: str, *, first: float, keep: float) -> Run:
    """negCLIPLoss to a share `first` of the pool of a scale, then NormSim to a share `keep`, of the whole pool."""
    work = f"datacomp/{scale}/negcliploss_normsim"
    return Run(
        score=Score(
            pool=f"datacomp/{scale}/metadata",
            out=f"{work}/scores",
            tag="l14",
            neg_clip_loss=NegClipLoss(batch_size=32_768, repeats=10, temperature=0.01),
            norm_sim=NormSim(target=("in1k=in1k.npy",)),
        ),
        select=Select(
            scores=(f"{work}/scores",),
            rule=f"top(neg_clip_loss, {first}) >> top(norm_sim_inf_in1k, {keep})",
            out=f"{work}/subset.npy",
        ),
        reshard=Reshard(
            sources=(f"datacomp/{scale}/shards",), subset=f"{work}/subset.npy", out=f"{work}/shards", on_bad="skip"
        ),
        report=Report(
            scores=(f"{work}/scores",),
            subset=f"{work}/subset.npy",
            pool=(f"datacomp/{scale}/shards",),
            out=f"{work}/report.html",
        ),
        train=Train(
            sources=(f"{work}/shards",),
            tokenizer="openai/clip-vit-base-patch32",
            recipe=f"datacomp-{scale}",
            out=f"{work}/run",
            on_bad="skip",
        ),
        evaluate=Evaluate(
            model=f"{work}/run/model", suite="datacomp", data="datacomp/evalsets", out=f"{work}/evaluation"
        ),
    )
