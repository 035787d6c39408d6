"""Splits of TensorFlow Datasets, read by random access in array_record form, without TensorFlow."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Container, Iterator
from typing import Any

from clipdata_jax.errors import InputError, install_extra
from clipdata_jax.formats import tars

PREFIX = "tfds:"
_CAPTIONS = ("caption", "captions", "text")


@dataclasses.dataclass(frozen=True)
class TfdsSplit:
    """A split that is prepared on this machine; images are not decoded.

    Attributes:
      path: "tfds:name/split", as given.
      version: the dataset's full name: name, config and version.
      source: row -> features.
      image: the feature that is the image.
      label: the feature that is the class, None if there is none.
      caption: the feature that is the caption or captions, None if there is none or it isn't needed.
    """

    path: str
    version: str
    source: Any
    image: str
    label: str | None
    caption: str | None

    def __len__(self) -> int:
        return len(self.source)

    def facts(self) -> dict[str, str | int]:
        """The dataset's name, version and number of images."""
        return {"name": self.path, "version": self.version, "images": len(self)}

    def samples(self, start: int, stop: int) -> Iterator[tars.RawSample]:
        """Yields rows as samples; the key is the row's number, fixed for a version of the dataset."""
        for row in range(start, stop):
            try:
                features = self.source[row]
            except Exception as error:  # TFDS raises its own, its file systems' and its formats' errors
                raise InputError(
                    f"{self.path}: row {row} can't be read ({_reason(error)}); prepare the dataset again"
                ) from error
            members = {"jpg": features[self.image]}
            if self.label is not None:
                members["cls"] = str(int(features[self.label])).encode()
            if self.caption is not None:
                found = features[self.caption]
                if isinstance(found, dict):  # coco_captions: {"id": ..., "text": ...} of all captions
                    found = found[_text_in(found)]
                if isinstance(found, bytes):
                    members["txt"] = found
                else:
                    captions = [text.decode(errors="surrogateescape") for text in found]
                    members["json"] = json.dumps({"captions": captions}).encode()
            yield tars.RawSample(f"{row:07}", members, {})


def open_split(path: str, *, need_caption: bool) -> TfdsSplit:
    """Opens a split; TFDS downloads and prepares the dataset if needed.

    Args:
      path: "tfds:name/split"; the name may have a config and a version ("tfds:coco_captions/2014:1.1.0/val"), the
        split may be sliced ("train[:1000]"). Datasets are in TFDS_DATA_DIR, by default `~/tensorflow_datasets`.
      need_caption: whether images must have captions: a feature called caption, captions or text.

    Raises:
      InputError: TFDS is not installed, has no such dataset or split or can't prepare it, or the dataset lacks
        images or needed captions.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise InputError(f"{path}: needs tensorflow-datasets ({error}); {install_extra('tfds')}") from error
    name, _, split = path.removeprefix(PREFIX).rpartition("/")
    if not name or not split:
        raise InputError(f"{path}: expected tfds:name/split, as in tfds:cifar10/train")
    try:
        builder = _prepared(tfds, name)
        features = builder.info.features
        image, label, caption = _features(tfds, features, path, need_caption)
        if not builder.info.splits[split].num_examples:
            raise InputError(f"{path}: the split is empty")
        # Masks too: decoding them would be wasted.
        images = [n for n, feature in features.items() if isinstance(feature, tfds.features.Image)]
        decoders = {name: tfds.decode.SkipDecoding() for name in images}
        source = builder.as_data_source(split=split, decoders=decoders)
    except InputError:
        raise
    except Exception as error:  # TFDS raises its own, its file systems' and its formats' errors
        raise InputError(
            f"{path}: TFDS can't open it in array_record form ({_reason(error)}); prepare it on a machine with"
            f" network access, tfds build {name} --file_format=array_record, and set TFDS_DATA_DIR to its folder"
        ) from error
    return TfdsSplit(path, builder.info.full_name, source, image, label, caption)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _prepared(tfds: Any, name: str) -> Any:
    builder = tfds.builder(name, data_dir=os.environ.get("TFDS_DATA_DIR"), file_format="array_record")
    builder.download_and_prepare()
    return builder


def _features(tfds: Any, features: Any, path: str, need_caption: bool) -> tuple[str, str | None, str | None]:
    """Finds the features that are image, class and caption."""
    images = [name for name, feature in features.items() if isinstance(feature, tfds.features.Image)]
    if not images:
        raise InputError(f"{path}: has no image among its features ({', '.join(features)})")
    image = "image" if "image" in images else images[0]
    labels = [n for n, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    label = "label" if "label" in labels else labels[0] if len(labels) == 1 else None
    caption = next((n for n in _CAPTIONS if n in features and _is_text(tfds, features[n])), None)
    if need_caption and caption is None:
        raise InputError(
            f"{path}: has no captions (a feature of text called {', '.join(_CAPTIONS)}) among its features"
            f" ({', '.join(features)}); only embed does without, with --images-only"
        )
    return image, label, caption if need_caption else None


def _is_text(tfds: Any, feature: Any) -> bool:
    """Whether a feature is a text, a sequence of texts, or of records with one."""
    if isinstance(feature, tfds.features.Sequence):
        feature = feature.feature
    if isinstance(feature, tfds.features.FeaturesDict):
        name = _text_in(feature)
        return name is not None and isinstance(feature[name], tfds.features.Text)
    return isinstance(feature, tfds.features.Text)


def _text_in(names: Container[str]) -> str | None:
    return next((name for name in _CAPTIONS if name in names), None)
