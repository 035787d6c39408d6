"""`clipdata evaluate`: zero-shot classification and retrieval of a checkpoint on tars, figures as JSON."""

from __future__ import annotations

import collections
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from clipdata_jax import storage
from clipdata_jax.config import Evaluate
from clipdata_jax.embedding.samples import Bad, Decoded, decoded_samples
from clipdata_jax.errors import InputError
from clipdata_jax.formats import tars
from clipdata_jax.runs import file_output, manifest, records
from clipdata_jax.runtime import console, parallel

if TYPE_CHECKING:
    from clipdata_jax.embedding.encoder import Encoder

_PLACE = "{c}"
_TEMPLATES = (f"a photo of a {_PLACE}.",)
_Fact = TypeVar("_Fact")


def run(options: Evaluate) -> dict[str, Any]:
    """Measures a model; returns the figures.

    Raises:
      InputError: bad input.
    """
    retrieval = tars.find_tars(options.retrieval) if options.retrieval else []
    labelled = tars.find_tars(options.classification) if options.classification else []
    names = read_strings(options.classnames, "class names") if options.classnames else []
    templates = read_strings(options.templates, "prompts") if options.templates else list(_TEMPLATES)
    for template in templates:
        if _PLACE not in template:
            raise InputError(f"{options.templates}: the prompt {template!r} has no {_PLACE} for the class")
    from clipdata_jax import models

    reader = _Reader(options)
    plan = manifest.describe(
        "evaluate",
        options,
        inputs=[path for path in (options.classnames, options.templates) if path],
        pool=[*retrieval, *labelled],
        devices=True,
        model=models.checkpoint_digest(options.model),
    )
    file_output.check_replaceable(options.out, plan, overwrite=options.overwrite)
    figures: dict[str, Any] = {"model": options.model}
    if labelled:
        figures["classification"] = reader.classify(labelled, names, templates)
    if retrieval:
        figures["retrieval"] = reader.retrieve(retrieval)
    figures["skipped"] = reader.skipped
    storage.write_bytes(options.out, records.to_json(figures))
    manifest.write_beside(options.out, plan, {"figures": figures})
    print(_table(figures, options.out))
    return figures


def read_strings(path: str, what: str) -> list[str]:
    """Reads a JSON list of at least one string; of a .txt its lines.

    Raises:
      InputError: the file holds something else.
    """
    if path.endswith(".txt"):
        lines = [line.strip() for line in storage.read_bytes(path).decode("utf-8", "replace").splitlines()]
        if not any(lines):
            raise InputError(f"{path}: is empty; expected {what}, one a line")
        return list(filter(None, lines))
    try:
        content = json.loads(storage.read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); expected a list of {what}") from error
    if not isinstance(content, list) or not content or not all(isinstance(item, str) for item in content):
        raise InputError(f'{path}: expected a JSON list of {what}, like ["one", "two"]')
    return content


