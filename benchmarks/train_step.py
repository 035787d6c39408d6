"""A training step of CLIP ViT-B/32 against open_clip's in PyTorch: the same batch size, in turn.

    python benchmarks/train_step.py [--rounds 5] [--batch 32] [--peer-python PATH] [--layers N]

One JSON line a figure: seconds of a step (gradients and AdamW, float32), of each tower's forward pass and gradient, and
ratios of turns that followed each other. open_clip runs in a process of its own, in an interpreter that has it. Weights
are random.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _timing import alternate, median_ratio, report
from flax import nnx

from clipdata_jax import models, training
from clipdata_jax.config.recipes import Precision
from clipdata_jax.runtime import parallel

PEER = "open_clip step"
# Run by the other interpreter: a step, and a line when done, for every line that it reads.
PEER_PROGRAM = """
import sys, torch, open_clip
batch, layers = int(sys.argv[1]), int(sys.argv[2])
vision = dict(image_size=224, layers=layers, width=768, patch_size=32)
text = dict(context_length=77, vocab_size=49408, width=512, heads=8, layers=layers)
model = open_clip.CLIP(embed_dim=512, vision_cfg=vision, text_cfg=text).train()
split = [p for p in model.parameters() if p.ndim >= 2], [p for p in model.parameters() if p.ndim < 2]
groups = [dict(params=split[0], weight_decay=0.2), dict(params=split[1], weight_decay=0.0)]
optimizer = torch.optim.AdamW(groups, lr=1e-5, betas=(0.9, 0.98), eps=1e-6)
loss_of = open_clip.ClipLoss()
pixels, ids = torch.randn(batch, 3, 224, 224), torch.randint(1, 49405, (batch, 77))
ids[:, 0], ids[:, -1] = 49406, 49407
for _ in sys.stdin:
    optimizer.zero_grad()
    image, text, scale = model(pixels, ids)
    loss = loss_of(image, text, scale)
    loss.backward()
    optimizer.step()
    print(loss.item(), flush=True)
"""


def peer_step(python: str, batch: int, layers: int) -> Callable[[], Any]:
    """A step of open_clip in another process, which sleeps between them."""
    command = [python, "-c", PEER_PROGRAM, str(batch), str(layers)]
    peer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert peer.stdin is not None
    assert peer.stdout is not None
    send, receive = peer.stdin, peer.stdout

    def step() -> float:
        send.write("\n")
        send.flush()
        return float(receive.readline())

    return step


def our_calls(config: models.CLIPConfig, batch: int, precision: Precision) -> dict[str, Callable[[], Any]]:
    """The step, and each tower's forward pass and gradient, jitted."""
    rng, mesh = np.random.default_rng(0), parallel.local_mesh()
    pixels = rng.integers(0, 256, (batch, 224, 224, 3), np.uint8)
    ids = rng.integers(1, 49_405, (batch, 77), np.int32)
    ids[:, 0], ids[:, -1] = 49_406, 49_407
    rows = [parallel.to_global(part, mesh) for part in (pixels, ids, np.ones(batch, bool))]
    params, merge = training.split_model(models.CLIP(config, rngs=nnx.Rngs(0)))
    optimizer = training.adamw(learning_rate=1e-5, warmup=10, steps=1000, weight_decay=0.2)
    step_function = training.make_step(merge, optimizer, mesh, precision=precision)
    state = training.init_state(params, optimizer, mesh)

    def step() -> jax.Array:
        nonlocal state
        state, metrics = step_function(state, *rows)
        jax.block_until_ready(state)
        return metrics["loss"]

    calls: dict[str, Callable[[], Any]] = {"step": step}
    weights_bd = jnp.asarray(rng.standard_normal((batch, config.embed_dim)), jnp.float32)
    towers = {
        "image": ("vision.", pixels, lambda model, rows: model.encode_image(rows)),
        "text": ("text.", ids, lambda model, rows: model.encode_text(rows)),
    }
    for name, (prefix, inputs, encode) in towers.items():
        own = {path: value for path, value in params.items() if path.startswith(prefix)}

        def forward(own: Any, inputs: Any, encode: Any = encode) -> jax.Array:
            emb_bd: jax.Array = encode(merge({**params, **own}), inputs)
            return emb_bd

        def scalar(own: Any, inputs: Any, forward: Any = forward) -> jax.Array:
            return jnp.sum(forward(own, inputs) * weights_bd)

        arguments = own, jnp.asarray(inputs)
        calls[f"{name} forward"] = functools.partial(jax.jit(forward), *arguments)
        calls[f"{name} gradient"] = functools.partial(jax.jit(jax.grad(scalar)), *arguments)
    return calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--peer-python", default=sys.executable, help="an interpreter with torch and open_clip")
    options = parser.parse_args()
    vision, text = models.VIT_B_32.vision, models.VIT_B_32.text
    assert vision is not None
    assert text is not None
    config = dataclasses.replace(
        models.VIT_B_32,
        vision=dataclasses.replace(vision, layers=options.layers),
        text=dataclasses.replace(text, layers=options.layers),
    )
    peer = peer_step(options.peer_python, options.batch, options.layers)
    seconds = alternate({PEER: peer, **our_calls(config, options.batch, options.precision)}, options.rounds)
    for name, taken in seconds.items():
        report(name, seconds=statistics.median(taken), batch=options.batch, layers=options.layers)
    report("step: speed to open_clip's", ratio=median_ratio(seconds, PEER, "step"))
    for tower in ("image", "text"):
        report(f"{tower}: gradient to forward", ratio=median_ratio(seconds, f"{tower} gradient", f"{tower} forward"))


if __name__ == "__main__":
    main()
