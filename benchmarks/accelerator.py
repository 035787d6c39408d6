"""Everything that matters on a GPU or TPU, in one call: right values first, then speeds beside this device's limits.

    python benchmarks/accelerator.py [--quick] [--only scores,towers]

Prints one JSON line a figure and one a verdict: a bar, what was reached, whether it passes. On a CPU the same program
runs with small sizes, which shows that it works and nothing more. Ends with status 1 if a value is wrong; a bar that is
missed is said, and fails nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import io
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _timing import report
from flax import nnx
from PIL import Image

import clipdata_jax as cj
from clipdata_jax import models, training
from clipdata_jax.config.model_sizes import named_sizes
from clipdata_jax.runtime import parallel

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"
MODELS = ("hf_clip_quickgelu", "hf_siglip", "hf_clip_gelu_legacy_eos", "hf_metaclip_2", "open_clip_gelu")
POOLS = {"DataComp-medium": 128_000_000, "DataComp-xlarge": 12_800_000_000}
TEMPERATURE = 0.01


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
      product: side of the square products that measure the peak.
      group: pairs of a group of negCLIPLoss, in 4 batches.
      dim: dimension of the embeddings.
      images: rows that NormSim scores.
      targets: rows of its target.
      towers: name of the architecture, or None for a tiny one, and the batches it is run at.
      train_batch: pairs of a training step.
      copied: bytes copied to the device.
      rounds: runs of each call, after one that compiles.
    """

    product: int
    group: int
    dim: int
    images: int
    targets: int
    towers: tuple[tuple[str | None, tuple[int, ...]], ...]
    train_batch: int
    copied: int
    rounds: int


FULL = Sizes(
    product=8192, group=131_072, dim=768, images=32_768, targets=1_280_000,
    towers=(("ViT-B-32", (256, 1024, 4096)), ("ViT-L-14", (128, 512, 1024))),
    train_batch=4096, copied=1 << 30, rounds=10,
)  # fmt: skip
QUICK = dataclasses.replace(
    FULL, targets=320_000, towers=(("ViT-B-32", (1024,)), ("ViT-L-14", (256,))), copied=1 << 28, rounds=3
)
SMALL = Sizes(
    product=256, group=512, dim=32, images=128, targets=512, towers=((None, (8,)),), train_batch=8,
    copied=1 << 20, rounds=1,
)  # fmt: skip

_failed: list[str] = []


def check(name: str, error: float, bound: float) -> None:
    """Reports how far a value is from what is right; a larger error than the bound fails the run."""
    passes = bool(error <= bound)  # a NaN doesn't
    if not passes:
        _failed.append(name)
    report(f"correct: {name}", error=float(error), bound=bound, passes=passes)


def verdict(name: str, reached: float, bar: float) -> None:
    """Reports a bar: `reached` should be at least that."""
    report(f"bar: {name}", reached=float(reached), bar=bar, passes=bool(reached >= bar))


def seconds_of(call: Callable[[], Any], rounds: int) -> float:
    """The median time of a call, after one that compiles."""
    taken = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def unit_rows(seed: int, rows: int, dim: int, near: jax.Array | None = None) -> jax.Array:
    """Random unit rows made on the device, float16; of a cosine of about 0.4 to the rows of `near`."""
    emb = jax.random.normal(jax.random.key(seed), (rows, dim))
    if near is not None:
        emb = emb / dim**0.5 + 0.44 * near.astype(jnp.float32)
    return (emb / jnp.linalg.norm(emb, axis=1, keepdims=True)).astype(jnp.float16)


# --- right values ---


def plain_neg_clip_loss(f: np.ndarray, g: np.ndarray, t: float) -> np.ndarray:
    """The score of one batch by its formula, in float64."""
    f, g = f.astype(np.float64), g.astype(np.float64)
    logits = f @ g.T / t
    sums = sum(np.logaddexp.reduce(logits, axis=axis) for axis in (0, 1))
    return np.einsum("bd,bd->b", f, g) - t / 2 * sums


