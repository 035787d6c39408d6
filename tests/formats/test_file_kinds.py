"""Files told apart by their first bytes."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipdata_jax.errors import InputError
from clipdata_jax.formats import arrays, file_kinds, parquet, tars


def written(write):
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def image(kind, **options):
    return written(lambda file: Image.new("RGB", (9, 7), "red").save(file, kind, **options))


def tar_of(form):
    def write(file):
        with tarfile.open(fileobj=file, mode="w", format=form) as tar:
            tar.addfile(tarfile.TarInfo("0.txt"))

    return written(write)


KINDS = {
    **{f"a {kind} image": image(kind) for kind in ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF")},
    "an AVIF image": image("AVIF"),
    "a tar file": tar_of(tarfile.PAX_FORMAT),
    "a parquet file": written(lambda file: pq.write_table(pa.table({"a": [1]}), file)),
    "a .npy array": written(lambda file: np.save(file, np.zeros(3))),
    "a .npz file": written(lambda file: np.savez_compressed(file, clip_img=np.zeros(3))),
    "a gzip file": gzip.compress(b"x"),
    "a bzip2 file": bz2.compress(b"x"),
    "an xz file": lzma.compress(b"x"),
    "a pickle": pickle.dumps({"a": 1}),
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    "a web page": b"\n<!DOCTYPE html>\n<html>",
    "an XML file": b'<?xml version="1.0"?><Error>AccessDenied</Error>',
    "a JSON file": json.dumps([{"a": 1}]).encode(),
    "a text file": "a café\n".encode(),
    "an empty file": b"",
    "": bytes(range(200)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_told_by_the_first_bytes(kind):
    head = KINDS[kind][: file_kinds.HEAD]
    assert file_kinds.kind_of(head) == kind
    assert file_kinds.is_image(head) == kind.endswith(" image")


def test_tars_of_any_form_are_not_mistaken(tmp_path):
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT):
        assert file_kinds.kind_of(tar_of(form)[: file_kinds.HEAD]) == "a tar file"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind and kind != "a tar file"])
def test_files_that_are_not_tars_are_named(tmp_path, kind):
    (tmp_path / "x").write_bytes(KINDS[kind])
    with pytest.raises(InputError, match=rf"x: is {kind}, not a tar file; \w+"):
        list(tars.read_tar(str(tmp_path / "x")))


def test_readers_of_other_formats_name_the_kind(tmp_path):
    for name, read, expected in (
        ("a.parquet", parquet.rows_and_types, "a parquet file"),
        ("a.npz", lambda path: arrays.read_array(path, "x"), "a .npz file"),
        ("a.npy", lambda path: arrays.read_npy(path, "of uids"), "a .npy array"),
    ):
        (tmp_path / name).write_bytes(KINDS["a Git LFS pointer"])
        with pytest.raises(InputError, match=rf"{name}: is a Git LFS pointer, not {expected}; .*git lfs pull"):
            read(str(tmp_path / name))
