"""`evaluate --suite datacomp` on a small suite of every kind of task: metrics, runs that resume, bad input."""

import functools
import io
import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from sklearn import metrics as sk
from support import eval_suites
from support.checkpoints import make_checkpoint
from support.processes import check_verify

from clipdata_jax import cli, models
from clipdata_jax.embedding.encoder import Encoder
from clipdata_jax.evaluation import results
from clipdata_jax.evaluation.tasks import TASKS
from clipdata_jax.formats import tars
from clipdata_jax.runtime import parallel

FLICKR, MSCOCO = (f"retrieval/{name}_test_image_text_retrieval" for name in ("flickr_1k", "mscoco_2014_5k"))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite")
    model = models.load_clip(make_checkpoint(folder / "model"))
    structure, state = nnx.split(model)
    # Larger weights than at the start of training: else all images are nearest to one class.
    state = jax.tree.map(lambda one: 3 * one if one.ndim > 1 else one, state)
    models.save_clip(nnx.merge(structure, state), folder / "model")
    return folder, eval_suites.draw(folder / "data")


def command(folder, out, *more, data="data"):
    model, data = folder / "model", folder / data
    return ["evaluate", str(model), "--suite", "datacomp", "--data", str(data), "--out", str(out), *map(str, more),
            "--batch-size", "4"]  # fmt: skip


@pytest.fixture(scope="module")
def finished(work):
    folder, drawn = work
    assert cli.main(command(folder, folder / "results")) == 0
    return {one.key: one for one in results.read(str(folder / "results" / results.NAME))}, drawn


@pytest.fixture(scope="module")
def embed(work):
    """Functions that embed images and texts in float64, straight from the model."""
    folder, _ = work
    model, transform = models.load_clip(folder / "model"), models.load_image_transform(folder / "model")
    tokenize = models.load_tokenizer(folder / "model")
    encoder = Encoder(model, 16, parallel.data_mesh(jax.devices()[:1]))

    @functools.cache
    def image(one):
        return encoder.images(transform(Image.open(io.BytesIO(one)))[None])[0].astype(np.float64)

    def texts(several):
        return encoder.texts(tokenize(list(several))).astype(np.float64)

    return lambda several: np.stack(list(map(image, several))), texts


def scores_of(embed, images, names=eval_suites.NAMES, templates=eval_suites.TEMPLATES):
    embed_images, embed_texts = embed
    means = [embed_texts([one.replace("{c}", name) for one in templates]).mean(axis=0) for name in names]
    weights = np.array([mean / np.linalg.norm(mean) for mean in means])
    return embed_images(images) @ weights.T


def test_every_task_is_there_in_datacomps_order(finished):
    found, drawn = finished
    assert list(found) == [key for key in TASKS if key in drawn]
    for key, one in found.items():
        assert one.dataset == TASKS[key].name
        main = TASKS[key].main_metric
        assert one.main == (None if main is None else one.metrics[main])
    assert sum(one.main is None for one in found.values()) == 2


@pytest.mark.parametrize("key", ["cifar10", "vtab/flowers", "wilds/iwildcam", "wilds/camelyon17", "wilds/fmow",
                                 "fairness/dollar_street", "fairness/geode"])  # fmt: skip
def test_classification_is_that_of_scikit_learn(finished, embed, key):
    found, drawn = finished
    got, task = found[key].metrics, drawn[key]
    scores, labels = scores_of(embed, task.images), np.array(task.labels)
    predicted = scores.argmax(axis=1)
    assert len(set(predicted.tolist())) > 1
    options = {"labels": np.unique(labels), "average": "macro", "zero_division": 0}
    recall = sk.recall_score(labels, predicted, **options)
    want = {
        "acc1": sk.accuracy_score(labels, predicted),
        "acc5": sk.top_k_accuracy_score(labels, scores, k=5, labels=range(len(eval_suites.NAMES))),
        "mean_per_class_recall": recall,
    }
    right, rows = predicted == labels, np.array(task.rows)
    if key == "wilds/iwildcam":
        want |= {"F1-macro_all": sk.f1_score(labels, predicted, **options), "recall-macro_all": recall}
    if key == "wilds/fmow":
        shares = {region: right[rows[:, 0] == region].mean() for region in set(rows[:, 0].tolist())}
        want["acc_worst_region"] = min(shares.values())
        want["acc_worst_named_region"] = min(share for region, share in shares.items() if region != 5)
        want["acc_worst_year"] = min(right[rows[:, 1] == year].mean() for year in set(rows[:, 1].tolist()))
    if key == "fairness/dollar_street":
        top5 = (np.argsort(-scores, axis=1)[:, :5] == labels[:, None]).any(axis=1)
        want["acc_top5_wg"] = min(top5[rows[:, 0] == income].mean() for income in set(rows[:, 0].tolist()))
        want["acc_top5_income_ds:1"] = top5[rows[:, 0] == 1].mean()
    if key == "fairness/geode":
        want["acc_wg"] = min(right[rows[:, 0] == region].mean() for region in set(rows[:, 0].tolist()))
    assert {name: got[name] for name in want} == pytest.approx(want, abs=1e-6)
    assert found[key].images == len(labels)


