"""Makes tests/golden/training: what open_clip's initial weights are like, and the losses of 50 of its steps.

    pip install torch open_clip_torch
    python tools/make_golden_training.py tests/golden/training

`initial.json`: the spread of every tensor of a small model over many initialisations. `open_clip_config.json`,
`open_clip_model.safetensors`: one such model, rounded to float16 and then trained in float32. `losses.npz`: the loss
and the logit scale of each step. Inputs are drawn by NumPy from the step, as `batch` says; the test draws the same.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip_train.scheduler import cosine_lr
from safetensors.torch import save_file

WIDTH, LAYERS, IMAGE, VOCABULARY, CONTEXT, EMBED = 32, 2, 16, 100, 12, 16
STEPS, WARMUP, RATE, DECAY, BATCH, BATCHES = 50, 10, 1e-3, 0.2, 16, 4
DRAWS = 200
CONFIG: dict[str, Any] = {
    "embed_dim": EMBED,
    "vision_cfg": {"image_size": IMAGE, "patch_size": 8, "layers": LAYERS, "width": WIDTH, "head_width": 16},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": 24, "heads": 2, "layers": LAYERS},
}


def main(folder: Path) -> None:
    """Writes all files."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    (folder / "initial.json").write_text(json.dumps(spreads(), indent=1) + "\n")
    model = open_clip.CLIP(**CONFIG)
    rounded = {name: value.half() for name, value in model.state_dict().items()}
    save_file(rounded, folder / "open_clip_model.safetensors")
    moments = {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)}
    content = {"model_cfg": CONFIG, "preprocess_cfg": moments}
    (folder / "open_clip_config.json").write_text(json.dumps(content, indent=2) + "\n")
    model.load_state_dict({name: value.float() for name, value in rounded.items()})
    losses, scales = train(model)
    np.savez_compressed(folder / "losses.npz", loss=losses, logit_scale=scales)


def spreads() -> dict[str, list[float]]:
    """Tensor -> mean, standard deviation and largest magnitude of its values over many initialisations."""
    drawn = [open_clip.CLIP(**CONFIG).state_dict() for _ in range(DRAWS)]
    found = {}
    for name in drawn[0]:
        values = torch.stack([one[name].double() for one in drawn])
        found[name] = [values.mean().item(), values.std(correction=0).item(), values.abs().max().item()]
    return found


def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and tokens of a step; a few batches come again and again, so that the model learns them."""
    rng = np.random.default_rng(step % BATCHES)
    pixels = rng.integers(0, 256, (BATCH, IMAGE, IMAGE, 3), np.uint8)
    ids = rng.integers(0, VOCABULARY - 1, (BATCH, CONTEXT), np.int32)
    ids[np.arange(BATCH), rng.integers(1, CONTEXT, BATCH)] = VOCABULARY - 1
    return pixels, ids


def train(model: open_clip.CLIP) -> tuple[np.ndarray, np.ndarray]:
    """Trains as open_clip's main program does; returns the loss and the logit scale before each step."""
    loss_of = open_clip.ClipLoss()
    plain = {name for name, value in model.named_parameters() if value.ndim < 2}
    optimizer = torch.optim.AdamW(
        [
            {"params": [value for name, value in model.named_parameters() if name in plain], "weight_decay": 0.0},
            {"params": [value for name, value in model.named_parameters() if name not in plain], "weight_decay": DECAY},
        ],
        lr=RATE,
        betas=(0.9, 0.98),
        eps=1e-6,
    )
    rate = cosine_lr(optimizer, RATE, WARMUP, STEPS)
    mean, std = (torch.tensor(value) for value in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    losses, scales = [], []
    for step in range(STEPS):
        rate(step)
        pixels, ids = map(torch.from_numpy, batch(step))
        images = ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)
        optimizer.zero_grad()
        scales.append(model.logit_scale.item())
        loss = loss_of(*model(images, ids.long()))
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        losses.append(loss.item())
    return np.array(losses), np.array(scales)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
