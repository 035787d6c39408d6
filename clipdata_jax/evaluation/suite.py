"""A task of DataComp measured: its images embedded once, its classes' weights computed once, its metrics."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from clipdata_jax.embedding import inputs
from clipdata_jax.embedding.encoder import Encoder
from clipdata_jax.embedding.samples import Decoded
from clipdata_jax.errors import InputError, OnBad
from clipdata_jax.evaluation import image_sets, metrics
from clipdata_jax.evaluation.captioned_tables import CandidateImages
from clipdata_jax.evaluation.evaluator import PLACE, captions_of
from clipdata_jax.evaluation.nearest_candidates import nearest
from clipdata_jax.evaluation.task_files import TaskFiles
from clipdata_jax.evaluation.tasks import EvaluationTask
from clipdata_jax.evaluation.zero_shot import zero_shot_weights
from clipdata_jax.formats.sources.source import BrokenSource, Source
from clipdata_jax.models import TextConfig, Tokenizer
from clipdata_jax.runs.records import FileEntry

_VOWELS = tuple("aeiou")
_TOP = 10
# Tokens are cut to a multiple of this, so that few programs are compiled.
_TOKENS = 8
Metrics = dict[str, float | int | None]


class _Labelled(NamedTuple):
    """The class of an image, -1 if the task needs none, and its row of metadata."""

    label: int
    row: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class TaskFigures:
    """A task that was measured.

    Attributes:
      metrics: by name, those of DataComp, and "main_metric", which is None if the task has none.
      images: that the figures are means over; of WinoGAViL the instances.
      skipped: what was left out, and why.
      entries: the files of images that were read.
      seconds: in which the devices waited for images, and computed.
    """

    metrics: Metrics
    images: int
    skipped: list[str]
    entries: list[FileEntry]
    seconds: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class _Embedded:
    """An image set in memory, what makes it another one, and its files."""

    key: object
    images: image_sets.ImageSet[Any]
    entries: list[FileEntry]


class TaskEvaluator:
    """Measures a model on DataComp's tasks.

    Memory holds the embeddings of one image set and the weights of its classes. A task with the images, or with the
    classes and prompts, of the one before finds them there.

    Args:
      encoder: the model on this process's devices.
      tokenizer: of the model.
      transform: an image -> the pixels that the model takes.
      text: the shape of the text tower.
      on_bad: what to do with broken tars and images: "stop" raises, "skip" leaves them out.
    """

    def __init__(
        self,
        encoder: Encoder,
        tokenizer: Tokenizer,
        transform: Callable[[Image.Image], np.ndarray],
        text: TextConfig,
        *,
        on_bad: OnBad,
    ) -> None:
        self._encoder, self._tokenizer, self._transform = encoder, tokenizer, transform
        self._text, self._on_bad = text, on_bad
        self._images: _Embedded | None = None
        self._weights: tuple[object, np.ndarray] | None = None

    def measure(self, files: TaskFiles) -> TaskFigures:
        """Measures the model on one task.

        Raises:
          InputError: a file, an image, a label or a row of metadata is bad and may not be left out, or none is left.
        """
        measure = {
            "classification": self._classify,
            "attributes": self._attributes,
            "retrieval": self._retrieve,
            "association": self._associate,
        }[files.task.kind]
        try:
            found, count = measure(files)
        except ValueError as error:  # of the metrics: embeddings that aren't finite
            raise InputError(f"{files.task.name}: {error}; check the model") from error
        embedded = self._images
        assert embedded is not None
        main = files.task.main_metric
        whole = {**found, "main_metric": None if main is None else found.get(main)}
        images = embedded.images
        return TaskFigures(whole, count, images.skipped, embedded.entries, images.seconds)

    def _classify(self, files: TaskFiles) -> tuple[Metrics, int]:
        names, templates = files.names[""], files.templates[""]
        found = self._embed(
            files, files.sources, _label_and_row(files.task, len(names)), (files.task.columns, len(names))
        )
        top = nearest(found.emb, self._class_weights(names, templates), k=min(5, len(names)))
        labels = np.array([fact.label for fact in found.facts])
        figures: Metrics = dict(metrics.classification_metrics(top, labels, len(names)))
        right, columns = top[:, 0] == labels, _columns(files.task, found.facts)
        if files.task.key == "wilds/iwildcam":
            figures |= {"acc_avg": float(right.mean()), **metrics.macro_metrics(top[:, 0], labels)}
        elif files.task.key == "wilds/camelyon17":
            figures |= metrics.group_metrics(right, {"slide": columns["slide"]})
        elif files.task.key == "wilds/fmow":
            figures |= metrics.satellite_metrics(right, columns["region"], columns["year"])
        elif files.task.key == "fairness/dollar_street":
            among = (top == labels[:, None]).any(axis=1)
            figures |= metrics.group_metrics(among, {"income_ds": columns["income_ds"]}, name="acc_top5")
        elif files.task.key == "fairness/geode":
            figures |= metrics.group_metrics(right, {"region": columns["region"]})
        return figures, len(labels)

    def _attributes(self, files: TaskFiles) -> tuple[Metrics, int]:
        for what, lines in (("class", files.names), ("prompt", files.templates)):
            if missing := [name for name in metrics.OBJECTIVES if name not in lines]:
                raise InputError(f"{files.folder}: has no {what} of {missing[0]}; expected lines {missing[0]}:{what}")
        found = self._embed(files, files.sources, _label_and_row(files.task, None), files.task.columns)
        predicted = {
            name: nearest(found.emb, self._class_weights(files.names[name], files.templates[name]), k=1)[:, 0]
            for name in metrics.OBJECTIVES
        }
        return dict(metrics.face_metrics(predicted, _columns(files.task, found.facts))), len(found.facts)

    def _retrieve(self, files: TaskFiles) -> tuple[Metrics, int]:
        found = self._embed(files, files.sources, captions_of, "captions", need_caption=True)
        texts = [caption for several in found.facts for caption in several]
        image_of = np.repeat(np.arange(len(found.facts)), [len(several) for several in found.facts])
        text_emb = self._embed_texts(texts)
        top_texts = nearest(found.emb, text_emb, k=min(_TOP, len(texts)))
        top_images = nearest(text_emb, found.emb, k=min(_TOP, len(found.emb)))
        return dict(metrics.recall_metrics(top_texts, top_images, image_of)), len(found.facts)

    def _associate(self, files: TaskFiles) -> tuple[Metrics, int]:
        assert files.table is not None
        source = CandidateImages(files.table)
        found = self._embed(files, [source], lambda sample: sample.key, object())
        row_of = {key: row for row, key in enumerate(found.facts)}
        whole = [one for one in source.instances if row_of.keys() >= {*one.candidates}]
        found.skipped.extend(
            f"{source.path}: cue {one.cue!r}: an image was left out" for one in source.instances if one not in whole
        )
        if not whole:
            raise InputError(f"{source.path}: no instance has all its images")
        cue_emb = self._embed_texts([_cue_prompt(one.cue) for one in whole])
        scores = []
        for one, emb in zip(whole, cue_emb, strict=True):
            right = np.array([name in one.associations for name in one.candidates])
            cosines = found.emb[[row_of[name] for name in one.candidates]] @ emb
            chosen = np.zeros(len(right), bool)
            chosen[np.argsort(-cosines, kind="stable")[: right.sum()]] = True
            scores.append(metrics.jaccard_index(chosen, right))
        candidates = np.array([len(one.candidates) for one in whole])
        return dict(metrics.jaccard_metrics(np.array(scores), candidates)), len(whole)

    def _embed(
        self,
        files: TaskFiles,
        sources: Sequence[Source],
        fact_of: Callable[[Decoded], Any],
        facts: object,
        *,
        need_caption: bool = False,
    ) -> image_sets.ImageSet[Any]:
        """The images of a task, unless they are those of the one before; `facts` says what is kept of each."""
        key = (facts, tuple(path for source in sources for path in source.inputs))
        if self._images is None or self._images.key != key:
            self._images = None  # its memory is free before the next set takes some
            entries: list[FileEntry] = []
            with contextlib.closing(_fetched(sources, entries)) as fetched:
                found = image_sets.embed(
                    fetched,
                    self._encoder,
                    self._transform,
                    fact_of,
                    on_bad=self._on_bad,
                    need_caption=need_caption,
                    name=files.task.name,
                )
            self._images = _Embedded(key, found, entries)
        return self._images.images

    def _class_weights(self, names: Sequence[str], templates: Sequence[str]) -> np.ndarray:
        key = (names, templates)
        if self._weights is None or self._weights[0] != key:
            text_emb = self._embed_texts([one.replace(PLACE, name) for name in names for one in templates])
            weights = zero_shot_weights(text_emb.reshape(len(names), len(templates), -1))
            self._weights = key, np.asarray(weights)
        return self._weights[1]

    def _embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit rows of texts; a causal tower never reads what follows the longest one's end."""
        ids = self._tokenizer(list(texts))
        if self._text.causal and self._text.pool == "end":
            end = self._text.eos_token_id
            longest = int(np.argmax(ids if end is None else ids == end, axis=1).max()) + 1
            ids = ids[:, : -(-longest // _TOKENS) * _TOKENS]
        return self._encoder.texts(ids)


def _fetched(sources: Sequence[Source], entries: list[FileEntry]) -> Generator[Source]:
    """Sources while their files are local; notes the files."""
    with contextlib.closing(inputs.prefetch({str(i): source for i, source in enumerate(sources)})) as units:
        for unit in units:
            entries += [entry for entry in unit.entries if entry not in entries]
            yield unit.source if unit.error is None else BrokenSource(unit.source.path, unit.error)


def _label_and_row(task: EvaluationTask, classes: int | None) -> Callable[[Decoded], _Labelled]:
    """Returns a function that reads a sample's class, if there are classes, and its row, if the task has columns."""

    def read(sample: Decoded) -> _Labelled:
        label = -1
        if classes is not None:
            if sample.label is None or not (sample.label.isdecimal() and int(sample.label) < classes):
                found = "missing" if sample.label is None else f"{sample.label!r:.40}"
                raise InputError(f"its .cls is {found}, expected a number from 0 to {classes - 1}, the last class")
            label = int(sample.label)
        return _Labelled(label, _row(sample.row, task.columns) if task.columns else ())

    return read


def _row(data: bytes | None, columns: Sequence[str]) -> tuple[int, ...]:
    expected = f"expected a row of {len(columns)} integers: {', '.join(columns)}"
    if data is None:
        raise InputError(f"it has no .npy; {expected}")
    try:
        row = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError, TypeError, MemoryError) as error:
        raise InputError(f"its .npy can't be read ({' '.join(str(error).split())[:100]}); {expected}") from error
    if row.ndim != 1 or row.dtype.kind not in "iu" or len(row) < len(columns):
        raise InputError(f"its .npy is {row.dtype}{list(row.shape)}; {expected}")
    return tuple(row[: len(columns)].tolist())


def _columns(task: EvaluationTask, facts: Sequence[_Labelled]) -> Mapping[str, np.ndarray]:
    rows = np.array([fact.row for fact in facts], np.int64).reshape(len(facts), -1)
    return {name: rows[:, i] for i, name in enumerate(task.columns)}


def _cue_prompt(cue: str) -> str:
    """The prompt of a cue of WinoGAViL.

    >>> _cue_prompt("Owl"), _cue_prompt("cue")
    ('An owl', 'A cue')
    """
    cue = cue.lower()
    return f"{'An' if cue.startswith(_VOWELS) else 'A'} {cue}"
