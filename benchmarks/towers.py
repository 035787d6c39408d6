"""CLIP ViT-B/32's towers against transformers' PyTorch CLIP: the same checkpoint, the same batch, in turn.

    python benchmarks/towers.py [--rounds 5] [--batch 32]

One JSON line a figure. What bounds a tower is the rate of float32 products: a line a tower says how many operations
one has and how long they take at the rate of a plain product; the work of the last layer that no output reads is
counted, though only PyTorch does it. Needs the extra `bench`. Weights are random.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from _timing import PRODUCT_GFLOP, alternate, anonymous_memory, median_ratio, peak_memory, plain_product, report
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clipdata_jax import models

# PyTorch's two attentions that run on a CPU; which is faster depends on the machine.
KINDS = ("eager", "sdpa")
PLAIN = "plain product"


def tower_gflop(config: models.TowerConfig, rows: int, positions: int) -> float:
    """Operations of a tower's layers: the products with weights and the two of the attention."""
    weights = 4 * config.width**2 + 2 * config.width * config.mlp_width
    return 2 * config.layers * rows * positions * (weights + 2 * positions * config.width) / 1e9


def batch_of(rows: int, config: models.CLIPConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels as uint8 and normalised, and captions that fill the context."""
    rng, size, text = np.random.default_rng(0), config.vision.image_size, config.text
    pixels = rng.integers(0, 256, (rows, size, size, 3), np.uint8)
    normalised = (pixels / 255 - np.array(config.image_mean)) / np.array(config.image_std)
    ids = rng.integers(1, text.vocab_size - 2, (rows, text.context_length), np.int32)
    ids[:, 0], ids[:, -1] = text.vocab_size - 2, text.vocab_size - 1
    return pixels, normalised.astype(np.float32), ids


def torch_calls(folder: str, normalised: np.ndarray, ids: np.ndarray) -> dict[str, Callable[[], np.ndarray]]:
    """Unit embeddings by transformers, with each of its attentions."""
    pixels, tokens = torch.from_numpy(normalised.transpose(0, 3, 1, 2).copy()), torch.from_numpy(ids).long()

    def unit(encode: Callable[..., Any], rows: torch.Tensor) -> np.ndarray:
        with torch.inference_mode():
            emb = encode(rows)
            # Since version 5 an output object, a tensor before.
            return torch.nn.functional.normalize(getattr(emb, "pooler_output", emb), dim=-1).numpy()

    calls: dict[str, Callable[[], np.ndarray]] = {}
    for kind in KINDS:
        model = transformers.CLIPModel.from_pretrained(folder, attn_implementation=kind).eval()
        calls[f"image, PyTorch {kind}"] = lambda model=model: unit(model.get_image_features, pixels)
        calls[f"text, PyTorch {kind}"] = lambda model=model: unit(model.get_text_features, tokens)
    return calls


def our_calls(model: models.CLIP, *inputs: np.ndarray) -> dict[str, Callable[[], jax.Array]]:
    """The same by this library, jitted."""
    structure, state = nnx.split(model)
    pixels, normalised, ids = map(jnp.asarray, inputs)
    image = jax.jit(lambda state, rows: nnx.merge(structure, state).encode_image(rows))
    text = jax.jit(lambda state, rows: nnx.merge(structure, state).encode_text(rows))
    return {
        "image": lambda: image(state, normalised),
        "image from uint8": lambda: image(state, pixels),
        "text": lambda: text(state, ids),
    }


def load(folder: str) -> models.CLIP:
    """The model on a mesh of all devices; reports what this process's memory grew by meanwhile."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), (jax.sharding.AxisType.Auto,))
    loaded: list[models.CLIP] = []
    gc.collect()
    peak_memory(lambda: None)  # gives back what was freed
    before = anonymous_memory()
    peak = peak_memory(lambda: loaded.append(models.load_clip(folder, sharding=NamedSharding(mesh, P()))))
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded))
    growth = peak - before
    report("load", devices=mesh.size, parameters_mb=parameters / 1e6, memory_growth_mb=growth / 1e6)
    return loaded[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models.save_clip(models.CLIP(models.VIT_B_32, rngs=nnx.Rngs(0)), folder)
        model = load(folder)
        inputs = batch_of(options.batch, model.config)
        theirs = torch_calls(folder, *inputs[1:])
    ours = our_calls(model, *inputs)
    for name, call in theirs.items():
        tower = name.split(",")[0]
        for mine in (mine for mine in ours if mine.startswith(tower)):
            difference = float(np.abs(np.asarray(ours[mine]()) - call()).max())
            assert difference < 2e-5, f"{mine} and {name} differ by {difference}"
            report(f"{mine} and {name}", largest_difference=difference)
    seconds = alternate({PLAIN: plain_product(), **theirs, **ours}, options.rounds)
    rate = PRODUCT_GFLOP / statistics.median(seconds[PLAIN])
    report(PLAIN, gflop_per_second=rate)
    vision, text = model.config.vision, model.config.text
    for tower, config, positions in (("image", vision, vision.patches + 1), ("text", text, text.context_length)):
        gflop = tower_gflop(config, options.batch, positions)
        report(f"{tower} at the plain product's rate", gflop=gflop, seconds=gflop / rate)
    for name in (*theirs, *ours):
        taken = statistics.median(seconds[name])
        report(name, seconds=taken, rows_per_second=options.batch / taken)
    for name in ours:
        tower = name.split()[0]
        faster = min((f"{tower}, PyTorch {kind}" for kind in KINDS), key=lambda k: statistics.median(seconds[k]))
        report(f"{name}: speed to {faster.split(', ')[1]}", ratio=median_ratio(seconds, faster, name))


if __name__ == "__main__":
    main()
