"""The loop: exact resuming, checkpoints, and clear errors."""

import functools
import os
import threading

import jax
import numpy as np
import orbax.checkpoint
import pytest
from flax import nnx
from orbax.checkpoint._src.path.atomicity import TMP_DIR_SUFFIX

from clipdata_jax.errors import InputError
from clipdata_jax.models import CLIP, CLIPConfig, TextConfig, VisionConfig
from clipdata_jax.runtime import parallel, stopping
from clipdata_jax.training import TrainingPairs, adamw, loop, make_step, split_model, train

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIG = CLIPConfig(
    vision=VisionConfig(width=16, layers=1, heads=2, mlp_width=32, image_size=16, patch_size=8),
    text=TextConfig(width=16, layers=1, heads=2, mlp_width=32, vocab_size=50, context_length=6, eos_token_id=49),
    embed_dim=12,
)


@pytest.fixture(autouse=True, scope="module")
def compile_once():
    """All runs here are of one shape; that compiling again gives the same bits, the command's test shows."""
    compiled = {}

    def once(merge, optimizer, mesh):
        return compiled.setdefault(mesh, make_step(merge, optimizer, mesh))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_step", once)
        yield


@functools.cache
def start():
    return CLIP(CONFIG, rngs=nnx.Rngs(0))


class Stopped(Exception):
    pass


def pairs(n=37):
    rng = np.random.default_rng(0)
    return TrainingPairs(rng.integers(0, 256, (n, 16, 16, 3), np.uint8), rng.integers(0, 50, (n, 6)).astype(np.int32))


def run(folder, *, devices=2, batch_size=16, report=lambda step, loss: None, data=None):
    model = train(
        start(),
        pairs() if data is None else data,
        optimizer=adamw(learning_rate=1e-3, warmup=2, steps=7, weight_decay=0.1),
        steps=7,
        batch_size=batch_size,
        seed=3,
        mesh=parallel.data_mesh(jax.devices()[:devices]),
        checkpoints=None if folder is None else str(folder),
        checkpoint_every=3,
        report=report,
    )
    return {name: np.asarray(value) for name, value in split_model(model)[0].items()}


def test_a_stopped_run_ends_in_the_same_bits(tmp_path, monkeypatch):
    seen = []
    whole = run(tmp_path / "whole", report=lambda step, loss: seen.append((step, loss)))
    assert [step for step, _ in seen] == list(range(1, 8))
    assert sorted(os.listdir(tmp_path / "whole")) == ["6", "7"]

    def stop(step, loss):
        if step == 5:
            raise Stopped

    with pytest.raises(Stopped):
        run(tmp_path / "stopped", report=stop)
    assert os.listdir(tmp_path / "stopped") == ["3"]
    again = []
    resumed = run(tmp_path / "stopped", report=lambda step, loss: again.append((step, loss)))
    assert again == [(3, None), *seen[3:]]
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)
    # A signal's checkpoint comes at once.
    monkeypatch.setattr(stopping, "_asked", threading.Event())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "signalled", report=lambda step, loss: stopping._asked.set())
    assert sorted(os.listdir(tmp_path / "signalled")) == ["3", "4"]
    stopping._asked.clear()
    for name, value in run(tmp_path / "signalled").items():
        np.testing.assert_array_equal(value, whole[name], err_msg=name)
    # A run that is done only reads its last checkpoint.
    again.clear()
    done = run(tmp_path / "stopped", report=lambda step, loss: again.append(step))
    assert again == [7]
    np.testing.assert_array_equal(done["logit_scale"], whole["logit_scale"])


def test_what_a_stop_leaves_of_a_checkpoint_goes_with_the_process(tmp_path, monkeypatch):
    def save(self, step, args):
        (tmp_path / f"{step}{TMP_DIR_SUFFIX}").mkdir()
        raise Stopped

    monkeypatch.setattr(stopping, "temporary_files", set())
    monkeypatch.setattr(orbax.checkpoint.CheckpointManager, "save", save)
    with pytest.raises(Stopped):
        run(tmp_path)
    assert stopping.temporary_files == {str(path) for path in tmp_path.iterdir()}
    assert stopping.temporary_files
    monkeypatch.undo()
    run(tmp_path)
    assert not stopping.temporary_files


def test_fewer_pairs_than_a_batch_and_batches_that_do_not_divide_are_refused():
    with pytest.raises(InputError, match=r"found 37 pairs to train on, expected at least a batch of 38"):
        run(None, batch_size=38)
    with pytest.raises(InputError, match=r"--batch-size is 15, expected a multiple of the 2 devices"):
        run(None, batch_size=15)


def test_a_loss_that_is_not_finite_stops_before_it_reaches_a_checkpoint(tmp_path):
    data = pairs()
    outside_the_vocabulary = np.full_like(data.ids, 50)
    broken = TrainingPairs(data.pixels, outside_the_vocabulary)  # the loss is NaN
    with pytest.raises(InputError, match=r"the loss is nan at step 1: training diverged; lower --learning-rate"):
        run(tmp_path / "nan", data=broken)
    assert os.listdir(tmp_path / "nan") == []
