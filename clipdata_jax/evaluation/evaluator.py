"""One labelled or captioned data set in, figures out: for `evaluate`, and for a model that is being trained."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from clipdata_jax import storage
from clipdata_jax.embedding.encoder import Encoder
from clipdata_jax.embedding.samples import Decoded
from clipdata_jax.errors import InputError, OnBad
from clipdata_jax.evaluation import image_sets
from clipdata_jax.evaluation.retrieval import recall, retrieval_ranks
from clipdata_jax.evaluation.zero_shot import accuracy, zero_shot_weights
from clipdata_jax.formats.sources.source import TarSource
from clipdata_jax.models import Tokenizer

PLACE = "{c}"
"""What stands for the class in a prompt."""


class Evaluator:
    """Measures a model on webdataset tars.

    Args:
      encoder: the model on this process's devices; `Encoder.update` gives it the parameters of a later step.
      tokenizer: of the model.
      transform: an image -> the pixels that the model takes.
      on_bad: what to do with broken tars and images: "stop" raises, "skip" lists them in `skipped`.
    """

    def __init__(
        self,
        encoder: Encoder,
        tokenizer: Tokenizer,
        transform: Callable[[Image.Image], np.ndarray],
        *,
        on_bad: OnBad = "stop",
    ) -> None:
        self._encoder, self._tokenizer, self._transform, self._on_bad = encoder, tokenizer, transform, on_bad
        self.skipped: list[str] = []
        """What was left out so far, and why."""

    def classify(self, paths: Sequence[str], names: Sequence[str], templates: Sequence[str]) -> dict[str, Any]:
        """Measures zero-shot classification.

        Args:
          paths: tars of labelled images: the number of the class in .cls, or its name as the folder of the member.
          names: of the classes, in order of their numbers.
          templates: prompts, with "{c}" for the class.

        Returns:
          "images", "classes", "classes_seen" and "templates", whole numbers, and the shares of `Accuracy`: "top1",
          "top5" and "mean_per_class".

        Raises:
          InputError: a tar, an image or a label is bad and `on_bad` is "stop", or no image is left.
        """
        found = self._embed(paths, "classify", labeller(names), need_caption=False)
        prompts = [template.replace(PLACE, name) for name in names for template in templates]
        text_emb = self._encoder.texts(self._tokenizer(prompts))
        weights = zero_shot_weights(text_emb.reshape(len(names), len(templates), -1))
        shares = accuracy(found.emb, weights, np.asarray(found.facts, np.int32))
        return {
            "images": len(found.facts),
            "classes": len(names),
            "classes_seen": len(set(found.facts)),
            "templates": len(templates),
            **shares._asdict(),
        }

    def retrieve(self, paths: Sequence[str]) -> dict[str, Any]:
        """Measures image-text retrieval, both ways.

        Args:
          paths: tars of images with one caption or several: .txt, or the list "captions" in .json.

        Returns:
          "images", "captions", "distinct_captions" and "captions_of_several_lines", whole numbers; "image_to_text" and
          "text_to_image", each `recall`'s shares at 1, 5 and 10; and "ties" with a wrong answer, both ways.

        Raises:
          InputError: a tar, an image or a caption is bad and `on_bad` is "stop", or no image is left.
        """
        found = self._embed(paths, "retrieve", captions_of, need_caption=True)
        captions = found.facts
        texts = [caption for several in captions for caption in several]
        image_of = np.repeat(np.arange(len(captions), dtype=np.int32), [len(several) for several in captions])
        numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        text_of = np.array([numbers[text] for text in texts], np.int32)
        text_emb = self._encoder.texts(self._tokenizer(texts))
        ranks = retrieval_ranks(found.emb, text_emb, image_of, text_of)
        return {
            "images": len(captions),
            "captions": len(texts),
            "distinct_captions": len(numbers),
            "captions_of_several_lines": sum("\n" in text.strip() for text in texts),
            "image_to_text": recall(ranks.image_to_text, len(texts)),
            "text_to_image": recall(ranks.text_to_image, len(captions)),
            "ties": {"image_to_text": int(ranks.image_ties.sum()), "text_to_image": int(ranks.text_ties.sum())},
        }

    def _embed(
        self, paths: Sequence[str], name: str, fact_of: Callable[[Decoded], Any], *, need_caption: bool
    ) -> image_sets.ImageSet[Any]:
        found = image_sets.embed(
            [TarSource(path) for path in paths],
            self._encoder,
            self._transform,
            fact_of,
            on_bad=self._on_bad,
            need_caption=need_caption,
            name=name,
        )
        self.skipped += found.skipped
        return found


def captions_of(sample: Decoded) -> tuple[str, ...]:
    """A sample's captions: one a line of its .txt in a retrieval data set of CLIP_benchmark."""
    if not _one_a_line(sample.tar.rpartition("/")[0] or "."):
        return sample.captions
    return tuple(line for caption in sample.captions for line in caption.splitlines() if line.strip())


@functools.cache
def _one_a_line(folder: str) -> bool:
    """Whether the tars of a folder have one caption a line, as dataset_type.txt in it or above it says."""
    above = folder.rpartition("/")[0] or ("." if folder != "." else "..")
    for path in (storage.join(folder, "dataset_type.txt"), storage.join(above, "dataset_type.txt")):
        if storage.exists(path):
            return storage.read_bytes(path).strip() == b"retrieval"
    return False


def labeller(names: Sequence[str]) -> Callable[[Decoded], int]:
    """Returns a function that finds a sample's class: by its `.cls`, else by the folder of its members.

    Folder and class names are compared without case, underscores and hyphens counting as spaces.

    Args:
      names: of the classes, in order of their numbers.
    """
    by_name = collections.defaultdict(list)
    for number, name in enumerate(names):
        by_name[_plain(name)].append(number)

    def label_of(sample: Decoded) -> int:
        if sample.label is not None:
            if not (sample.label.isdecimal() and int(sample.label) < len(names)):
                raise InputError(f"its .cls is {sample.label!r:.40}, expected a number from 0 to {len(names) - 1}")
            return int(sample.label)
        folder = sample.key.rpartition("/")[0].rpartition("/")[2]
        if not folder:
            raise InputError("it has neither a .cls nor a folder named after its class")
        numbers = by_name.get(_plain(folder), [])
        if len(numbers) != 1:
            found = "is not a class name" if not numbers else f"is the name of the classes {numbers}"
            raise InputError(f"its folder {folder!r} {found}; check --classnames, or give it a .cls")
        return numbers[0]

    return label_of


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").casefold().split())
