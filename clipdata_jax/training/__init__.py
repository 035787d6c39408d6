"""Contrastive training of a CLIP model: the order of the pairs, the step, the loop."""

from clipdata_jax.training.loop import TrainingPairs as TrainingPairs
from clipdata_jax.training.loop import last_checkpoint as last_checkpoint
from clipdata_jax.training.loop import train as train
from clipdata_jax.training.optimizer import adamw as adamw
from clipdata_jax.training.order import batch_rows as batch_rows
from clipdata_jax.training.step import TrainState as TrainState
from clipdata_jax.training.step import contrastive_loss as contrastive_loss
from clipdata_jax.training.step import init_state as init_state
from clipdata_jax.training.step import make_step as make_step
from clipdata_jax.training.step import split_model as split_model
