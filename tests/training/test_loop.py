"""The loop: exact resuming, checkpoints, stops, and clear errors."""

import os
import threading

import jax
import numpy as np
import pytest
from flax import nnx

from clipdata_jax.errors import InputError, StoppedEarly
from clipdata_jax.models import CLIP, CLIPConfig, TextConfig, VisionConfig
from clipdata_jax.runtime import parallel, stopping
from clipdata_jax.training import Batch, Checkpoints, Schedule, adamw, init_state, make_step, split_model, train

CONFIG = CLIPConfig(
    vision=VisionConfig(width=16, layers=1, heads=2, mlp_width=32, image_size=16, patch_size=8),
    text=TextConfig(width=16, layers=1, heads=2, mlp_width=32, vocab_size=50, context_length=6, eos_token_id=49),
    embed_dim=12,
)
STEPS = 7
OPTIMIZER = adamw(learning_rate=1e-3, warmup=2, steps=STEPS, weight_decay=0.1)


@pytest.fixture(scope="module")
def compiled():
    """Initial parameters, a mesh and a compiled step. All runs share them: compiling again gives the same bits."""
    mesh = parallel.data_mesh(jax.devices()[:2])
    params, merge = split_model(CLIP(CONFIG, rngs=nnx.Rngs(0)))
    return params, mesh, make_step(merge, OPTIMIZER, mesh)


def batches(start):
    for step in range(start, 100):
        rng = np.random.default_rng(step)
        pixels, ids = rng.integers(0, 256, (16, 16, 16, 3), np.uint8), rng.integers(0, 50, (16, 6)).astype(np.int32)
        yield Batch(pixels, ids, np.ones(16, bool))


@pytest.fixture
def run(compiled):
    params, mesh, step = compiled

    def train_in(folder, *, source=batches, step=step, report=lambda done: None, evaluate=None, **schedule):
        schedule = Schedule(**{"steps": STEPS, "checkpoint_every": 3, **schedule})
        state, named = init_state(params, OPTIMIZER, mesh), {"schedule": schedule, "report": report}
        if evaluate is not None:
            named["evaluate"] = evaluate
        with Checkpoints(str(folder), keep_every=schedule.keep_every) as checkpoints:
            state = train(state, step, source, **named, checkpoints=checkpoints)
        return {name: np.asarray(value) for name, value in state.params.items()}

    return train_in


@pytest.fixture(scope="module")
def whole(compiled):
    """The parameters and losses of a run that nothing stops and nothing is saved of."""
    params, mesh, step = compiled
    seen = []
    state = train(
        init_state(params, OPTIMIZER, mesh), step, batches, schedule=Schedule(steps=STEPS),
        report=lambda done: seen.append((done.step, done.metrics["loss"])),
    )  # fmt: skip
    assert [step for step, _ in seen] == list(range(1, STEPS + 1))
    return {name: np.asarray(value) for name, value in state.params.items()}, dict(seen)


def assert_same(found, whole):
    for name, value in whole[0].items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_run_that_fails_ends_in_the_same_bits(tmp_path, run, whole):
    def fail(done):
        if done.step == 5:
            raise OSError

    with pytest.raises(OSError):
        run(tmp_path, report=fail)
    assert os.listdir(tmp_path) == ["3"]
    again = []
    assert_same(run(tmp_path, report=lambda done: again.append((done.step, done.metrics["loss"]))), whole)
    assert again == [(step, whole[1][step]) for step in (4, 5, 6, 7)]
    assert sorted(os.listdir(tmp_path)) == ["6", "7"]
    # A run that is done only reads its last checkpoint.
    again.clear()
    assert_same(run(tmp_path, report=again.append), whole)
    assert not again


def test_a_signal_is_answered_with_a_checkpoint(tmp_path, run, whole, monkeypatch):
    monkeypatch.setattr(stopping, "_asked", threading.Event())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, report=lambda done: done.step == 2 and stopping._asked.set())
    (stopped,) = map(int, os.listdir(tmp_path))
    assert stopped in (3, 4)  # reports come some steps late
    stopping._asked.clear()
    with pytest.raises(StoppedEarly, match=rf"stopped after 2 of {STEPS - stopped} steps"):
        run(tmp_path, stop_after=2)
    assert_same(run(tmp_path), whole)


def test_checkpoints_of_every_nth_step_are_kept(tmp_path, run):
    run(tmp_path, checkpoint_every=1, keep_every=2)
    assert sorted(os.listdir(tmp_path)) == ["2", "4", "6", "7"]


def test_an_evaluation_that_was_stopped_is_made_again(tmp_path, run, whole):
    seen = []

    def evaluate(step, state):
        seen.append((step, int(state.step)))
        if len(seen) == 2:
            raise stopping.Stopped

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, checkpoint_every=100, evaluate_every=3, evaluate=evaluate)
    assert_same(run(tmp_path, checkpoint_every=100, evaluate_every=3, evaluate=evaluate), whole)
    assert seen == [(3, 3), (6, 6), (6, 6), (7, 7)]


def test_steps_that_diverge_reach_no_checkpoint(tmp_path, run, compiled):
    def broken(start):
        for step, batch in enumerate(batches(start)):
            yield batch if step != 4 else batch._replace(ids=np.full_like(batch.ids, 50))  # outside the vocabulary

    words = rf"the loss is nan at step 5: .* the checkpoint of step 3 is kept in {tmp_path}"
    with pytest.raises(InputError, match=words):
        run(tmp_path, source=broken)
    assert os.listdir(tmp_path) == ["3"]

    def explode(state, *batch):
        state, metrics = compiled[2](state, *batch)
        return state, {**metrics, "grad_norm": float("inf")}

    with pytest.raises(InputError, match=r"the gradient's norm is inf at step 1: training diverged; lower --learning"):
        run(tmp_path / "gradient", step=explode)
    assert not os.listdir(tmp_path / "gradient")


def test_the_time_in_which_devices_wait_for_input_is_told(tmp_path, run, monkeypatch):
    clock = iter(range(0, 10_000, 2))
    monkeypatch.setattr("clipdata_jax.training.loop.time.monotonic", lambda: next(clock))
    idle = []
    run(tmp_path, steps=1, report=lambda done: idle.append(done.idle_seconds))
    assert idle == [2]