@pytest.mark.parametrize("key", [FLICKR, MSCOCO])
def test_retrieval_has_several_captions_an_image(finished, embed, key):
    found, drawn = finished
    task = drawn[key]
    texts = [text for several in task.captions for text in several]
    owner = np.repeat(np.arange(len(task.images)), [len(several) for several in task.captions])
    cosines = embed[0](task.images) @ embed[1](texts).T
    for k in (1, 5, 10):
        by_image = [np.any(owner[np.argsort(-row)[:k]] == i) for i, row in enumerate(cosines)]
        by_text = [owner[j] in np.argsort(-column)[:k] for j, column in enumerate(cosines.T)]
        assert found[key].metrics[f"text_retrieval_recall@{k}"] == pytest.approx(np.mean(by_image), abs=1e-6)
        assert found[key].metrics[f"image_retrieval_recall@{k}"] == pytest.approx(np.mean(by_text), abs=1e-6)


def test_winogavil_is_the_jaccard_index_of_the_closest(finished, embed):
    found, drawn = finished
    held, scores = drawn["misc/winogavil"], []
    for cue, candidates, associations in held.instances:
        prompt = {"Owl": "An owl", "tree": "A tree", "ice": "An ice", "sea": "A sea"}[cue]
        cosines = embed[0]([held.images[name] for name in candidates]) @ embed[1]([prompt])[0]
        right = np.isin(candidates, associations)
        chosen = np.isin(np.arange(len(right)), np.argsort(-cosines)[: right.sum()])
        scores.append(sk.jaccard_score(right, chosen))
    got = found["misc/winogavil"].metrics
    assert got["avg_jaccard_score"] == pytest.approx(np.mean(scores), abs=1e-6)
    assert got["main_metric"] == pytest.approx(np.mean(scores[1:3]), abs=1e-6)
    assert found["misc/winogavil"].images == len(held.instances)


@pytest.mark.parametrize("key", ["fairness/fairface", "fairness/utkface"])
def test_faces_have_a_classifier_for_each_objective(finished, embed, key):
    found, drawn = finished
    task = drawn[key]
    rows, predicted = np.array(task.rows), {}
    for name, classes in eval_suites.FACE_CLASSES.items():
        predicted[name] = scores_of(embed, task.images, classes, eval_suites.FACE_TEMPLATES[name]).argmax(axis=1)
    got = found[key].metrics
    assert got["acc_gender_avg"] == pytest.approx(sk.accuracy_score(rows[:, 1], predicted["gender"]))
    assert got["acc_race_avg"] == pytest.approx(sk.accuracy_score(rows[:, 3], predicted["race"] != 1))
    assert got["toxicity_crime_avg"] == pytest.approx(np.mean(predicted["toxic"] >= 18))


