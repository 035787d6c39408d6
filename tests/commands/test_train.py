"""The command `train`: killed and resumed, subsets and bad input, real images."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from support.checkpoints import CAPTIONS
from support.processes import check_verify

from clipdata_jax import cli, models
from clipdata_jax.commands import train
from clipdata_jax.config import ModelChoice, Optimiser, Train
from clipdata_jax.demo.pool import make_clean_tars
from clipdata_jax.formats import tars, uids
from clipdata_jax.formats.sources import discovery
from clipdata_jax.runs import training_log
from clipdata_jax.runs.training_log import TrainingLog

# jax writes its cache in place: of two processes one may find an entry half written, and compiles it itself.
HALF_WRITTEN = "ignore:Error reading persistent compilation cache entry"
TINY = [
    "--width",
    "16",
    "--layers",
    "1",
    "--heads",
    "2",
    "--embed-dim",
    "16",
    "--image-size",
    "32",
    "--context-length",
    "16",
]
TINY_MODEL = ModelChoice(width=16, layers=1, heads=2, embed_dim=16, image_size=32, context_length=16)
# Ends the process, without a word, right after the checkpoint of step 4.
KILLED = """
import os, signal, sys
from clipdata_jax import cli
from clipdata_jax.training import Checkpoints
save = Checkpoints.save
def save_and_die(self, step, state):
    save(self, step, state)
    if step == 4:
        self.wait()
        os.kill(os.getpid(), signal.SIGKILL)
Checkpoints.save = save_and_die
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    make_clean_tars(str(folder), pairs=40, seed=0, shards=2)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    models.train_tokenizer(CAPTIONS, folder, vocab_size=600, context_length=32)
    return folder


