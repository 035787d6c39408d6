"""Arrays in .npz and .npy files: mapped, streamed or refused."""

import io
import mmap
import zipfile

import fsspec
import numpy as np
import pytest

from clipdata_jax.errors import InputError
from clipdata_jax.formats.arrays import array_shape, read_array

IMAGES = np.arange(24, dtype=np.float16).reshape(6, 4)
TEXTS = -IMAGES


def base_of(array):
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    return array


def saved(save, *args, **named):
    buffer = io.BytesIO()
    save(buffer, *args, **named)
    return buffer.getvalue()


@pytest.mark.parametrize("array", [IMAGES, np.asfortranarray(IMAGES), IMAGES[:, :3].astype(np.float32)])
def test_local_files_are_mapped_copy_on_write(tmp_path, array):
    for name, save in (
        ("a.npy", lambda path: np.save(path, array)),
        ("a.npz", lambda path: np.savez(path, z=TEXTS, x=array)),
    ):
        path = tmp_path / name
        save(path)
        before = path.read_bytes()
        got = read_array(str(path), "x")
        assert isinstance(base_of(got), mmap.mmap)
        np.testing.assert_array_equal(got, array, strict=True)
        got[1] = 0
        assert not got[1].any()
        assert path.read_bytes() == before
        assert array_shape(str(path), "x") == array.shape


def test_other_files_are_streamed(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=IMAGES, z=TEXTS)
    np.testing.assert_array_equal(read_array(str(tmp_path / "a.npz"), "x"), IMAGES, strict=True)
    plain = bytearray(saved(np.savez, x=IMAGES, z=TEXTS))
    plain[plain.index(TEXTS.tobytes())] ^= 1  # breaks the member that isn't asked for
    with fsspec.open("memory://arrays/a.npz", "wb") as file:
        file.write(plain)
    with fsspec.open("memory://arrays/a.npy", "wb") as file:
        np.save(file, IMAGES)
    for path in ("memory://arrays/a.npz", "memory://arrays/a.npy"):
        np.testing.assert_array_equal(read_array(path, "x"), IMAGES, strict=True)
    with pytest.raises(InputError, match=r"a\.npz: damaged or not a NumPy file \(Bad CRC-32"):
        read_array("memory://arrays/a.npz", "z")


@pytest.mark.parametrize("rows", [0, 5])
def test_rows_are_checked(tmp_path, rows):
    path = tmp_path / "a.npz"
    np.savez(path, x=IMAGES[:rows])
    assert read_array(str(path), "x", rows=rows).shape == (rows, 4)
    with pytest.raises(InputError, match=rf"holds float16\[{rows}, 4\], but its metadata has 7 rows"):
        read_array(str(path), "x", rows=7)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_flipped_bits_are_refused_or_harmless(tmp_path, save):
    whole, path = saved(save, x=IMAGES), tmp_path / "a.npz"
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            got = read_array(str(path), "x")
        except InputError:
            continue
        np.testing.assert_array_equal(got, IMAGES, strict=True)


def claim(shape):
    """A member whose header says another shape than its data have."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f2", "fortran_order": False, "shape": shape})
    return head.getvalue() + IMAGES.tobytes()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (claim((1 << 40, 1 << 20)), "48 bytes of data where its header says"),
        (claim((-6, -4)), "shape"),
        (claim((5, 4)), "48 bytes of data where its header says 40"),
        (saved(np.save, np.array([{}]), allow_pickle=True), "holds Python objects"),
        (b"not an array", "magic"),
        (b"", "magic"),
    ],
)
def test_false_headers_are_refused(tmp_path, data, words):
    (tmp_path / "a.npy").write_bytes(data)
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(tmp_path / "a.npz", "w", kind) as file:
            file.writestr("x.npy", data)
        for name in ("a.npz", "a.npy"):
            expected = rf"damaged or not a NumPy file .*{words}"
            if words == "magic" and name == "a.npy":
                expected = r"is an? (text|empty) file, not a \.npy array; write it again"
            with pytest.raises(InputError, match=rf"{name}: {expected}"):
                read_array(str(tmp_path / name), "x")


def test_missing_names_list_the_others(tmp_path):
    np.savez(tmp_path / "a.npz", x=IMAGES, z=TEXTS)
    for read in (read_array, array_shape):
        with pytest.raises(InputError, match="has no 'y'; it has x, z"):
            read(str(tmp_path / "a.npz"), "y")