def test_the_same_command_again_does_nothing_and_verify_agrees(work, finished, capsys, clipdata):
    folder, _ = work
    before = (folder / "results" / "_run.jsonl").read_bytes()
    assert cli.main([*command(folder, folder / "results"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["result"]
    assert (folder / "results" / "_run.jsonl").read_bytes() == before
    assert told["results"]["cifar10"] == finished[0]["cifar10"].main
    assert len(told["missing"]) == 28
    (average,) = [one for one in told["means"] if one["name"] == "average"]
    mains = [one.main for one in finished[0].values() if one.main is not None]
    assert (average["measured"], average["tasks"]) == (10, 38)
    assert average["mean"] == pytest.approx(np.mean(mains))
    check_verify(clipdata, folder / "results", folder / "results" / results.NAME)


def test_a_stopped_run_goes_on_and_processes_share_tasks(work, finished, tmp_path, capsys):
    """The same bytes however the tasks were divided; the summary names what is missing."""
    folder, _ = work
    wanted = (folder / "results" / results.NAME).read_bytes()
    parts = command(folder, tmp_path / "r", "--tasks", "cifar10,Flickr", "GeoDE")
    assert cli.main([*parts, "--stop-after", "1"]) == 75
    assert not (tmp_path / "r" / results.NAME).exists()
    assert cli.main([*parts, "--worker", "1/2"]) == 0
    assert cli.main([*parts, "--worker", "0/2"]) == 0
    lines = {json.loads(line)["key"]: line for line in wanted.splitlines()}
    found = (tmp_path / "r" / results.NAME).read_bytes().splitlines()
    assert found == [lines[key] for key in ("cifar10", FLICKR, "fairness/geode")]
    shown = capsys.readouterr().out
    assert "retrieval  " in shown
    assert "Not in the folder" not in shown


def test_half_precision_is_close(work, finished, tmp_path):
    folder, _ = work
    assert cli.main([*command(folder, tmp_path / "r", "--tasks", "GeoDE"), "--precision", "bfloat16"]) == 0
    (found,) = results.read(str(tmp_path / "r" / results.NAME))
    assert found.metrics["acc5"] == pytest.approx(finished[0]["fairness/geode"].metrics["acc5"], abs=0.35)


def spoil(folder, drawn, *names):
    """Breaks the set of cifar10 or GeoDE in some ways, each of another sample."""
    cifar, geode = folder / "wds_cifar10_test", folder / "wds_geode_test"
    found = dict(one for i in range(6) for one in eval_suites.members(drawn["fairness/geode"], i))
    for i, name in enumerate(names):
        if name in SAMPLES:
            extension, data, _ = SAMPLES[name]
            found[f"s{i:07}.{extension}"] = data
        elif name == "broken shard":
            (geode / "test" / "1.tar").write_bytes((geode / "test" / "1.tar").read_bytes()[:3000])
        elif name == "missing shard":
            (cifar / "test" / "1.tar").unlink()
        elif name == "no templates":
            (cifar / "zeroshot_classification_templates.txt").unlink()
        else:
            file, data = {
                "prompt without a place": ("zeroshot_classification_templates.txt", "a photo\n"),
                "empty name": ("classnames.txt", "a\n\nb\n"),
                "no count": ("test/nshards.txt", "two"),
            }[name]
            (cifar / file).write_text(data)
    members = [(name, data) for name, data in found.items() if data is not None]
    tars.write_tar(str(geode / "test" / "0.tar"), members)


SAMPLES = {
    "label out of range": ("cls", b"6", "its .cls is '6', expected a number from 0 to 5"),
    "label that is no number": ("cls", b"bird", "its .cls is 'bird'"),
    "no row": ("npy", None, "it has no .npy; expected a row of 2 integers: region, country"),
    "short row": ("npy", eval_suites.npy([1]), "its .npy is int64[1]; expected a row of 2 integers"),
    "pickled row": ("npy", eval_suites.npy([1, "a"], object), "its .npy can't be read"),
    "broken image": ("webp", b"no image", "not an image"),
}
TASKS_BROKEN = {
    "broken shard": "1.tar: damaged or not a tar file",
    "missing shard": "1.tar: no such file, but",
    "no templates": "zeroshot_classification_templates.txt: no such file; expected prompts, one a line",
    "prompt without a place": "the prompt 'a photo' has no {c}",
    "empty name": "classnames.txt: line 2 is empty",
    "no count": "nshards.txt: holds 'two', expected the number of tars",
}


def copied(folder, target):
    for part in ("wds_cifar10_test", "wds_geode_test"):
        shutil.copytree(folder / "data" / part, target / "data" / part)
    return target / "data"


@pytest.mark.parametrize("name", [*SAMPLES, *TASKS_BROKEN])
def test_what_is_bad_is_named(work, tmp_path, capsys, name):
    folder, drawn = work
    data = copied(folder, tmp_path)
    spoil(data, drawn, name)
    of_geode = name in SAMPLES or name == "broken shard"
    assert cli.main(command(folder, tmp_path / "r", "--tasks", "GeoDE" if of_geode else "cifar10", data=data)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("clipdata evaluate: ")
    words = f"0.tar: sample 's0000000': {SAMPLES[name][2]}" if name in SAMPLES else TASKS_BROKEN[name]
    assert words in error


def test_what_is_left_out_is_listed_and_the_rest_is_measured(work, tmp_path, capsys):
    folder, drawn = work
    data = copied(folder, tmp_path)
    spoil(data, drawn, "label out of range", "no row", "broken image", "broken shard", "no templates")
    assert cli.main([*command(folder, tmp_path / "r", data=data), "--on-bad", "skip", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["result"]
    assert list(told["failed_tasks"]) == ["cifar10"]
    assert TASKS_BROKEN["no templates"] in told["failed_tasks"]["cifar10"]
    wanted = [*(one[2] for one in SAMPLES.values()), TASKS_BROKEN["broken shard"]]
    assert sum(any(words in reason for words in wanted) for reason in told["skipped"]) == len(told["skipped"]) == 4
    (found,) = results.read(str(tmp_path / "r" / results.NAME))
    assert (found.key, found.images, found.skipped) == ("fairness/geode", 3, 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("--tasks", "mnist"),
            "has no data set of MNIST; expected a folder wds_mnist_test, from the repository djghosh/",
        ),
        (("--tasks", "cifar1"), "--tasks has 'cifar1', which is not a task; did you mean cifar10?"),
        (("--data", "nowhere"), "--data nowhere: no such folder"),
        (("--retrieval", "x.tar"), "--suite is 'datacomp', expected no value with --retrieval"),
    ],
)
def test_bad_usage_is_one_sentence(work, tmp_path, capsys, arguments, words):
    folder, _ = work
    options = command(folder, tmp_path / "r")
    if arguments[0] == "--data":
        options[options.index("--data") + 1] = arguments[1]
    else:
        options += arguments
    assert cli.main(options) == 2
    assert words in capsys.readouterr().err


def test_out_and_suite_fit(work, tmp_path, capsys):
    folder, _ = work
    assert cli.main(command(folder, tmp_path / "r.json")) == 2
    assert "expected a folder for the results of --suite" in capsys.readouterr().err
    assert cli.main(["evaluate", str(folder / "model"), "--out", "x.json", "--data", "y"]) == 2
    assert "--data is 'y', expected no value without --suite datacomp" in capsys.readouterr().err
