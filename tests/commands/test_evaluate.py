"""The command `evaluate`: figures against plain NumPy, labels of every kind, bad input, real images."""

import json

import numpy as np
import pytest
from support.checkpoints import make_checkpoint
from support.processes import check_verify

from clipdata_jax import cli, models, storage
from clipdata_jax.commands import evaluate
from clipdata_jax.config import Evaluate
from clipdata_jax.demo.pool import make_zero_shot
from clipdata_jax.embedding.samples import Decoded
from clipdata_jax.errors import InputError
from clipdata_jax.evaluation.evaluator import labeller
from clipdata_jax.formats import tars

CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def zero_shot(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero_shot")
    make_zero_shot(str(folder), per_class=2, seed=0)
    return folder


def embed(checkpoint, images, texts):
    """Unit rows in float64, straight from the model."""
    model, transform = models.load_clip(checkpoint), models.load_image_transform(checkpoint)
    pixels = np.stack([transform(image) for image in images])
    ids = models.load_tokenizer(checkpoint)(texts)
    return (np.asarray(emb, np.float64) for emb in (model.encode_image(pixels), model.encode_text(ids)))


@pytest.mark.slow
def test_figures_of_the_demo_set_are_the_plain_counts(tmp_path, checkpoint, zero_shot, clipdata):
    names, templates = (json.loads((zero_shot / f"{name}.json").read_text()) for name in ("classnames", "templates"))
    done = clipdata(
        "evaluate", checkpoint, "--classification", zero_shot, "--classnames", zero_shot / "classnames.json",
        "--templates", zero_shot / "templates.json", "--out", "figures.json", "--batch-size", 16, devices=2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    samples = [sample for path in tars.find_tars([str(zero_shot)]) for sample in tars.read_tar(path)]
    prompts = [template.replace("{c}", name) for name in names for template in templates]
    f, g = embed(checkpoint, [sample.image() for sample in samples], prompts)
    weights = g.reshape(len(names), len(templates), -1).mean(axis=1)
    cosines = f @ (weights / np.linalg.norm(weights, axis=1, keepdims=True)).T
    labels = np.array([int(sample.members["cls"]) for sample in samples])
    ranks = np.sum(cosines > cosines[np.arange(len(labels)), labels][:, None], axis=1)
    found = json.loads((tmp_path / "figures.json").read_bytes())["classification"]
    np.testing.assert_allclose(found["top1"], np.mean(ranks < 1))
    np.testing.assert_allclose(found["top5"], np.mean(ranks < 5))
    by_class = [np.mean(ranks[labels == label] < 1) for label in np.unique(labels)]
    np.testing.assert_allclose(found["mean_per_class"], np.mean(by_class))
    assert (found["images"], found["classes"]) == (len(samples), len(names))
    assert f"{np.mean(ranks < 1):.1%}" in done.stdout
    assert "mean per class" in done.stdout
    beside = json.loads((tmp_path / "figures.json.manifest.json").read_bytes())
    assert beside["model"] == models.checkpoint_digest(checkpoint)
    assert beside["figures"]["classification"] == found
    check_verify(clipdata, tmp_path / "figures.json", tmp_path / "figures.json")


@pytest.mark.slow
def test_real_captions_and_folders_of_real_images(tmp_path, checkpoint, shared):
    captioned = list(tars.read_tar(str(shared("data/flickr8k_96px") / "val-00000.tar")))[:200]
    labelled = list(tars.read_tar(str(shared("data/cifar10") / "test.tar")))[::50]
    for name, samples in (("flickr", captioned), ("cifar", labelled)):
        members = [(member, s.members[ext]) for s in samples for ext, member in s.names.items()]
        tars.write_tar(str(tmp_path / f"{name}.tar"), members)
    (tmp_path / "names.json").write_text(json.dumps(CIFAR))
    options = Evaluate(
        model=str(checkpoint), retrieval=(str(tmp_path / "flickr.tar"),), classnames=str(tmp_path / "names.json"),
        classification=(str(tmp_path / "cifar.tar"),), out=str(tmp_path / "figures.json"), batch_size=8,
    )  # fmt: skip
    figures = evaluate.run(options)
    found, classes = figures["retrieval"], figures["classification"]
    captions = [caption for s in captioned for caption in json.loads(s.members["json"])["captions"]]
    f, g = embed(checkpoint, [s.image() for s in captioned], captions)
    cosines = f @ g.T
    own = np.repeat(np.arange(200), 5) == np.arange(200)[:, None]
    best = np.max(np.where(own, cosines, -np.inf), axis=1, keepdims=True)
    to_text = np.sum(~own & (cosines > best), axis=1)
    to_image = np.sum(cosines > cosines[np.repeat(np.arange(200), 5), np.arange(1000)], axis=0)
    for k in (1, 5, 10):  # float32 may order two near ones otherwise than float64
        np.testing.assert_allclose(found["image_to_text"][f"r{k}"], np.mean(to_text < k), atol=0.011)
        np.testing.assert_allclose(found["text_to_image"][f"r{k}"], np.mean(to_image < k), atol=0.004)
    assert found["image_to_text"]["r1"] < 0.05
    assert found["text_to_image"]["r1"] < 0.03
    assert (classes["images"], classes["classes_seen"], classes["templates"]) == (200, 10, 1)
    assert classes["top1"] == pytest.approx(classes["mean_per_class"])  # 20 images of each class
    assert 0 < classes["top1"] < 0.3
    assert classes["top1"] < classes["top5"] < 0.8
    # The same evaluation again writes the same bytes; anything else doesn't replace it.
    before = (tmp_path / "figures.json").read_bytes()
    evaluate.run(options)
    assert (tmp_path / "figures.json").read_bytes() == before
    arguments = ["--classification", *options.classification, "--classnames", options.classnames]
    assert cli.main(["evaluate", str(checkpoint), *arguments, "--out", options.out]) == 2
    assert (tmp_path / "figures.json").read_bytes() == before


def test_data_sets_of_clip_benchmark(tmp_path, checkpoint, zero_shot, capsys):
    """Captions and class names one a line; captions of the same text are right, ties and lines are counted."""
    (source,) = tars.find_tars([str(zero_shot)])
    images = [data for name, data in tars.read_members(source) if name.endswith(".jpg")][:3]
    captions = ["a red cat\na dog\n\n", "a red cat\na bird", "A  DOG\na green fish"]
    for name in ("wds/test", "plain"):
        (tmp_path / name).mkdir(parents=True)
        members = [[(f"{i}.jpg", images[i]), (f"{i}.txt", captions[i].encode())] for i in range(3)]
        tars.write_tar(str(tmp_path / name / "0.tar"), [one for several in members for one in several])
    (tmp_path / "wds/dataset_type.txt").write_text("retrieval\n")
    command = ["evaluate", str(checkpoint), "--batch-size", "1", "--out"]
    assert cli.main([*command, str(tmp_path / "w.json"), "--retrieval", str(tmp_path / "wds/test")]) == 0
    assert "retrieval: 3 images, 6 captions (5 different ones)" in (shown := capsys.readouterr().out)
    found = json.loads((tmp_path / "w.json").read_bytes())["retrieval"]
    assert found["captions_of_several_lines"] == 0
    f, g = embed(checkpoint, [s.image() for s in tars.read_tar(str(tmp_path / "wds/test/0.tar"))],
                 ["a red cat", "a dog", "a red cat", "a bird", "A  DOG", "a green fish"])  # fmt: skip
    cosines, right = f @ g.T, np.array([[1, 1, 1, 0, 0, 0], [1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]], bool)
    best = np.where(right, cosines, -2).max(axis=1, keepdims=True)
    np.testing.assert_allclose(found["image_to_text"]["r1"], np.mean(~np.any(~right & (cosines >= best), axis=1)))
    ties = int(np.any(~right & (cosines == best), axis=1).sum())  # "A  DOG" is "a dog" to the model
    assert found["ties"] == {"image_to_text": ties, "text_to_image": 0}
    assert (f"which count as wrong: {ties} images, 0 captions" in shown) == bool(ties)
    assert cli.main([*command, str(tmp_path / "p.json"), "--retrieval", str(tmp_path / "plain")]) == 0
    assert "captions of several lines, each taken as one: 3" in capsys.readouterr().out
    (tmp_path / "classnames.txt").write_text("\n".join(json.loads((zero_shot / "classnames.json").read_text())) + "\n")
    (tmp_path / "templates.txt").write_text("a {c} thing\na photo of a {c}\n")
    labelled = ("--classnames", str(tmp_path / "classnames.txt"), "--templates", str(tmp_path / "templates.txt"))
    assert cli.main([*command, str(tmp_path / "c.json"), "--classification", str(zero_shot), *labelled]) == 0
    assert json.loads((tmp_path / "c.json").read_bytes())["classification"]["templates"] == 2


def sample(key, label=None):
    return Decoded("a.tar", key, "0" * 32, "", (), label, np.zeros((1, 1, 3), np.uint8), 1, 1)


def test_labels_come_from_cls_or_folder():
    label_of = labeller(["airplane", "Great White-Shark", "crane", "crane"])
    assert label_of(sample("test/anything/0", "3")) == 3
    assert label_of(sample("test/great_white  shark/0")) == 1
    for key, label, words in [
        ("0", None, "neither a .cls nor a folder"),
        ("0", "4", "its .cls is '4', expected a number from 0 to 3"),
        ("0", "-1", "its .cls is '-1'"),
        ("0", "cat", "its .cls is 'cat'"),
        ("cat/0", None, "its folder 'cat' is not a class name"),
        ("crane/0", None, "is the name of the classes [2, 3]"),
    ]:
        with pytest.raises(InputError) as caught:
            label_of(sample(key, label))
        assert words in str(caught.value)


BAD = {
    "no model": ({"model": "nowhere"}, "nowhere"),
    "no tars": ({"tars": "nowhere.tar"}, "nowhere.tar"),
    "names of another form": ({"classnames": '{"cifar10": []}'}, "expected a JSON list of class names"),
    "names that are no JSON": ({"classnames": "airplane"}, "not JSON"),
    "a prompt without a place": ({"templates": '["a photo"]'}, "the prompt 'a photo' has no {c} for the class"),
    "too few names": ({"classnames": '["one", "two"]'}, "expected a number from 0 to 1"),
    "a broken image": ({"broken": True}, "sample '000001': not an image"),
    "a cut tar": ({"cut": True}, "damaged or not a tar"),
    "an output that is there": ({"there": True}, "figures.json: already exists and was not written by this command"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_sentence(tmp_path, checkpoint, zero_shot, capsys, name):
    changes, words = BAD[name]
    assert cli.main(prepare(tmp_path, checkpoint, zero_shot, changes)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("clipdata evaluate: ")
    assert words in error


def prepare(folder, checkpoint, zero_shot, changes):
    """The arguments of an evaluation of five images that has something wrong with it."""
    (source,) = tars.find_tars([str(zero_shot)])
    members = list(tars.read_members(source))[:10]
    if "broken" in changes:
        members = [(n, b"no image" if n == "000001.jpg" else data) for n, data in members]
    path = folder / "pool.tar"
    tars.write_tar(str(path), members)
    if "cut" in changes:
        path.write_bytes(path.read_bytes()[:3000])
    if "there" in changes:
        (folder / "figures.json").write_text("{}")
    names = folder / "names.json"
    names.write_text(changes.get("classnames", (zero_shot / "classnames.json").read_text()))
    arguments = ["evaluate", changes.get("model", str(checkpoint)), "--out", str(folder / "figures.json")]
    if "templates" in changes:
        (folder / "templates.json").write_text(changes["templates"])
        arguments += ["--templates", str(folder / "templates.json")]
    return [*arguments, "--classification", changes.get("tars", str(path)), "--classnames", str(names)]


def test_what_is_skipped_is_listed_and_the_rest_is_measured(tmp_path, checkpoint, zero_shot, capsys):
    arguments = prepare(tmp_path, checkpoint, zero_shot, {"broken": True})
    assert cli.main([*arguments, "--on-bad", "skip", "--batch-size", "1"]) == 0
    figures = json.loads(storage.read_bytes(str(tmp_path / "figures.json")))
    assert figures["classification"]["images"] == 4
    assert len(figures["skipped"]) == 1
    assert "sample '000001': not an image" in figures["skipped"][0]
    assert "Skipped 1 input, listed in " in capsys.readouterr().out
