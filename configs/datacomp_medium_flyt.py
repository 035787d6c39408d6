"""DataComp medium by FLYT's published scores and weights: 128 million draws, of which the likeliest pairs get several.

M-FLYT's sum of twelve scores (Shechter and Carmon 2025, arXiv:2503.08805, table 2; its weights are published to two
digits), and soft-cap sampling with the paper's penalty. The table of the twelve scores,
https://huggingface.co/datasets/formll/M-FLYT-input-scores, is joined as it is by the pool's keys; the score table that
`configs/datacomp_medium.py` makes only names the pairs:

    clipdata select --config configs/datacomp_medium_flyt.py
"""

import runpy
from dataclasses import replace
from pathlib import Path

from clipdata_jax.config import Run

WEIGHTS = {
    "vit_b_32": 0.08,
    "vit_l_14": 0.21,
    "DFN_Base": 0.60,
    "DFN_FT": 0.80,
    "CC2M_Classifier": 0.17,
    "IN1K_Classifier": 0.36,
    "FLYT": 0.65,
    "normsim_inf": 0.55,
    "negCLIPLoss": 0.51,
    "hype_lorentzian_distance": 0.45,
    "hype_image_specificity": -0.05,
    "hype_text_specificity": 0.02,
}


def get_config() -> Run:
    """Options of `select`."""
    medium: Run = runpy.run_path(str(Path(__file__).with_name("datacomp_medium.py")))["get_config"]()
    assert medium.select is not None
    logit = " + ".join(f"{weight} * {column}" for column, weight in WEIGHTS.items())
    select = replace(
        medium.select,
        columns=("M-FLYT-input-scores",),
        on="key",
        rule=f"soft_cap({logit}, 128_000_000, penalty=0.15)",
        out="datacomp/medium/flyt/subset.npy",
    )
    return Run(select=select)
