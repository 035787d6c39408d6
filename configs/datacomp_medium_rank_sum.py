"""DataComp medium by the sum of two ranks: negCLIPLoss and NormSim count alike, 20 % of the pool is kept.

The variant that the paper's authors try beside their two steps. It selects from the scores that
`configs/datacomp_medium.py` makes:

    clipdata select --config configs/datacomp_medium_rank_sum.py
"""

import runpy
from dataclasses import replace
from pathlib import Path

from clipdata_jax.config import Run


def get_config() -> Run:
    """Options of `select`."""
    medium: Run = runpy.run_path(str(Path(__file__).with_name("datacomp_medium.py")))["get_config"]()
    assert medium.select is not None
    rule = "top(rank(neg_clip_loss) + rank(norm_sim_inf_in1k), 0.2)"
    return Run(select=replace(medium.select, rule=rule, out="datacomp/medium/rank_sum/subset.npy"))
