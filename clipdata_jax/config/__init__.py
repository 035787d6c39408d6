"""The options of every command: frozen dataclasses that check themselves. Imports no jax.

The command line is generated from these classes, and a `--config` file returns a `Run` of them.
"""

from __future__ import annotations

from clipdata_jax.config.base import Workers as Workers
from clipdata_jax.config.comparing import CompareModels as CompareModels
from clipdata_jax.config.deduplicating import Dedup as Dedup
from clipdata_jax.config.embedding import Embed as Embed
from clipdata_jax.config.evaluating import Evaluate as Evaluate
from clipdata_jax.config.exporting import Export as Export
from clipdata_jax.config.filtering import Entries as Entries
from clipdata_jax.config.filtering import Filter as Filter
from clipdata_jax.config.planning import Plan as Plan
from clipdata_jax.config.planning import RunSteps as RunSteps
from clipdata_jax.config.reading import Reading as Reading
from clipdata_jax.config.run import Run as Run
from clipdata_jax.config.run import load_run as load_run
from clipdata_jax.config.scoring import NegClipLoss as NegClipLoss
from clipdata_jax.config.scoring import NormSim as NormSim
from clipdata_jax.config.scoring import NormSimD as NormSimD
from clipdata_jax.config.scoring import Score as Score
from clipdata_jax.config.scoring import ScoreName as ScoreName
from clipdata_jax.config.selecting import Report as Report
from clipdata_jax.config.selecting import Reshard as Reshard
from clipdata_jax.config.selecting import Select as Select
from clipdata_jax.config.selecting import Uids as Uids
from clipdata_jax.config.training import Compute as Compute
from clipdata_jax.config.training import Demo as Demo
from clipdata_jax.config.training import EvaluationDuring as EvaluationDuring
from clipdata_jax.config.training import ModelChoice as ModelChoice
from clipdata_jax.config.training import Optimiser as Optimiser
from clipdata_jax.config.training import Train as Train
from clipdata_jax.config.training import TrainingInput as TrainingInput
from clipdata_jax.config.verifying import Verify as Verify