def edit_tar(source, target, edit):
    """Writes a tar whose members went through `edit(name, data) -> data`."""
    members = [(name, edit(name, data)) for name, data in tars.read_members(str(source))]
    tars.write_tar(str(target), members)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Tars to evaluate on."""
    folder = tmp_path_factory.mktemp("measured")
    make_clean_tars(str(folder), pairs=12, seed=1, shards=1)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory, pool, measured, tokenizer):
    """A run that nothing stops, with evaluations, and its arguments but for the output."""
    out = tmp_path_factory.mktemp("run") / "whole"
    fixed = ["--steps", "10", "--warmup", "2", "--batch-size", "16", "--checkpoint-every", "4", "--keep-every", "5"]
    evaluated = ["--eval-every", "6", "--eval-retrieval", str(measured)]
    arguments = ["train", str(pool), "--tokenizer", str(tokenizer), *fixed, *evaluated, *TINY, "--out"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_log, "_SECONDS_BETWEEN_LINES", 0.0)
        assert cli.main([*arguments, str(out), "--log", "tensorboard"]) == 0
    return out, arguments


def test_a_killed_run_ends_in_the_same_bytes(tmp_path, whole, pool, clipdata, capsys):
    """In the middle of an epoch, with other input workers, and after the pool was copied."""
    finished, arguments = whole
    killed = subprocess.run(
        [sys.executable, "-W", "error", "-W", HALF_WRITTEN, "-c", KILLED, *arguments, "killed"], cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, timeout=180, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert os.listdir(tmp_path / "killed" / "checkpoints") == ["4"]
    assert not (tmp_path / "killed" / "model").exists()
    tar = pool / "00001.tar"
    content, at = tar.read_bytes(), tar.stat()
    os.utime(tar, (1, 1))
    part = clipdata(*arguments, "killed", "--stop-after", 1, "--input-workers", 2)
    assert (part.returncode, "stopped after 1 of 6 steps as" in part.stderr) == (75, True), part.stderr
    tar.write_bytes(bytes(reversed(content)))
    refused = clipdata(*arguments, "killed")
    tar.write_bytes(content)
    os.utime(tar, ns=(at.st_atime_ns, at.st_mtime_ns))
    words = f"{tar}: has changed since the run in killed began; put it back as it was, or choose another --out"
    assert (refused.returncode, words in refused.stderr) == (2, True), refused.stderr
    assert (resumed := clipdata(*arguments, "killed")).returncode == 0, resumed.stderr
    for name in ["_manifest.json", *(f"model/{file}" for file in os.listdir(finished / "model"))]:
        assert (finished / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name
    check_verify(clipdata, tmp_path / "killed", tmp_path / "killed" / "model" / "model.safetensors")


def test_evaluations_while_training_are_those_of_the_command(tmp_path, whole, measured, clipdata):
    out, _ = whole
    done = clipdata("evaluate", out / "model", "--retrieval", measured, "--out", "figures.json")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_bytes())
    found = json.loads((out / "_manifest.json").read_bytes())["evaluations"]
    assert [one["step"] for one in found] == [6, 10]
    assert found[1]["retrieval"] == figures["retrieval"]
    lines = [json.loads(line) for line in (out / "_run.jsonl").read_text().splitlines()]
    assert [line["evaluation"]["retrieval"] for line in lines if "evaluation" in line] == [
        one["retrieval"] for one in found
    ]


def test_what_a_run_leaves_is_described_by_its_manifest(whole):
    out, _ = whole
    made = json.loads((out / "_manifest.json").read_bytes())
    model = models.load_clip(out / "model")
    assert models.checkpoint_digest(out / "model") == made["digest"]
    assert float(np.asarray(model.temperature)) == made["temperature"]
    assert models.load_tokenizer(out / "model")(["a red house"]).shape == (1, 16)
    assert models.load_image_transform(out / "model").size == 32
    assert sorted(os.listdir(out / "checkpoints")) == ["10", "5", "8"]
    assert (out / "tensorboard").is_dir()
    lines = [json.loads(line) for line in (out / "_run.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 11))
    assert steps[-1]["rows_per_second"] > 0
    assert steps[-1]["peak_share"] is None
    assert 0 <= steps[-1]["input_wait_share"] <= 1


def test_ways_to_compute_give_the_same_losses(tmp_path, whole, clipdata, monkeypatch):
    """Sharded, in parts, with activations computed twice; from a checkpoint on weighted sources, in bfloat16."""
    out, arguments = whole
    monkeypatch.setattr(training_log, "_SECONDS_BETWEEN_LINES", 0.0)
    other = clipdata(*arguments, "other", "--fsdp", "--remat", "--microbatch", 8, "--eval-every", 10)
    assert other.returncode == 0, other.stderr
    assert losses(tmp_path / "other") == pytest.approx(losses(out), rel=2e-4)
    flags = ["--init", out / "model", "--weights", 1, 3, "--precision", "bfloat16", "--sampling", "replacement"]
    fixed = ["--steps", 1, "--batch-size", 16, "--clip-norm", 1, "--out", "tuned"]
    pool = arguments[1]
    tuned = clipdata("train", f"{pool}/00000.tar", f"{pool}/00001.tar", *flags, *fixed)
    assert tuned.returncode == 0, tuned.stderr
    assert losses(tmp_path / "tuned")[1] < losses(out)[1]
    wrong = clipdata("train", pool, "--init", out / "model", "--loss", "sigmoid", *fixed[:-1], "wrong")
    assert (wrong.returncode, "its model has no logit bias; train it with --loss contrastive" in wrong.stderr) == (
        2,
        True,
    )
    wrong = clipdata("train", pool, "--init", out / "model", "--arch", "ViT-B-32", *fixed[:-1], "wrong")
    assert (wrong.returncode, "has vision width 16" in wrong.stderr) == (2, True)


def losses(out):
    lines = [json.loads(line) for line in (out / "_run.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_a_diverging_run_names_its_last_good_checkpoint(tmp_path, whole, clipdata):
    _, arguments = whole
    explosive = ["--learning-rate", "1e38", "--warmup", 0, "--checkpoint-every", 1, "--sampling", "replacement"]
    done = clipdata(*arguments, "run", *explosive, "--loss", "sigmoid")
    assert done.returncode == 2
    assert "training diverged; lower --learning-rate, and choose another --out; the checkpoint of step" in done.stderr
    (kept,) = re.findall(r"the checkpoint of step (\d+) is kept in (\S+)", done.stderr)
    assert os.path.isdir(tmp_path / kept[1] / kept[0])


def test_a_checkpoint_of_another_model_is_refused(tmp_path, whole, clipdata, monkeypatch):
    out, arguments = whole
    shutil.copytree(out / "checkpoints", tmp_path / "run" / "checkpoints")
    shutil.copy(out / "_plan.json", tmp_path / "run")
    changed = clipdata(*arguments, "run", "--width", 8)
    assert (changed.returncode, "--width was 16, now 8" in changed.stderr) == (2, True), changed.stderr
    with monkeypatch.context() as patch:  # fails after the run has begun
        patch.setattr(train, "_check_batch", lambda options: tars.find_tars([str(tmp_path / "nowhere")]))
        assert clipdata(*arguments, "other", "--width", 8).returncode
    shutil.copytree(out / "checkpoints", tmp_path / "other" / "checkpoints")
    done = clipdata(*arguments, "other", "--width", 8)
    assert done.returncode == 2
    assert "the checkpoint of step 10 is of another model or optimiser (params." in done.stderr, done.stderr


def test_a_tar_that_breaks_while_training_is_skipped_and_named(tmp_path, pool, tokenizer, clipdata, monkeypatch):
    """In epoch 3: until then its pairs are used."""
    shutil.copytree(pool, tmp_path / "pool")
    write = TrainingLog.step

    def step_and_break(self, step, *rest):
        if step == 5:
            os.truncate(tmp_path / "pool" / "00001.tar", 700)
        write(self, step, *rest)

    monkeypatch.setattr(TrainingLog, "step", step_and_break)
    fixed = ["--tokenizer", tokenizer, "--steps", 24, "--batch-size", 16, "--on-bad", "skip", *TINY]
    done = clipdata("train", "pool", "--out", "run", *fixed)
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "run" / "_manifest.json").read_bytes())
    assert made["skipped_samples"] or made["skipped_tars"]
    assert "00001.tar" in json.dumps([made["skipped_samples"], made["skipped_tars"]])
    assert "Skipped" in done.stdout


def test_a_subset_and_what_is_skipped_are_counted(tmp_path, pool, tokenizer, capsys):
    def spoil(name, data):
        return b"no image" if name.endswith("03.jpg") else data

    edit_tar(pool / "00000.tar", tmp_path / "00000.tar", spoil)
    whole = (pool / "00001.tar").read_bytes()
    (tmp_path / "00001.tar").write_bytes(whole[: len(whole) // 2])
    samples = list(tars.read_tar(str(pool / "00000.tar")))
    found = [json.loads(sample.members["json"])["uid"] for sample in samples]
    spoilt = [sample.key for sample in samples].index(next(s.key for s in samples if s.key.endswith("03")))
    wanted = [*found[:12], found[spoilt], "0" * 32]
    uids.write_subset(str(tmp_path / "subset.npy"), uids.from_hex(sorted(set(wanted))))
    options = Train(
        sources=(str(tmp_path / "0000{0..1}.tar"),), tokenizer=str(tokenizer), out=str(tmp_path / "out"),
        subset=str(tmp_path / "subset.npy"), on_bad="skip", model=TINY_MODEL,
        optimiser=Optimiser(steps=4, warmup=0, batch_size=8),
    )  # fmt: skip
    made = train.run(options)
    assert made.facts["pairs"] == len(set(wanted)) - 1
    assert (made.facts["subset_uids"], made.facts["subset_uids_not_found"]) == (len(set(wanted)), 1)
    (skipped,) = made.facts["skipped_samples"]
    assert skipped["key"] == samples[spoilt].key
    assert "not an image" in skipped["reason"]
    assert len(made.facts["skipped_tars"]) == 1
    assert "00001.tar: damaged" in made.facts["skipped_tars"][0]
    assert "Skipped 1 tar and 1 sample" in capsys.readouterr().out
    # The same run again only says so; another one is refused and leaves everything as it is.
    before = (tmp_path / "out" / "_manifest.json").read_bytes()
    assert train.run(options) == made
    arguments = ["train", *options.sources, "--tokenizer", str(tokenizer), "--out", options.out, "--steps", "3"]
    assert cli.main([*arguments, "--warmup", "0", "--batch-size", "8", *TINY]) == 2
    assert "already holds the results of another run" in capsys.readouterr().err
    assert (tmp_path / "out" / "_manifest.json").read_bytes() == before


def test_tars_of_one_name_and_ids_of_any_kind_are_found(tmp_path, pool, tokenizer):
    """The subset, written in ids, names a pair of each of two folders, and one that has an id of its own."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    members = [member for member in tars.read_members(str(pool / "00000.tar")) if not member[0].endswith(".json")]
    key = members[0][0].partition(".")[0]
    tars.write_tar(str(tmp_path / "a/0.tar"), members)
    tars.write_tar(str(tmp_path / "b/0.tar"), [*members, ("z.json", b'{"uid": 17}'), ("z.jpg", members[0][1])])
    made = [uids.uid_of(f"{folder}/0.tar", key) for folder in "ab"]
    (tmp_path / "ids.txt").write_text("\n".join([*made, "17", uids.uid_of("0.tar", key)]))
    options = Train(
        sources=(str(tmp_path / "b"), str(tmp_path / "a")), tokenizer=str(tokenizer), out=str(tmp_path / "out"),
        subset=str(tmp_path / "ids.txt"), on_bad="skip", model=TINY_MODEL,
    )  # fmt: skip
    found = discovery.find_sources(options.sources, images_only=False)
    (index,) = train._index(options, found, str(tmp_path / "index"))
    assert (len(index), index.not_found) == (3, 1)


