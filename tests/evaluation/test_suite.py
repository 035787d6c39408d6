"""What a suite embeds, counted: images and prompts once, tokens no longer than needed, and numbers that are finite."""

import dataclasses

import numpy as np
import pytest
from support import eval_suites
from support.towers import SMALL

from clipdata_jax.errors import InputError
from clipdata_jax.evaluation.suite import TaskEvaluator
from clipdata_jax.evaluation.task_files import open_task
from clipdata_jax.evaluation.tasks import TASKS

END = SMALL.text.eos_token_id


class CountingEncoder:
    """Embeds by fixed random projections, and counts rows."""

    rows = 5

    def __init__(self, scale=1.0):
        self.seen, self.lengths, self._scale = {"images": 0, "texts": 0}, [], scale

    def _unit(self, rows, kind):
        self.seen[kind] += len(rows)
        flat = rows.reshape(len(rows), -1).astype(np.float64)
        emb = np.sin(flat @ np.random.default_rng(0).standard_normal((flat.shape[1], 6)))
        return (self._scale * emb / np.linalg.norm(emb, axis=1, keepdims=True)).astype(np.float32)

    def images(self, pixels):
        return self._unit(pixels, "images")

    def texts(self, ids):
        self.lengths.append(ids.shape[1])
        return self._unit(ids, "texts")


def tokenize(texts):
    ids = np.zeros((len(texts), 77), np.int32)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = [ord(char) % 30 + 1 for char in text]
        row[len(text)] = END
    return ids


def evaluator(encoder, **text):
    shape = dataclasses.replace(SMALL.text, context_length=77, **text)
    return TaskEvaluator(encoder, tokenize, np.asarray, shape, on_bad="stop")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    for seed, key in enumerate(("mnist", "cifar10"), start=1):
        eval_suites.draw_wds(data, key, 7, seed)
    return data / "wds_mnist_test", data / "wds_cifar10_test"


def test_images_and_prompts_that_tasks_share_are_embedded_once(folders):
    encoder = CountingEncoder()
    measured = evaluator(encoder)
    first = measured.measure(open_task(TASKS["mnist"], str(folders[0])))
    prompts = len(eval_suites.NAMES) * len(eval_suites.TEMPLATES)
    assert encoder.seen == {"images": 7, "texts": prompts}
    again = measured.measure(open_task(TASKS["stl10"], str(folders[0])))  # of the same folder
    assert again.metrics == first.metrics
    assert encoder.seen == {"images": 7, "texts": prompts}
    measured.measure(open_task(TASKS["cifar10"], str(folders[1])))  # of the same classes
    assert encoder.seen == {"images": 14, "texts": prompts}


@pytest.mark.parametrize("causal", [True, False])
def test_tokens_are_cut_after_the_longest_prompt_where_no_tower_reads_on(folders, causal):
    encoder = CountingEncoder()
    evaluator(encoder, causal=causal).measure(open_task(TASKS["mnist"], str(folders[0])))
    longest = max(len(one.replace("{c}", name)) for one in eval_suites.TEMPLATES for name in eval_suites.NAMES) + 1
    assert encoder.lengths == [-(-longest // 8) * 8 if causal else 77]


def test_a_model_whose_embeddings_are_no_numbers_is_an_error(folders):
    with pytest.raises(InputError, match="MNIST: an embedding holds a number that is not finite; check the model"):
        evaluator(CountingEncoder(scale=np.nan)).measure(open_task(TASKS["mnist"], str(folders[0])))
