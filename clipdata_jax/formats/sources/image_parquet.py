"""Parquet files with the images inside, as `datasets`, img2dataset and others write them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from clipdata_jax.config import Reading
from clipdata_jax.errors import InputError
from clipdata_jax.formats import file_kinds, parquet, tars
from clipdata_jax.formats.sources import table_columns as columns

# Besides the names that columns of paths have.
_IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "img_bytes", "bytes", *columns.IMAGES)
# Columns of img2dataset that the metadata keeps.
_FIELDS = {"url": columns.is_text, "original_width": pa.types.is_integer, "original_height": pa.types.is_integer}
_BATCH = 4  # rows: all that is in memory, besides a page of the file


@dataclasses.dataclass(frozen=True)
class ImageParquet:
    """An open parquet file; nothing but its footer is in memory.

    Attributes:
      path: the file.
      folder: where relative paths of images begin that aren't inside.
      groups: the number of rows of each row group.
      image: the column of images: bytes, or records of bytes and path.
      is_struct: whether they are such records.
      caption: the column of captions, text or lists of text; None if they aren't needed.
      uid: the column of ids; None if there is none.
      fields: other columns that become fields of a sample's `.json`.
    """

    path: str
    folder: str
    groups: tuple[int, ...]
    image: str
    is_struct: bool
    caption: str | None
    uid: str | None
    fields: tuple[str, ...]

    def __len__(self) -> int:
        return sum(self.groups)

    def samples(self, start: int, stop: int) -> Iterator[tars.RawSample]:
        """Yields rows as samples; the key is the row's number.

        A list of captions makes as many pairs, the second one with the key "0000000#2".
        """
        first = 0
        chosen: list[int] = []
        row = 0
        for number, rows in enumerate(self.groups):
            if first + rows > start and first < stop:
                row = row if chosen else first
                chosen.append(number)
            first += rows
        inside = [f"{self.image}.bytes", f"{self.image}.path"] if self.is_struct else [self.image]
        names = list(dict.fromkeys([*inside, *filter(None, (self.caption, self.uid)), *self.fields]))
        for batch in parquet.stream(self.path, names, chosen, _BATCH):
            wanted = batch.slice(max(0, start - row), max(0, min(stop, row + len(batch)) - max(start, row)))
            if len(wanted):
                yield from self._samples(wanted, max(start, row))
            row += len(batch)
            if row >= stop:
                return

    def _samples(self, batch: pa.RecordBatch, row: int) -> Iterator[tars.RawSample]:
        """The samples of a few rows, the first of which has this number in the file."""
        data, paths = batch.column(self.image), None
        if self.is_struct:
            inside = dict(zip((field.name for field in data.type), data.flatten(), strict=True))
            data, paths = inside["bytes"], inside.get("path")
        for i in range(len(batch)):
            image, path = data[i].as_py(), None
            members = {}
            if image is not None:
                members[file_kinds.extension(image[: file_kinds.HEAD])] = image
            elif paths is not None:
                path = paths[i].as_py()
            fields = {name: batch.column(name)[i].as_py() for name in self.fields}
            uid = None if self.uid is None else columns.as_id(batch.column(self.uid)[i].as_py())
            captions = None if self.caption is None else batch.column(self.caption)[i].as_py()
            several = captions if isinstance(captions, list) and captions else [captions]
            for place, caption in enumerate(several, 1):
                end = "" if place == 1 else f"#{place}"
                of_pair = {**fields, "uid": uid if uid is None or not end else f"{uid}{end}"}
                texts = {"json": json.dumps({name: value for name, value in of_pair.items() if value is not None})}
                if isinstance(caption, str):
                    texts["txt"] = caption
                encoded = {name: text.encode(errors="surrogatepass") for name, text in texts.items()}
                key = f"{row + i:07}"
                sample: tuple[str, dict[str, bytes], dict[str, str]] = f"{key}{end}", {**members, **encoded}, {}
                repeats = key if end else ""
                if path:
                    file = columns.image_path(self.folder, path)
                    yield tars.ImageFileSample(*sample, file, repeats=repeats)
                else:
                    yield tars.RawSample(*sample, repeats=repeats)


def open_parquet(
    path: str, groups: Sequence[int], types: Mapping[str, pa.DataType], reading: Reading, *, need_caption: bool
) -> ImageParquet:
    """Opens a file.

    Args:
      path: the file.
      groups: the number of rows of each row group.
      types: name -> type of each column.
      reading: which columns to read; None finds one by its usual names.
      need_caption: whether there must be captions.

    Raises:
      InputError: it has no rows; or a column is missing, or of the wrong type.
    """
    image = image_column(path, types, reading.image_column)
    if image is None:
        raise columns.NoColumnError(f"{path}: no column holds images; expected bytes, or records of bytes and path")
    caption = None
    if need_caption:
        caption = columns.find(path, list(types), reading.caption_column, columns.CAPTIONS, "caption")
        if not (columns.is_text(types[caption]) or columns.is_texts(types[caption])):
            kind = str(types[caption])[:60]
            raise InputError(
                f"{path}: column {caption!r} holds {kind}, expected text or lists of text; name another with"
                " --caption-column"
            )
    uid = columns.find_uid(path, types, reading.uid_column)
    if not sum(groups):
        raise InputError(f"{path}: the table is empty, expected a row per image")
    fields = tuple(name for name, check in _FIELDS.items() if name in types and check(types[name]))
    folder, is_struct = columns.folder_of_images(path, reading.image_root), pa.types.is_struct(types[image])
    return ImageParquet(path, folder, tuple(groups), image, is_struct, caption, uid, fields)


def image_column(path: str, types: Mapping[str, pa.DataType], given: str | None) -> str | None:
    """Finds the column of images: of the given or a usual name, or the only one of records; None if there is none."""
    inside = [name for name, kind in types.items() if columns.is_binary(kind) or columns.is_image_struct(kind)]
    found = columns.find_any(path, inside, _IMAGES if given is None else (given,), "image")
    if found is None and given is None:
        structs = [name for name in inside if columns.is_image_struct(types[name])]
        return structs[0] if len(structs) == 1 else None
    return found