def cut_tar(folder, pool):
    data = (pool / "00001.tar").read_bytes()
    (folder / "00000.tar").write_bytes(data[: len(data) // 2])


def empty_caption(folder, pool):
    edit_tar(pool / "00001.tar", folder / "00000.tar", lambda name, data: b"" if name.endswith(".txt") else data)


def foreign_subset(folder, pool):
    (folder / "00000.tar").write_bytes((pool / "00000.tar").read_bytes())
    uids.write_subset(str(folder / "subset.npy"), uids.from_hex(["0" * 32]))


def good_tar(folder, pool):
    (folder / "00000.tar").write_bytes((pool / "00000.tar").read_bytes())


BAD = {
    "cut tar": (cut_tar, (), "00000.tar: damaged or not a tar"),
    "empty caption": (empty_caption, (), "its caption is empty; fix it, or pass --on-bad skip"),
    "no such tars": (good_tar, ("--tars", "nowhere"), "nowhere"),
    "no tokenizer": (good_tar, ("--tokenizer", "nowhere"), "nowhere"),
    "tokenizer of no files": (good_tar, ("--tokenizer", "."), "has no tokenizer"),
    "subset of another pool": (
        foreign_subset,
        ("--subset", "subset.npy"),
        "none of the 1 uids of --subset is among",
    ),
    "fewer pairs than a batch": (
        good_tar,
        ("--batch-size", "64"),
        "20 pairs to train on, expected at least a batch of 64",
    ),
    "batch of odd size": (good_tar, ("--batch-size", "9"), "--batch-size is 9, expected a multiple of the 8 devices"),
    "microbatch of odd size": (
        good_tar,
        ("--microbatch", "4"),
        "--microbatch is 4, expected a multiple of the 8",
    ),
    "no package for a log": (
        good_tar,
        ("--log", "wandb"),
        "--log wandb needs wandb, which is not installed; ",
    ),
    "no prompts": (good_tar, ("--eval-every", "1", "--eval-retrieval", "nowhere"), "nowhere"),
    "independent workers": (good_tar, ("--worker", "0/2"), "--worker: training needs all its processes at once"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_sentence(tmp_path, pool, tokenizer, capsys, monkeypatch, name):
    make, changes, words = BAD[name]
    make(tmp_path, pool)
    monkeypatch.chdir(tmp_path)
    flags = {"--tars": ".", "--tokenizer": str(tokenizer), "--out": "out", "--batch-size": "8"}
    flags |= dict(zip(changes[::2], changes[1::2], strict=True))
    arguments = [flags.pop("--tars"), *(word for flag in flags.items() for word in flag)]
    assert cli.main(["train", *arguments, "--steps", "2", "--warmup", "0", *TINY]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("clipdata train: ")
    assert words in error
    assert not (tmp_path / "out" / "model").exists()


@pytest.mark.slow
def test_real_images_are_learnt_and_found_again(tmp_path, shared, clipdata):
    source = str(shared("data/flickr8k_96px") / "train-00000.tar")
    samples = [sample for sample, _ in zip(tars.read_tar(source), range(192), strict=False)]
    members = [(name, s.members[ext]) for s in samples for ext, name in s.names.items()]
    tars.write_tar(str(tmp_path / "slice.tar"), members)
    models.train_tokenizer(
        [s.members["txt"].decode() for s in samples], tmp_path / "tokenizer", vocab_size=1024, context_length=16
    )
    fixed = ["--steps", "60", "--warmup", "5", "--batch-size", "64", "--learning-rate", "3e-3", "--clip-norm", "1"]
    arguments = ["slice.tar", "--tokenizer", "tokenizer", "--out", "run", *fixed, *TINY, "--width", 32]
    done = clipdata("train", *arguments, devices=1)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "_run.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert losses[1] > np.log(64) - 0.2
    assert losses[60] < np.log(64) - 1
    done = clipdata("evaluate", "run/model", "--retrieval", "slice.tar", "--out", "figures.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "figures.json").read_bytes())["retrieval"]
    assert (found["images"], found["captions"]) == (192, 960)
    assert found["image_to_text"]["r10"] > 0.25  # chance: 0.05; it saw one of five captions