def adversarial_pairs(rows: int, dim: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Groups whose exponentials leave float32's range unless each sum is shifted by its own maximum."""
    random = np.random.default_rng(0)
    f = random.standard_normal((rows, dim))
    f /= np.linalg.norm(f, axis=1, keepdims=True)
    one = np.repeat(f[:1], rows, axis=0)
    half = np.where(np.arange(rows)[:, None] % 2, f[:1], -f[:1])
    found = {"random": (f, f[::-1]), "identical": (f, f), "all the same": (one, one), "opposite": (one, -one)}
    found["half against half"] = (half, half[::-1])
    return {name: (a.astype(np.float16), b.astype(np.float16)) for name, (a, b) in found.items()}


def check_values(sizes: Sizes, *, quick: bool) -> None:
    """Scores and models against reference values and float64; the same bits twice."""
    with np.load(GOLDEN / "reference_scores.npz", allow_pickle=False) as file:
        golden = dict(file)
    f, g, target = golden["img"], golden["txt"], golden["target"]
    order = golden["permutations"][0][: int(golden["batch_size"])]
    got = np.asarray(cj.neg_clip_loss(f[order], g[order], temperature=TEMPERATURE))
    check(
        "negCLIPLoss of a golden batch", np.abs(got - plain_neg_clip_loss(f[order], g[order], TEMPERATURE)).max(), 1e-5
    )
    for p, name in ((float("inf"), "inf"), (2.0, "2"), (3.0, "3"), (4.0, "4")):
        got = np.asarray(cj.norm_sim(f, target, p=p))
        want = (np.abs(f.astype(np.float64) @ target.astype(np.float64).T) ** (p if p < 99 else 1)).T
        want = want.max(axis=0) if p > 99 else want.sum(axis=0) ** (1 / p)
        check(f"NormSim, p = {name}, golden", np.abs(got - want).max(), 1e-5)
    for name, (f, g) in adversarial_pairs(min(2048, sizes.group), sizes.dim).items():
        want = plain_neg_clip_loss(f, g, TEMPERATURE)
        got = np.asarray(cj.neg_clip_loss(f, g, temperature=TEMPERATURE))
        check(f"negCLIPLoss, {name} pairs", np.abs(got - want).max(), 2e-5)
        again = np.asarray(cj.neg_clip_loss(f, g, temperature=TEMPERATURE))
        check(f"negCLIPLoss, {name} pairs, the same bits twice", float((got != again).sum()), 0)
    for folder in MODELS[: 2 if quick else None]:
        _check_model(GOLDEN / "models" / folder)


def _check_model(folder: Path) -> None:
    """A small model's embeddings against PyTorch's."""
    with np.load(folder / "expected.npz", allow_pickle=False) as file:
        expected = dict(file)
    model = cj.load_clip(folder)
    for tower, given, wanted in (("vision", "pixel_values", "image_embeds"), ("text", "input_ids", "text_embeds")):
        if getattr(model, tower) is None or given not in expected or wanted not in expected:
            continue
        rows, want = expected[given], expected[wanted].astype(np.float64)
        vision = tower == "vision"
        got = model.encode_image(rows.transpose(0, 2, 3, 1)) if vision else model.encode_text(rows.astype(np.int32))
        want /= np.linalg.norm(want, axis=1, keepdims=True)
        check(f"{folder.name}, {tower}", np.abs(np.asarray(got) - want).max(), 2e-5)


# --- speeds ---


def measure_peak(sizes: Sizes) -> dict[str, float]:
    """The rate of a square product of each dtype, in FLOP/s, and of copies to the device, in B/s."""
    side, found = sizes.product, {}
    for name, dtype in (("bfloat16", jnp.bfloat16), ("float16", jnp.float16), ("float32", jnp.float32)):
        a, b = (jax.random.normal(jax.random.key(seed), (side, side)).astype(dtype) for seed in (0, 1))
        precision = "highest" if name == "float32" else "default"
        product = jax.jit(functools.partial(jnp.matmul, precision=precision, preferred_element_type=jnp.float32))
        found[name] = 2 * side**3 / seconds_of(lambda product=product, a=a, b=b: product(a, b), sizes.rounds)
        report(f"peak: {name} product of {side}", tflops=found[name] / 1e12)
    host = np.ones(sizes.copied, np.uint8)
    found["copy"] = sizes.copied / seconds_of(lambda: jax.device_put(host), sizes.rounds)
    report("host to device", gigabytes_per_second=found["copy"] / 1e9)
    return found


def measure_scores(sizes: Sizes, peak: dict[str, float]) -> dict[str, float]:
    """The kernels of the scores, in rows a second."""
    f = unit_rows(0, sizes.group, sizes.dim)
    g = unit_rows(1, sizes.group, sizes.dim, near=f)
    cells = np.repeat(np.arange(4), 16)
    random = np.random.default_rng(0)
    dealt = np.stack([random.permutation(cells) for _ in range(10)]).astype(np.int32)
    loss = functools.partial(cj.neg_clip_loss_divisions, f, g, dealt, temperature=TEMPERATURE)
    images, targets = unit_rows(2, sizes.images, sizes.dim), unit_rows(3, sizes.targets, sizes.dim)
    rates = {}
    for name, rows, flop, bar, call in (
        ("negCLIPLoss, m = 4, K = 10", sizes.group, 2.0 * sizes.group**2 * sizes.dim, 0.6, loss),
        (
            "NormSim, p = inf", sizes.images, 2.0 * sizes.images * sizes.targets * sizes.dim, 0.7,
            functools.partial(cj.norm_sim, images, targets),
        ),
        (
            "second moment", sizes.targets, 2.0 * sizes.targets * sizes.dim**2, None,
            functools.partial(cj.second_moment, targets),
        ),
    ):  # fmt: skip
        took = seconds_of(call, sizes.rounds)
        rates[name], share = rows / took, flop / took / peak["float16"]
        report(name, seconds=took, rows_per_second=rates[name], tflops=flop / took / 1e12, of_float16_peak=share)
        if bar:
            verdict(f"{name}: share of the float16 peak", share, bar)
    return rates


def tower_flop(config: models.VisionConfig | models.TextConfig, positions: int) -> float:
    """Operations of one row in a tower's layers: the products with weights and the two of the attention."""
    weights = 4 * config.width**2 + 2 * config.width * config.mlp_width
    return 2.0 * config.layers * positions * (weights + 2 * positions * config.width)


def config_of(arch: str | None) -> models.CLIPConfig:
    """A named architecture; a tiny one for None."""
    if arch is not None:
        return models.sized_config(named_sizes(arch))
    tower = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 32}
    text = models.TextConfig(**tower, vocab_size=64, context_length=8, eos_token_id=63)
    vision = models.VisionConfig(**tower, image_size=16, patch_size=8)
    return models.CLIPConfig(vision=vision, text=text, embed_dim=16)


