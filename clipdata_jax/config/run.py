"""What a config file returns: the options of each command that it sets."""

from __future__ import annotations

import dataclasses

from clipdata_jax.config.embedding import Embed
from clipdata_jax.config.filtering import Filter
from clipdata_jax.config.norm_sim_d import NormSimD
from clipdata_jax.config.scoring import Score
from clipdata_jax.config.selecting import Report, Reshard, Select
from clipdata_jax.config.training import Demo, Evaluate, Train
from clipdata_jax.config.uid_sets import Uids
from clipdata_jax.config.verifying import Verify


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What a config file returns from `get_config()`: the options of each command that it sets."""

    embed: Embed | None = None
    score: Score | None = None
    select: Select | None = None
    filter: Filter | None = None
    norm_sim_d: NormSimD | None = None
    uids: Uids | None = None
    reshard: Reshard | None = None
    report: Report | None = None
    train: Train | None = None
    evaluate: Evaluate | None = None
    verify: Verify | None = None
    demo: Demo | None = None
