"""A small TFDS dataset in array_record form, prepared without TensorFlow and without a network."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def prepare(folder: Path, rows: Sequence[tuple[bytes, str | list[dict] | None, int]]) -> None:
    """Prepares `tiny_images` with one split, train, of (image, caption, class) rows.

    A list of {"id": ..., "text": ...} as a caption gives captions as coco_captions has them; None gives none.
    """
    import tensorflow_datasets as tfds

    with_captions = rows[0][1] is not None

    class TinyImages(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "tiny_images"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                "mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=["even", "odd"]),
            }
            if with_captions:
                text = tfds.features.Text()
                record = tfds.features.Sequence({"id": np.int64, "text": text})
                features["caption"] = text if isinstance(rows[0][1], str) else record
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for number, (image, caption, label) in enumerate(rows):
                Image.new("L", (4, 4)).save(mask := io.BytesIO(), "PNG")
                mask.seek(0)
                row = {"image": io.BytesIO(image), "mask": mask, "label": label}
                yield number, {**row, "caption": caption} if with_captions else row

    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        TinyImages(data_dir=str(folder), file_format="array_record").download_and_prepare()
