"""Trains the small CLIP that ships with the demo: `make demo-model`. Not needed to run the demo.

Draws sound pairs (and a few of what the web is full of: generic captions, images of text), trains a
tokenizer on their captions, trains the model by `clipdata train` with `configs/demo_model.py`, and puts the
result, in float16, into the package.
"""

from __future__ import annotations

import runpy
import shutil
import sys
from pathlib import Path

from clipdata_jax.demo.pool import make_clean_tars
from clipdata_jax.formats import tars

PAIRS = 40_000
SEED = 1  # the demo's pool is drawn by another maker, so no image of it is seen in training
WEB_SHARE = 0.15
VOCABULARY = 1_024
SHIPPED = Path(__file__).parents[1] / "clipdata_jax" / "demo" / "model"


def main(config_file: str) -> None:
    """Makes the data, trains, and replaces the shipped model.

    Args:
      config_file: `configs/demo_model.py`.
    """
    from clipdata_jax import models
    from clipdata_jax.commands import train

    options = runpy.run_path(config_file)["get_config"]().train
    (folder,) = options.sources
    if not Path(folder).exists():
        make_clean_tars(folder, pairs=PAIRS, seed=SEED, shards=8, web_share=WEB_SHARE)
    captions = (sample.members["txt"].decode() for path in tars.find_tars([folder]) for sample in tars.read_tar(path))
    length = options.settings().sizes.context_length
    models.train_tokenizer(captions, options.tokenizer, vocab_size=VOCABULARY, context_length=length)
    train.run(options)
    trained = Path(options.out) / "model"
    SHIPPED.mkdir(exist_ok=True)
    models.save_clip(models.load_clip(trained), SHIPPED, dtype="float16")
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(trained / name, SHIPPED / name)
    print(f"{SHIPPED}: {sum(file.stat().st_size for file in SHIPPED.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main(sys.argv[1])