class _Reader:
    """Embeds samples with a model and computes the figures."""

    def __init__(self, options: Evaluate) -> None:
        from clipdata_jax import models
        from clipdata_jax.embedding.encoder import Encoder

        model = models.load_clip(options.model, sharding=parallel.replicated())
        self.skipped: list[str] = []
        self._options = options
        self._tokenizer = models.load_tokenizer(options.model)
        self._transform = models.load_image_transform(options.model)
        self._encoder: Encoder = Encoder(model, options.batch_size, parallel.local_mesh())

    def classify(self, paths: Sequence[str], names: Sequence[str], templates: Sequence[str]) -> dict[str, Any]:
        """The figures of zero-shot classification."""
        from clipdata_jax import evaluation

        image_emb, labels = self._embed(paths, "classify", labeller(names), need_caption=False)
        prompts = [template.replace(_PLACE, name) for name in names for template in templates]
        text_emb = self._encoder.texts(self._tokenizer(prompts))
        weights = evaluation.zero_shot_weights(text_emb.reshape(len(names), len(templates), -1))
        accuracy = evaluation.accuracy(image_emb, weights, np.asarray(labels, np.int32))
        return {
            "images": len(labels),
            "classes": len(names),
            "classes_seen": len(set(labels)),
            "templates": len(templates),
            **accuracy._asdict(),
        }

    def retrieve(self, paths: Sequence[str]) -> dict[str, Any]:
        """The figures of retrieval, both ways."""
        from clipdata_jax import evaluation

        image_emb, captions = self._embed(paths, "retrieve", _captions, need_caption=True)
        texts = [caption for several in captions for caption in several]
        image_of = np.repeat(np.arange(len(captions), dtype=np.int32), [len(several) for several in captions])
        numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        text_of = np.array([numbers[text] for text in texts], np.int32)
        text_emb = self._encoder.texts(self._tokenizer(texts))
        ranks = evaluation.retrieval_ranks(image_emb, text_emb, image_of, text_of)
        return {
            "images": len(captions),
            "captions": len(texts),
            "distinct_captions": len(numbers),
            "captions_of_several_lines": sum("\n" in text.strip() for text in texts),
            "image_to_text": evaluation.recall(ranks.image_to_text, len(texts)),
            "text_to_image": evaluation.recall(ranks.text_to_image, len(captions)),
            "ties": {"image_to_text": int(ranks.image_ties.sum()), "text_to_image": int(ranks.text_ties.sum())},
        }

    def _embed(
        self, paths: Sequence[str], name: str, fact_of: Callable[[Decoded], _Fact], *, need_caption: bool
    ) -> tuple[np.ndarray, list[_Fact]]:
        """The embeddings of all images, and a fact of each; a sample without one is bad."""
        rows: list[np.ndarray] = []
        facts: list[_Fact] = []
        with console.bar(total=len(paths), unit="tar", name=name) as bar:
            for path in paths:
                samples = decoded_samples(
                    tars.read_tar(path),
                    [self._transform],
                    path=path,
                    on_bad=self._options.on_bad,
                    need_caption=need_caption,
                )
                try:
                    found = [self._embed_batch(batch) for batch in self._batches(samples, fact_of)]
                except InputError as error:
                    self._skip(str(error))
                    found = []
                rows += [emb for emb, _ in found]
                facts += [fact for _, several in found for fact in several]
                bar.update(1)
        if not rows:
            raise InputError(f"{', '.join(paths)}: no image to {name}")
        return np.concatenate(rows), facts

    def _batches(
        self, samples: Iterator[Decoded | Bad], fact_of: Callable[[Decoded], _Fact]
    ) -> Iterator[list[tuple[np.ndarray, _Fact]]]:
        batch: list[tuple[np.ndarray, _Fact]] = []
        for sample in samples:
            try:
                if isinstance(sample, Bad):
                    raise InputError(sample.reason)
                batch.append((sample.pixels[0], fact_of(sample)))
            except InputError as error:
                self._skip(f"{sample.tar}: sample {sample.key!r}: {error}")
            if len(batch) == self._encoder.rows:
                yield batch
                batch = []
        if batch:
            yield batch

    def _embed_batch(self, batch: list[tuple[np.ndarray, _Fact]]) -> tuple[np.ndarray, list[_Fact]]:
        return self._encoder.images(np.stack([pixels for pixels, _ in batch])), [fact for _, fact in batch]

    def _skip(self, reason: str) -> None:
        if self._options.on_bad == "stop":
            raise InputError(reason)
        self.skipped.append(reason)


def _captions(sample: Decoded) -> tuple[str, ...]:
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


def _table(figures: dict[str, Any], out: str) -> str:
    lines = []
    if classes := figures.get("classification"):
        shares = [_percent(classes[name]) for name in ("top1", "top5", "mean_per_class")]
        lines += [
            f"zero-shot classification: {classes['images']:,} images, {classes['classes']:,} classes,"
            f" prompts for each: {classes['templates']:,}",
            console.table([("", "top-1", "top-5", "mean per class"), ("accuracy", *shares)]),
            "",
        ]
    if found := figures.get("retrieval"):
        ways = {"image -> caption": found["image_to_text"], "caption -> image": found["text_to_image"]}
        rows = [(title, *map(_percent, recalls.values())) for title, recalls in ways.items()]
        lines += [
            f"retrieval: {found['images']:,} images, {found['captions']:,} captions"
            f" ({found['distinct_captions']:,} different ones)",
            console.table([("", "R@1", "R@5", "R@10"), *rows]),
            "",
        ]
        if any(ties := found["ties"].values()):
            images, captions = ties
            lines.insert(
                -1, f"ties with a wrong answer, which count as wrong: {images:,} images, {captions:,} captions"
            )
        if several := found["captions_of_several_lines"]:
            lines.insert(-1, f"captions of several lines, each taken as one: {several:,}")
    lines.append(f"figures: {out}")
    if line := console.skipped(out, input=figures["skipped"]):
        lines.append(line)
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
