"""DataComp's recipes: what they settle, and 50 steps that follow open_clip's."""

import jax
import numpy as np
import pytest

from clipdata_jax import models
from clipdata_jax.config import Compute, ModelChoice, Optimiser, Train, TrainingInput
from clipdata_jax.config.model_sizes import named_sizes
from clipdata_jax.config.recipes import RECIPES, datacomp_steps
from clipdata_jax.errors import InputError
from clipdata_jax.runtime import parallel
from clipdata_jax.training import adamw, init_state, make_step, split_model

# scale -> architecture, batch, samples seen, steps as the code counts, peak rate, warm-up, beta2
TABLE = {
    "debug": ("ViT-B-32", 1_024, 128_000, 140, 1e-4, 500, 0.98),
    "small": ("ViT-B-32", 4_096, 12_800_000, 3_140, 5e-4, 500, 0.98),
    "medium": ("ViT-B-32", 4_096, 128_000_000, 31_260, 5e-4, 500, 0.98),
    "large": ("ViT-B-16", 8_192, 1_280_000_000, 156_260, 5e-4, 500, 0.98),
    "xlarge": ("ViT-L-14", 90_112, 12_800_000_000, 142_060, 1e-3, 10_000, 0.95),
}


def options(**given):
    return Train(sources=("pool",), out="out", tokenizer="tokenizer", **given)


