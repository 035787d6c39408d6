"""Contrastive training of a CLIP model: the order of the pairs, the step, the loop.

Names are resolved when first used (PEP 562): a process that only decodes images loads no jax.
"""

from __future__ import annotations

from clipdata_jax.lazy_names import lazy_names

_HOME = {
    "Checkpoints": "checkpoints",
    "flops_per_pair": "flops",
    "peak_flops": "flops",
    "Schedule": "loop",
    "StepDone": "loop",
    "Batch": "input",
    "DeviceBatches": "device_batches",
    "InputPipeline": "input",
    "PairIndex": "pair_index",
    "build_index": "pair_index",
    "train": "loop",
    "contrastive_loss": "loss",
    "sigmoid_loss": "loss",
    "adamw": "optimizer",
    "learning_rate_at": "optimizer",
    "batch_rows": "order",
    "TrainState": "step",
    "init_state": "step",
    "make_step": "step",
    "split_model": "step",
    "whole_params": "step",
}
__all__ = [*_HOME]
__getattr__, __dir__ = lazy_names(__name__, _HOME)
