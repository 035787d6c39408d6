"""How the small CLIP that ships with the demo is trained: `make demo-model` draws the data and runs this."""

from clipdata_jax.config import ModelChoice, Optimiser, Run, Train, TrainingInput


def get_config() -> Run:
    """Two towers of width 128 on 64 px drawings: 2.2 M parameters, 4.4 MB as float16."""
    return Run(
        train=Train(
            sources=("demo-model/tars",),
            tokenizer="demo-model/tokenizer",
            out="demo-model/run",
            model=ModelChoice(
                image_size=64, patch_size=8, width=128, layers=4, heads=4, embed_dim=128, context_length=32
            ),
            optimiser=Optimiser(
                batch_size=256, steps=1_000, warmup=100, learning_rate=1e-3, weight_decay=0.1, clip_norm=1.0
            ),
            # The captions say where in the image things are.
            input=TrainingInput(min_crop=1.0),
            checkpoint_every=250,
            seed=0,
        )
    )
