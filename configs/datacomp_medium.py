"""DataComp medium, from metadata to 38 tasks: negCLIPLoss, then NormSim to ImageNet, keep 20 % of the pool.

The fractions are those of the paper's authors for the medium pool (30 %, then 20 %); all else is as in
`datacomp_small.py`, with `datacomp/medium` for `datacomp/small`.
"""

import runpy
from pathlib import Path

from clipdata_jax.config import Run


def get_config() -> Run:
    """Options of `score`, `select`, `reshard`, `report`, `train` and `evaluate`."""
    two_steps = runpy.run_path(str(Path(__file__).with_name("datacomp_small.py")))["two_steps"]
    return two_steps("medium", first=0.3, keep=0.2)
