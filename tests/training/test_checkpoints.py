"""Checkpoints: whole or absent, of the moment they were asked for, restored in the state's own sharding."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clipdata_jax.errors import InputError, StorageError
from clipdata_jax.runtime import parallel, stopping
from clipdata_jax.training import Checkpoints, TrainState


def state(sharding, *, step=0, width=8):
    def make():
        params = {"w": jnp.arange(16.0 * width).reshape(16, width), "b": jnp.ones(width)}
        return TrainState(params, ({"mu": jax.tree.map(jnp.zeros_like, params)},), jnp.int32(step))

    return jax.jit(make, out_shardings=sharding)()


@pytest.fixture(scope="module")
def mesh():
    return parallel.data_mesh(jax.devices()[:4])


def test_a_checkpoint_is_of_the_moment_it_was_asked_for(tmp_path, mesh):
    replicated = NamedSharding(mesh, P())
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0, out_shardings=replicated)
    with Checkpoints(str(tmp_path)) as checkpoints:
        now = step(state(replicated))
        checkpoints.save(1, now)
        for _ in range(5):  # takes the buffers of the state that is being written
            now = step(now)
    with Checkpoints(str(tmp_path)) as checkpoints:
        restored = checkpoints.restore(state(replicated))
    assert int(restored.step) == 1
    np.testing.assert_array_equal(restored.params["w"], np.arange(128.0).reshape(16, 8) + 1)


def test_a_checkpoint_takes_the_sharding_of_the_state(tmp_path, mesh):
    with Checkpoints(str(tmp_path)) as checkpoints:
        checkpoints.save(3, state(NamedSharding(mesh, P()), step=3))
    sharded = state(NamedSharding(mesh, P()))
    sharded.params["w"] = jax.device_put(sharded.params["w"], NamedSharding(mesh, P("data")))
    with Checkpoints(str(tmp_path)) as checkpoints:
        restored = checkpoints.restore(sharded)
    assert restored.params["w"].sharding.spec == P("data")
    assert restored.params["b"].sharding.spec == P()
    np.testing.assert_array_equal(restored.params["w"], np.arange(128.0).reshape(16, 8))


def test_what_a_stop_leaves_of_a_checkpoint_goes_with_the_process(tmp_path, mesh, monkeypatch):
    monkeypatch.setattr(stopping, "temporary_files", set())
    save = ocp.CheckpointManager.save

    def save_and_look(self, step, args):
        saved = save(self, step, args=args)
        assert stopping.temporary_files == {f"{tmp_path}/{step}.orbax-checkpoint-tmp"}
        return saved

    monkeypatch.setattr(ocp.CheckpointManager, "save", save_and_look)
    with Checkpoints(str(tmp_path)) as checkpoints:
        checkpoints.save(1, state(NamedSharding(mesh, P())))
    assert not stopping.temporary_files
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()  # of a process that was killed
    with Checkpoints(str(tmp_path)) as checkpoints:
        assert checkpoints.latest == 1
        checkpoints.save(3, state(NamedSharding(mesh, P())))
    assert sorted(os.listdir(tmp_path)) == ["1", "3"]


def test_what_does_not_fit_or_can_not_be_read_is_named(tmp_path, mesh, monkeypatch):
    replicated = NamedSharding(mesh, P())
    with Checkpoints(str(tmp_path)) as checkpoints:
        checkpoints.save(1, state(replicated))
    with (
        Checkpoints(str(tmp_path)) as checkpoints,
        pytest.raises(InputError, match=r"step 1 is of another .* \(params.b is 8xfloat32, expected 4xfloat32\)"),
    ):
        checkpoints.restore(state(replicated, width=4))
    (tmp_path / "1" / "default" / "_METADATA").write_bytes(b"broken")
    with (
        Checkpoints(str(tmp_path)) as checkpoints,
        pytest.raises(InputError, match=rf"{tmp_path}: the checkpoint of step 1 can't be read .*delete"),
    ):
        checkpoints.restore(state(replicated))

    def fail(self, step, args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp.CheckpointManager, "save", fail)
    with (
        Checkpoints(str(tmp_path)) as checkpoints,
        pytest.raises(StorageError, match=r"step 2 could not be written .*No space left on device"),
    ):
        checkpoints.save(2, state(replicated))
