"""`clipdata embed` end to end against the slower of its two halves, and how its memory grows with the images.

    python benchmarks/embed.py [--rounds 5] [--images 192] [--no-memory]

One JSON line a figure. The limit: host and devices work at one time, so embed can't be faster than the slower of
them alone; on a CPU, where both need the same cores, not faster than 1 / (1 / host + 1 / towers). Rates of embed
are from the end of its first tar (models loaded, programs compiled) to the end of its last.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _timing import PRODUCT_GFLOP, alternate, median_ratio, peak_memory, plain_product, report
from PIL import Image

BATCH = 32
CAPTION = "a photograph of a quiet street with a red house beside a tall tree, number {}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=192, help="images of each round, in tars of 64")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory figures out")
    parser.add_argument("--peak-of", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        print(peak_of_embed(*options.peak_of))
        return
    with tempfile.TemporaryDirectory() as folder:
        speed(Path(folder), options.rounds, options.images)
        if not options.no_memory:
            memory(Path(folder))


def speed(folder: Path, rounds: int, images: int) -> None:
    checkpoint = make_checkpoint(folder / "vit_b_32", small=False)
    (folder / "pool").mkdir()
    for number in range(1 + images // 64):  # the first warms up
        write_tar(folder / "pool" / f"{number:03}.tar", 64, seed=number)
    rates: dict[str, list[float]] = {"host": [], "towers": [], "embed": []}
    host, towers = host_alone(folder / "pool", checkpoint), towers_alone(checkpoint)
    plain = statistics.median(alternate({"plain": plain_product()}, 5)["plain"])
    report("plain product", gflop_per_second=PRODUCT_GFLOP / plain)
    for turn in range(rounds + 1):
        found = {"host": host(), "towers": towers(), "embed": embed(folder, checkpoint, f"out{turn}")}
        if turn:
            for name, rate in found.items():
                rates[name].append(rate)
    for name, several in rates.items():
        report(name, pairs_per_second=statistics.median(several))
    seconds = {name: [1 / rate for rate in several] for name, several in rates.items()}
    seconds["slower"] = [max(h, t) for h, t in zip(seconds["host"], seconds["towers"], strict=True)]
    seconds["both in turn"] = [h + t for h, t in zip(seconds["host"], seconds["towers"], strict=True)]
    report("speed to the slower half", ratio=median_ratio(seconds, "slower", "embed"))
    report("speed to both halves in turn", ratio=median_ratio(seconds, "both in turn", "embed"))


def host_alone(pool: Path, checkpoint: Path) -> Callable[[], float]:
    """Pairs a second of reading, decoding and tokenizing."""
    from clipdata_jax import models
    from clipdata_jax.embedding.samples import Decoded, decoded_samples
    from clipdata_jax.formats import tars

    transform, tokenizer = models.load_image_transform(checkpoint), models.load_tokenizer(checkpoint)

    def run() -> float:
        start, pairs = time.perf_counter(), 0
        for path in sorted(map(str, pool.glob("*.tar"))):
            found = decoded_samples(tars.read_tar(path), [transform], path=path, on_bad="stop")
            captions = [item.caption for item in found if isinstance(item, Decoded)]
            tokenizer(captions)
            pairs += len(captions)
        return pairs / (time.perf_counter() - start)

    return run


def towers_alone(checkpoint: Path) -> Callable[[], float]:
    """Pairs a second of the towers on pixels and ids that are there."""
    from clipdata_jax import models
    from clipdata_jax.embedding.encoder import Encoder
    from clipdata_jax.runtime import parallel

    encoder = Encoder(models.load_clip(checkpoint), BATCH, parallel.local_mesh())
    pixels = np.random.default_rng(0).integers(0, 256, (2 * BATCH, 224, 224, 3), np.uint8)
    ids = models.load_tokenizer(checkpoint)([CAPTION.format(i) for i in range(2 * BATCH)])

    def run() -> float:
        start = time.perf_counter()
        encoder.images(pixels)
        encoder.texts(ids)
        return len(pixels) / (time.perf_counter() - start)

    return run


def embed(folder: Path, checkpoint: Path, out: str) -> float:
    """Pairs a second of the command, from the end of its first tar on."""
    command = ["embed", folder / "pool", "--model", checkpoint, "--out", folder / out, "--batch-size", BATCH]
    subprocess.run([sys.executable, "-m", "clipdata_jax", *map(str, command)], check=True, capture_output=True)
    lines = [json.loads(line) for line in (folder / out / "_run.jsonl").read_text().splitlines()]
    return sum(line["rows"] for line in lines[1:]) / (lines[-1]["time"] - lines[0]["time"])


def memory(folder: Path) -> None:
    """The most anonymous memory while a small model embeds 1,000 and 20,000 images."""
    checkpoint = make_checkpoint(folder / "small", small=True)
    peaks = {}
    for name, tars, each in (("few", 1, 1_000), ("many tars", 20, 1_000), ("one tar", 1, 20_000)):
        pool = folder / name
        pool.mkdir()
        for number in range(tars):
            write_tar(pool / f"{number}.tar", each, seed=number)
        child = [__file__, "--peak-of", str(pool), str(checkpoint), str(pool / "out")]
        done = subprocess.run([sys.executable, *child], check=True, capture_output=True, text=True)
        peaks[name] = int(done.stdout.splitlines()[-1])
        if name == "few":
            report("anonymous memory, 1,000 images", megabytes=peaks[name] / 1e6)
        else:
            grown = (peaks[name] - peaks["few"]) / 1e6
            report(f"anonymous memory, 20,000 images, {name}", megabytes=peaks[name] / 1e6, growth=grown)


def peak_of_embed(pool: str, checkpoint: str, out: str) -> int:
    """The most anonymous memory, in bytes, of this process while it embeds."""
    from clipdata_jax.embedding.embedder import EmbedSettings, embed

    return peak_memory(lambda: embed((pool,), {"clip": checkpoint}, out, EmbedSettings()) and None)


def make_checkpoint(folder: Path, *, small: bool) -> Path:
    """A random ViT-B/32, or one whose towers are thin so that the images are what takes memory."""
    import dataclasses

    from flax import nnx

    from clipdata_jax import models

    tokenizer = models.train_tokenizer(
        [CAPTION.format(i) for i in range(64)], folder, vocab_size=600, context_length=77
    )
    thin = {"width": 32, "layers": 2, "heads": 2, "mlp_width": 64} if small else {}
    config = models.VIT_B_32
    text = {"vocab_size": tokenizer.vocab_size, "eos_token_id": tokenizer.eos_token_id, **thin}
    config = dataclasses.replace(
        config, vision=dataclasses.replace(config.vision, **thin), text=dataclasses.replace(config.text, **text)
    )
    models.save_clip(models.CLIP(config, rngs=nnx.Rngs(0)), folder)
    return folder


def write_tar(path: Path, images: int, *, seed: int) -> None:
    """Images of 500 x 375, each of some 60 KB as photographs are, with captions."""
    from clipdata_jax.formats import tars

    random = np.random.default_rng(seed)
    kinds = []
    for _ in range(min(images, 64)):
        smooth = Image.fromarray(random.integers(0, 256, (24, 32, 3), np.uint8)).resize((500, 375))
        grain = random.normal(0, 12, (375, 500, 1))
        buffer = io.BytesIO()
        Image.fromarray(np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
        kinds.append(buffer.getvalue())
    members = (
        member
        for i in range(images)
        for member in ((f"{i:06}.jpg", kinds[i % 64]), (f"{i:06}.txt", CAPTION.format(i).encode()))
    )
    tars.write_tar(str(path), members)


if __name__ == "__main__":
    main()