@pytest.mark.parametrize("scale", TABLE)
def test_a_recipe_settles_what_datacomp_does(scale):
    arch, batch, samples, steps, rate, warmup, beta2 = TABLE[scale]
    train = options(recipe=f"datacomp-{scale}")
    got = train.settings()
    assert (got.batch_size, got.steps, got.learning_rate, got.warmup, got.beta2) == (batch, steps, rate, warmup, beta2)
    assert (got.initial, got.precision, got.sampling) == ("open_clip", "bfloat16", "replacement")
    assert got.sizes == options(model=ModelChoice(arch=arch)).settings().sizes
    assert (got.sizes.image_size, got.sizes.context_length, got.sizes.activation) == (224, 77, "gelu")
    others = (train.optimiser.weight_decay, train.optimiser.clip_norm, train.input.min_crop, train.keep_interval())
    assert others == (0.2, None, 0.9, steps // 5)
    # At least the samples seen, and at most four workers' batches a round more.
    assert samples <= got.steps * batch < samples + 5 * 4 * batch


def test_what_is_given_takes_the_place_of_the_recipes():
    recipe = "datacomp-small"
    model, optimiser = ModelChoice(arch="ViT-B-16", initial="clip"), Optimiser(batch_size=1_024, warmup=10, beta2=0.9)
    got = options(
        recipe=recipe, model=model, optimiser=optimiser, input=TrainingInput(sampling="epochs"),
        compute=Compute(precision="float32"),
    ).settings()  # fmt: skip
    assert (got.batch_size, got.warmup, got.beta2, got.learning_rate) == (1_024, 10, 0.9, 5e-4)
    assert got.steps == datacomp_steps(RECIPES[recipe].samples_seen, 1_024)
    assert (got.sizes.patch_size, got.initial, got.sampling, got.precision) == (16, "clip", "epochs", "float32")
    small = options(recipe=recipe, model=ModelChoice(width=64, image_size=32), optimiser=Optimiser(steps=600))
    assert (small.settings().sizes.text.width, small.settings().sizes.image_size) == (64, 32)
    assert (small.settings().steps, small.keep_interval()) == (600, 120)
    larger = options(model=ModelChoice(arch="ViT-B-32", image_size=256, context_length=40)).settings().sizes
    assert (larger.image_size, larger.context_length, larger.vision.width) == (256, 40, 768)


def test_samples_seen_are_counted_in_steps():
    got = options(optimiser=Optimiser(samples_seen=1_001, batch_size=100)).settings()
    assert (got.steps, got.warmup) == (11, 1)
    assert options().settings().steps == 2_000
    assert options(recipe="datacomp-small", optimiser=Optimiser(samples_seen=4_096)).settings().steps == 20


WRONG = {
    "both lengths": (lambda: Optimiser(steps=5, samples_seen=5), "--steps and --samples-seen both"),
    "no beta": (lambda: Optimiser(beta2=1.0), "--beta2 is 1.0, expected at least 0 and below 1"),
    "long warm-up": (lambda: options(optimiser=Optimiser(steps=5, warmup=5)), "--warmup is 5, expected fewer steps"),
    "own and named": (lambda: ModelChoice(arch="ViT-B-32", width=4), "--width is 4, expected no value with --arch"),
    "odd patches": (lambda: options(model=ModelChoice(patch_size=7)), "--patch-size is 7, expected a divisor"),
    "odd microbatch": (lambda: options(compute=Compute(microbatch=7)), "--microbatch is 7, expected a divisor of"),
    "weights of others": (lambda: options(input=TrainingInput(weights=(1.0, 2.0))), "each of the 1 sources"),
    "no crop": (lambda: TrainingInput(min_crop=0.0), "--min-crop is 0.0, expected a share above 0"),
    "two tokenizers": (lambda: options(model=ModelChoice(init="b32")), "--tokenizer has no use with --init"),
    "none": (lambda: Train(sources=("pool",), out="out"), "--tokenizer is missing"),
    "two starts": (lambda: ModelChoice(init="b32", initial="clip"), "--initial is 'clip', expected no value with"),
}


@pytest.mark.parametrize("name", WRONG)
def test_options_that_contradict_each_other_are_refused(name):
    make, words = WRONG[name]
    with pytest.raises(InputError) as error:
        make()
    assert words in str(error.value)


def test_sizes_beside_a_checkpoint_must_be_its_own():
    there = named_sizes("ViT-B-32")
    ModelChoice(init="b32", arch="ViT-B-32", image_size=224, context_length=77).check_checkpoint(there)
    ModelChoice(init="b32", layers=12).check_checkpoint(there)
    with pytest.raises(InputError, match=r"--width is 512, but b32 has 512 and 768; leave it out"):
        ModelChoice(init="b32", width=512).check_checkpoint(there)
    with pytest.raises(InputError, match=r"--image-size is 256, but b32 has 224"):
        ModelChoice(init="b32", image_size=256).check_checkpoint(there)
    with pytest.raises(InputError, match=r"--arch is 'ViT-B-16-quickgelu', but b32 has patch_size 32, activation gelu"):
        ModelChoice(init="b32", arch="ViT-B-16-quickgelu").check_checkpoint(there)
    with pytest.raises(InputError, match=r"'ViT-L-14', but b32 has vision width 768, vision layers 12,"):
        ModelChoice(init="b32", arch="ViT-L-14").check_checkpoint(there)


def batch(step):
    """The inputs that tools/make_golden_training.py draws."""
    rng = np.random.default_rng(step % 4)
    pixels = rng.integers(0, 256, (16, 16, 16, 3), np.uint8)
    ids = rng.integers(0, 99, (16, 12), np.int32)
    ids[np.arange(16), rng.integers(1, 12, 16)] = 99
    return pixels, ids


def test_50_steps_follow_open_clips(golden):
    want = np.load(golden / "training" / "losses.npz")
    params, merge = split_model(models.load_clip(golden / "training"))
    mesh = parallel.data_mesh(jax.devices()[:1])
    optimizer = adamw(learning_rate=1e-3, warmup=10, steps=50, weight_decay=0.2)
    step, state = make_step(merge, optimizer, mesh), init_state(params, optimizer, mesh)
    losses, temperatures = [], []
    for number in range(50):
        state, metrics = step(state, *batch(number), np.ones(16, bool))
        losses.append(float(metrics["loss"]))
        temperatures.append(float(metrics["temperature"]))
    np.testing.assert_allclose(losses, want["loss"], atol=1e-4)
    np.testing.assert_allclose(-np.log(temperatures), want["logit_scale"], atol=1e-4)
