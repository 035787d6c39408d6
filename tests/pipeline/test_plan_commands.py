"""`clipdata plan` of norm-sim-d, sensitivity, filter, train and evaluate: against what they do, plain formulas, XLA."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import metadata_pools
from support.checkpoints import CAPTIONS, make_checkpoint
from support.pictures import write_pairs
from support.pools import make_pool, unit_rows

from clipdata_jax import config, models, parallel, training
from clipdata_jax.data import uids
from clipdata_jax.errors import InputError
from clipdata_jax.pipeline import (
    norm_sim_d,
    plan,
    plan_estimates,
    plan_model,
    plan_norm_sim_d,
    plan_train,
    sensitivity_scores,
)
from clipdata_jax.pipeline.norm_sim_d_steps import BLOCK
from clipdata_jax.pipeline.plan_probe_norm_sim_d import NormSimDRates
from clipdata_jax.pipeline.plan_probe_train import TrainFacts, TrainRates
from clipdata_jax.pipeline.train import model_config

SIZES, DIM = (60, 40, 50), 16


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # In this process, which has jax already.
    monkeypatch.setattr(plan_estimates.Probe, "ask", lambda self, function, *given: function(*given))
    return tmp_path


@pytest.fixture
def pool(here):
    return make_pool(here / "pool", SIZES, dim=DIM)


def planned(run: config.Run, **options) -> plan_estimates.Estimate:
    return plan.run(config.Plan(calibrate=False, **options), run)[-1]


class Measured(plan_estimates.Probe):
    """Tells, one after the other, what somebody else measured."""

    def __init__(self, *found):
        self._found = list(found)

    def ask(self, function, *arguments):
        return self._found.pop(0)


def machine(found, processes=1, devices=1, then=None) -> plan_estimates.Machine:
    on = plan_estimates.Devices("cpu", devices, None)
    return plan_estimates.Machine(processes, 1 << 40, on, Measured(found, then), True)


def by_moment(**options) -> config.NormSimD:
    return config.NormSimD(pool="pool", out="s.npy", **options)


def test_norm_sim_d_is_counted_as_it_is_done(pool, here, monkeypatch, clipdata):
    found = planned(config.Run(norm_sim_d=by_moment(fraction=0.2, steps=7)))
    scored, on_disk = [], []
    step, remove = norm_sim_d.take_step, norm_sim_d._remove

    def take_step(rows, before, **given):
        scored.append(int(before.alive.sum()))
        return step(rows, before, **given)

    def watched(path):
        on_disk.append(sum(one.stat().st_size for one in (here / "s.npy.work").glob("*.np*")))
        remove(path)

    monkeypatch.setattr(norm_sim_d, "take_step", take_step)
    monkeypatch.setattr(norm_sim_d, "_remove", watched)
    done = clipdata("norm-sim-d", "pool", "--fraction", 0.2, "--steps", 7, "--out", "s.npy")
    assert done.returncode == 0, done.stderr
    # A block at least is scored, every pair is summed up once, and those that are dropped once more.
    blocks = sum(math.ceil(rows / BLOCK) for rows in scored)
    assert found.operations == 2 * DIM**2 * (blocks * BLOCK + 150 + 120)
    assert f"in {len(scored)} steps of 18" in found.work
    assert f"then {150 * DIM * 2 / 1000:.2g} KB in the first step" in found.again
    assert found.written == pytest.approx(on_disk[-1] + (here / "s.npy").stat().st_size, rel=0.3)
    assert found.read == sum(path.stat().st_size for path in (here / "pool").iterdir())


def test_norm_sim_d_takes_turns_on_blocks(pool, monkeypatch):
    monkeypatch.setattr(plan_norm_sim_d, "BLOCK", 10)
    rates = NormSimDRates(read=1.0, round=10.0, choose=0.25, drop=0.5, step=3.0, disk=0.0, start=4.0)
    found = plan_norm_sim_d.estimate(by_moment(count=50, steps=2), machine(rates, 2, 2), ())
    # 15 blocks are four rounds of four, and then ten are three.
    want = {"read": 150.0, "score": 70.0, "choose": 2 * 3 + 0.25 * 250 + 0.5 * 100, "disk": 0.0}
    assert found.times.parts == pytest.approx(want)
    assert found.times.total == pytest.approx(4 + sum(want.values()))


def test_survivors_that_are_still_to_come_are_all(pool, here, capsys):
    select = config.Select(scores=("scores",), rule="top(clip_score, 0.3)", out="best.npy")
    options = by_moment(survivors="best.npy", fraction=0.1, steps=5)
    plan.run(
        config.Plan(calibrate=False, commands=("norm-sim-d",)), config.Run(select=select, norm_sim_d=options)
    )
    assert "best.npy is still to be written: planned as if the whole pool survived" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"best\.npy"):
        planned(config.Run(norm_sim_d=options))
    uids.write_subset("best.npy", uids.sort_unique(uids.from_hex(list(pool["uid"][:40]))))
    found = planned(config.Run(norm_sim_d=options))
    assert found.rows == 40 and "from 40 rows to 15 in 5 steps of 5" in found.work


def test_sensitivity_is_counted_as_it_is_done(pool, here, monkeypatch, clipdata):
    flags = ("--batch-size", 16, 32, "--repeats", 1, 3, "--group", 1, 2, "--temperature", 0.2, 0.1)
    options = config.Sensitivity(
        pool="pool",
        out="s.html",
        batch_size=(16, 32),
        repeats=(1, 3),
        group=(1, 2),
        temperature=(0.2, 0.1),
        groups=2,
    )
    found = planned(config.Run(sensitivity=options))
    sizes, sampled = [], []

    def run(jobs, pairs, temperatures):
        for job in jobs:
            sizes.append(job.size)
            sampled[:] = [len(pairs.images)]
            yield job.rows, [np.zeros((len(temperatures), len(job.batch_of_cell), len(job.rows)), np.float32)]

    monkeypatch.setattr(sensitivity_scores.group_scores, "run", run)
    assert clipdata("sensitivity", "pool", *flags, "--groups", 2, "--out", "s.html").returncode == 0
    assert found.rows == sampled[0]
    assert found.operations == sum(2 * DIM * size**2 for size in sizes) + 2 * DIM * sampled[0]
    with pytest.raises(InputError, match=r"sensitivity: a sample of \d+ pairs takes .*; use fewer --groups"):
        planned(config.Run(sensitivity=options), memory_gb=0.1)


@pytest.fixture
def metadata(here):
    pairs = metadata_pools.rows()
    metadata_pools.write(here / "metadata", pairs)
    random = np.random.default_rng(0)
    for part in range(4):
        here_rows = len(pairs[part::3]) if part < 3 else 0
        np.savez(
            here / f"metadata/{part:08d}.npz", l14_img=unit_rows(random, here_rows, DIM).astype(np.float16)
        )
    return pairs


def test_filter_clusters_what_it_draws(metadata):
    options = {"metadata": "metadata", "preset": "image_based", "target": "t.npy", "out": "s.npy"}
    with pytest.raises(InputError, match=r"t\.npy: no such file"):
        planned(config.Run(filter=config.Filter(**options, clusters=20)))
    np.save("t.npy", np.ones((3, DIM), np.float32))
    found = planned(config.Run(filter=config.Filter(**options, clusters=20, sample=100, steps=5)))
    assert found.operations == 2 * DIM * 20 * (100 * 6 + len(metadata))
    assert "20 clusters of at most 100 pairs in at most 5 steps" in found.work
    np.save("centroids.npy", np.ones((30, DIM), np.float32))
    given = planned(config.Run(filter=config.Filter(**options, centroids="centroids.npy")))
    assert given.operations == 2 * DIM * 30 * len(metadata) and 2 * given.read < 1.1 * found.read
    with pytest.raises(InputError, match=r"filter: what is held at a time takes .*; use a smaller --sample"):
        planned(config.Run(filter=config.Filter(**options, clusters=20, sample=100)), memory_gb=0.1)


TOWER = {"width": 16, "layers": 2, "heads": 2, "embed_dim": 16, "image_size": 32, "context_length": 16}


@pytest.fixture
def tars(here):
    write_pairs(here / "tars" / "0.tar", range(30))
    write_pairs(here / "tars" / "1.tar", range(30, 60))
    make_checkpoint(here / "model")


def to_train(**options) -> config.Train:
    chosen = {"steps": 10, "warmup": 2, "batch_size": 16, "checkpoint_every": 4, **TOWER, **options}
    return config.Train(tars=("tars",), tokenizer="model", out="run", **chosen)


def test_a_step_of_training_is_as_large_as_xla_makes_it(tars):
    options = to_train(batch_size=32)
    found = planned(config.Run(train=options))
    shape = model_config(options, models.load_tokenizer("model"))
    optimizer = training.adamw(learning_rate=1e-3, warmup=1, steps=10, weight_decay=0.1)
    merge = []

    def start() -> training.TrainState:
        params, made = training.split_model(models.CLIP(shape, rngs=nnx.Rngs(0)))
        merge.append(made)
        return training.TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    state = jax.eval_shape(start)
    ids = models.load_tokenizer("model")(CAPTIONS)
    longest = int((ids == shape.text.eos_token_id).argmax(axis=1).max()) + 1
    batch = jax.ShapeDtypeStruct((32, 32, 32, 3), np.uint8), jax.ShapeDtypeStruct((32, longest), np.int32)
    mesh = parallel.data_mesh(jax.devices()[:1])
    compiled = training.make_step(merge[0], optimizer, mesh).lower(state, *batch).compile()
    memory = compiled.memory_analysis()
    assert found.operations / options.steps == pytest.approx(compiled.cost_analysis()["flops"], rel=0.15)
    whole = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    assert found.device_memory == pytest.approx(whole, rel=0.3)
    assert plan_model.parameters(shape) == pytest.approx(
        sum(value.size for value in state.params.values()), rel=0.05
    )


def test_training_is_told_in_pairs_and_steps(tars):
    sizes = TrainFacts(parameters=1_000, kept=500, operations=7.0, length=9, decode=0.5)
    rates = TrainRates(step=2.0, digest=1e-6, checkpoint=3.0, start=9.0)
    found = plan_train.estimate(to_train(), machine(sizes, then=rates), ())
    assert found.rows == 60 and found.operations == 10 * 16 * 7
    stored = found.read
    want = {"digests": 2e-6 * stored, "decode": 30.0, "steps": 20.0, "checkpoints": 9.0}
    assert found.times.parts == pytest.approx(want) and found.times.start == 9
    assert "5.5 pairs a second to train" in found.rate
    assert found.notes[0] == "3 checkpoints of 12 KB, the last 2 are kept"


@pytest.mark.parametrize(
    ("options", "on", "words"),
    [
        ({"batch_size": 64}, {}, "about 60 pairs to train on, fewer than one batch of 64"),
        ({"batch_size": 20}, {"devices": 8}, "expected a multiple of the 8 devices"),
        ({}, {"device_memory_gb": 0.0015}, "the model with its batch takes .*; use --batch-size"),
        ({}, {"device_memory_gb": 0.0001}, "use a smaller --width or fewer --layers"),
        ({}, {"memory_gb": 0.01}, "use a smaller --width or fewer --layers"),
        ({"subset": "none.npy"}, {}, "none.npy"),
    ],
)
def test_training_that_cannot_be_is_refused(tars, options, on, words):
    with pytest.raises(InputError, match=words):
        planned(config.Run(train=to_train(**options)), **on)


def test_advice_on_a_batch_fits(tars):
    limit = 0.0015
    with pytest.raises(InputError, match="--batch-size") as refusal:
        planned(config.Run(train=to_train(batch_size=32)), device_memory_gb=limit)
    most = int(str(refusal.value).partition("--batch-size ")[2].split()[0])
    assert 2 <= most < 32
    planned(config.Run(train=to_train(batch_size=most)), device_memory_gb=limit)
    with pytest.raises(InputError, match="--batch-size"):
        planned(config.Run(train=to_train(batch_size=most + 1)), device_memory_gb=limit)


def test_pictures_that_memory_cannot_hold_are_refused_with_a_number_that_fits(tars):
    limit = (planned(config.Run(train=to_train())).memory - 10_000) / 2**30
    with pytest.raises(
        InputError, match=r"training with 60 pairs in memory takes .*; use a --subset"
    ) as refusal:
        planned(config.Run(train=to_train()), memory_gb=limit)
    most = int(str(refusal.value).partition("at most ")[2].split()[0])
    assert 16 <= most < 60
    uids.write_subset("some.npy", uids.sort_unique(uids.from_hex([f"{row:032x}" for row in range(most)])))
    planned(config.Run(train=to_train(subset="some.npy")), memory_gb=limit)


def test_evaluation_counts_pictures_captions_and_prompts(tars, here):
    (here / "names.json").write_text('["house", "boat"]')
    options = config.Evaluate(
        model="model",
        out="e.json",
        retrieval=("tars/0.tar",),
        classification=("tars/1.tar",),
        classnames="names.json",
    )
    found = planned(config.Run(evaluate=options))
    assert found.work == "about 60 pictures, 30 captions and 2 prompts"
    assert found.read == sum(path.stat().st_size for path in (here / "tars").iterdir())


@pytest.mark.parametrize("name", ["uids", "report", "verify", "demo", "plan"])
def test_short_commands_are_not_planned(name, here, clipdata):
    for words in (("--", name, "x"), ("run.py", "--commands", name)):
        done = clipdata("plan", *words)
        assert done.returncode == 2 and done.stderr.startswith(f"clipdata plan: {name} needs no plan: it ")
        assert done.stderr.count("\n") == 1 and "usage" not in done.stderr


def test_what_another_command_makes_is_waited_for(tars, here, capsys):
    run = config.Run(
        reshard=config.Reshard(tars=("tars",), subset="s.npy", out="selected"),
        train=config.Train(tars=("selected",), tokenizer="model", out="run"),
        evaluate=config.Evaluate(model="run/model", out="e.json", retrieval=("tars",)),
    )
    plan.run(config.Plan(calibrate=False), run)
    text = capsys.readouterr().out
    assert "train: takes what reshard still has to write to selected: plan it again then" in text
    assert "evaluate: takes what train still has to write to run/model: plan it again then" in text