def random_model(config: models.CLIPConfig, dtype: str = "float32") -> models.CLIP:
    """A model of any random numbers: the usual initial ones take longer to compile than all else."""
    shapes = nnx.eval_shape(lambda: models.CLIP(config, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=dtype))
    structure, state = nnx.split(shapes)
    random = np.random.default_rng(0)

    def fill(leaf: jax.Array) -> jax.Array:
        return jnp.asarray((random.random(leaf.shape, np.float32) - 0.5) / 8, leaf.dtype)

    return nnx.merge(structure, jax.tree.map(fill, state))


def rows_of(config: models.CLIPConfig, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and tokens of a batch."""
    random, size, text = np.random.default_rng(0), config.image_size, config.text
    pixels = random.integers(0, 256, (rows, size, size, 3), np.uint8)
    ids = random.integers(1, text.vocab_size - 2, (rows, text.context_length), np.int32)
    ids[:, -1] = text.vocab_size - 1
    return pixels, ids


def measure_towers(sizes: Sizes, peak: dict[str, float]) -> dict[str, float]:
    """Both towers in bfloat16 and float16, in rows a second at the best batch."""
    # XLA on a CPU has no float16 product with float32 sums.
    dtypes = ("bfloat16",) if jax.default_backend() == "cpu" else ("bfloat16", "float16")
    best: dict[str, float] = {}
    for (arch, batches), dtype in itertools.product(sizes.towers, dtypes):
        config, name = config_of(arch), arch or "tiny"
        structure, state = nnx.split(random_model(config, dtype))
        image = jax.jit(lambda state, rows, s=structure: nnx.merge(s, state).encode_image(rows))
        text = jax.jit(lambda state, rows, s=structure: nnx.merge(s, state).encode_text(rows))
        positions = {"image": config.vision.patches + 1, "text": config.text.context_length}
        for batch in batches:
            pixels, ids = map(jax.device_put, rows_of(config, batch))
            for tower, call, rows in (("image", image, pixels), ("text", text, ids)):
                took = seconds_of(lambda call=call, rows=rows, state=state: call(state, rows), sizes.rounds)
                flop = batch * tower_flop(getattr(config, "vision" if tower == "image" else "text"), positions[tower])
                share = flop / took / peak[dtype]
                report(
                    f"{name} {tower} tower, {dtype}, batch {batch}", seconds=took, rows_per_second=batch / took,
                    tflops=flop / took / 1e12, of_peak=share,
                )  # fmt: skip
                key = f"{name} {tower}"
                best[key] = max(best.get(key, 0.0), batch / took)
                best[f"{key} {dtype} share"] = max(best.get(f"{key} {dtype} share", 0.0), share)
    for arch, _ in sizes.towers:
        verdict(
            f"{arch or 'tiny'} image tower, bfloat16: share of the peak",
            best[f"{arch or 'tiny'} image bfloat16 share"],
            0.5,
        )
    return best


def measure_training(sizes: Sizes, peak: dict[str, float]) -> float:
    """A training step in bfloat16; returns pairs a second."""
    config = config_of(sizes.towers[0][0])
    mesh = parallel.data_mesh(jax.devices()[:1])
    params, merge = training.split_model(random_model(config))
    optimizer = training.adamw(learning_rate=5e-4, warmup=500, steps=3_140, weight_decay=0.2)
    state = training.init_state(params, optimizer, mesh)
    step = training.make_step(merge, optimizer, mesh, precision="bfloat16")
    batch, rounds = sizes.train_batch, max(2, sizes.rounds // 2)
    pixels, ids = (parallel.to_global(rows, mesh) for rows in rows_of(config, batch))
    mask = parallel.to_global(np.ones(batch, bool), mesh)
    taken = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        state, metrics = step(state, pixels, ids, mask)
        jax.block_until_ready((state, metrics))
        taken.append(time.perf_counter() - start)
    took = statistics.median(taken[1:])
    forward = tower_flop(config.vision, config.vision.patches + 1) + tower_flop(config.text, config.text.context_length)
    flop = 3 * batch * (forward + 2.0 * batch * config.embed_dim)
    name = f"training step of {sizes.towers[0][0] or 'tiny'}, bfloat16, batch {batch}"
    share = flop / took / peak["bfloat16"]
    report(name, seconds=took, pairs_per_second=batch / took, tflops=flop / took / 1e12, of_peak=share,
           loss=float(metrics["loss"]))  # fmt: skip
    verdict(f"{name}: share of the peak", share, 0.4)
    return batch / took


def decodes_per_second() -> float:
    """JPEGs of 300 x 250 pixels that one core decodes and resizes to 224 a second."""
    noise = np.random.default_rng(0).integers(0, 256, (25, 30, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((300, 250), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    transform, data, count = models.ImageTransform(size=224), buffer.getvalue(), 50
    start = time.perf_counter()
    for _ in range(count):
        transform(models.open_image(data))
    return count / (time.perf_counter() - start)


def project(sizes: Sizes, peak: dict[str, float], scores: dict[str, float], towers: dict[str, float]) -> None:
    """Hours for DataComp's pools on this device, and the part that bounds them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    decode = decodes_per_second() * cores
    report("decoding and resizing", images_per_second=decode, cores=cores)
    pair_bytes, pixel_bytes = 2 * 2 * sizes.dim, 224 * 224 * 3
    arch = sizes.towers[-1][0] or "tiny"
    parts = {
        "negCLIPLoss, K = 10": {
            "computing": scores["negCLIPLoss, m = 4, K = 10"], "copying": peak["copy"] / pair_bytes,
        },
        f"embedding by {arch}": {
            "decoding": decode, "copying": peak["copy"] / pixel_bytes,
            "computing": 1 / (1 / towers[f"{arch} image"] + 1 / towers[f"{arch} text"]),
        },
    }  # fmt: skip
    for (pool, pairs), (work, rates) in itertools.product(POOLS.items(), parts.items()):
        bound = min(rates, key=lambda part: rates[part])
        hours = {part: pairs / rate / 3600 for part, rate in rates.items()}
        report(f"projection: {pool}, {work}", bound_by=bound, hours=hours[bound],
               **{f"hours_of_{part}": value for part, value in hours.items()})  # fmt: skip
        if pool == "DataComp-medium" and work.startswith("negCLIPLoss"):
            verdict("DataComp-medium, negCLIPLoss, K = 10: times faster than 10 minutes", 1 / 6 / hours[bound], 1.0)


PARTS = ("values", "scores", "towers", "training")


def main(arguments: list[str] | None = None) -> int:
    """Runs everything; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer batches and runs: about a minute on a GPU")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts to run, of {', '.join(PARTS)}")
    options = parser.parse_args(arguments)
    only = set(options.only.split(","))
    if only - set(PARTS):
        parser.error(f"--only {options.only}: expected some of {', '.join(PARTS)}")
    _failed.clear()
    device = jax.devices()[0]
    sizes = SMALL if device.platform == "cpu" else QUICK if options.quick else FULL
    report("device", kind=device.device_kind, platform=device.platform, count=jax.device_count(), jax=jax.__version__,
           sizes=json.loads(json.dumps(dataclasses.asdict(sizes))))  # fmt: skip
    start = time.perf_counter()
    if "values" in only:
        check_values(sizes, quick=options.quick)
    peak = measure_peak(sizes)
    scores = measure_scores(sizes, peak) if "scores" in only else {}
    towers = measure_towers(sizes, peak) if "towers" in only else {}
    if "training" in only:
        rate = measure_training(sizes, peak)
        for scale, samples in (("small", 12_800_000), ("medium", 128_000_000)):
            report(f"projection: training at DataComp-{scale}", hours=samples / rate / 3600, bound_by="computing")
    if scores and towers:
        project(sizes, peak, scores, towers)
    report("all of it", seconds=time.perf_counter() - start, wrong=_failed)
    return 1 if _failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
