"""What goes wrong in `embed`'s threads, or stops it, is told and leaves a state to go on from."""

import json
import os
import signal
import threading

import pyarrow.parquet as pq
import pytest
from support.checkpoints import make_checkpoint
from support.images import jpeg, write_pairs

from clipdata_jax import storage
from clipdata_jax.embedding import embedder, encoder
from clipdata_jax.errors import InputError
from clipdata_jax.formats import arrays, tars
from clipdata_jax.runtime import console
from clipdata_jax.storage import paths


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("small"))


@pytest.fixture
def flags(tmp_path, small):
    for tar in range(3):
        write_pairs(tmp_path / f"{tar}.tar", range(4 * tar, 4 * tar + 4))
    sources = [f"{tar}.tar" for tar in range(3)]
    return ("embed", *sources, "--model", small, "--batch-size", 4, "--out", "out", "--on-bad", "skip")


def failing(function, error, *, call):
    calls = []

    def fails(*arguments, **named):
        calls.append(arguments)
        if len(calls) == call:
            raise error
        return function(*arguments, **named)

    return fails


def test_an_error_on_the_devices_is_not_taken_for_a_bad_tar(tmp_path, flags, clipdata, monkeypatch):
    error = InputError("the devices' error")
    with monkeypatch.context() as patched:
        patched.setattr(encoder.Encoder, "images", failing(encoder.Encoder.images, error, call=1))
        done = clipdata(*flags)
    assert done.returncode == 2
    assert "the devices' error" in done.stderr
    assert not (tmp_path / "out" / "_manifest.json").exists()
    assert clipdata(*flags).returncode == 0
    content = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    assert content["pairs"] == 12
    assert content["skipped_tars"] == []


def test_a_run_that_finished_no_tar_leaves_its_folder_free(flags, clipdata, monkeypatch):
    def fails(*_):
        raise InputError("the devices' error")

    with monkeypatch.context() as patched:
        patched.setattr(encoder.Encoder, "images", fails)
        assert "the devices' error" in clipdata(*flags, "--dtype", "bfloat16").stderr
    done = clipdata(*flags)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", [27, 28])  # file too large, disk full
def test_an_error_of_the_writer_is_one_sentence_and_leaves_no_half_file(tmp_path, flags, clipdata, monkeypatch, number):
    error = OSError(number, os.strerror(number))
    monkeypatch.setattr(arrays, "write_npz", failing(arrays.write_npz, error, call=2))
    done = clipdata(*flags)
    reason = f"out/1.npz: can't be written ({os.strerror(number).lower()})"
    assert done.returncode == 2, done.stderr
    assert reason in done.stderr, done.stderr
    assert not list((tmp_path / "out").glob("**/.*"))
    assert (tmp_path / "out" / "0.npz").exists()


def test_a_tar_that_cannot_be_read_is_skipped_and_read_when_it_can(tmp_path, flags, clipdata, monkeypatch):
    def refuse(path, *arguments):
        if path.endswith("1.tar"):
            raise PermissionError(13, "Permission denied")
        return open(path, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(paths, "open", refuse, raising=False)
        done = clipdata(*flags)
        assert done.returncode == 0, done.stderr
        assert "1.tar: no permission to read it" in done.stdout, done.stderr
    content = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    assert content["pairs"] == 8
    assert content["pool"][1]["digest"] is None
    assert clipdata(*flags).returncode == 0
    assert json.loads((tmp_path / "out" / "_manifest.json").read_text())["pairs"] == 12


def test_sigterm_stops_a_run_as_ctrl_c_does(tmp_path, flags, clipdata, monkeypatch):
    write = embedder._Embedding._write

    def stopped(self, unit, *arguments):
        if unit.name == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        write(self, unit, *arguments)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched:
        patched.setattr(embedder._Embedding, "_write", stopped)
        done = clipdata(*flags)
    assert done.returncode == 75
    assert "run the same command again to continue" in done.stderr
    assert signal.getsignal(signal.SIGTERM) is before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("device", "write"))]
    assert not list((tmp_path / "out").glob("**/.*"))
    assert (tmp_path / "out" / "0.npz").exists()
    assert clipdata(*flags).returncode == 0


def test_the_bar_ends_at_the_number_of_images(flags, clipdata, monkeypatch):
    bars, make = [], console.bar
    monkeypatch.setattr(console, "bar", lambda **named: bars.append(make(**named)) or bars[-1])
    (flags_with_a_bad_tar := list(flags)).insert(1, "bad.tar")
    storage.write_bytes("bad.tar", b"no tar")
    assert clipdata(*flags_with_a_bad_tar).returncode == 0
    assert bars[0].n == 12


def test_a_log_file_gets_lines(flags, clipdata):
    done = clipdata(*flags)
    *bars, last = done.stderr.splitlines()
    assert "\r" not in done.stderr
    assert all(line.startswith("embed: ") for line in [*bars, last])
    assert last.startswith("embed: 12.0 images")
    assert "images/s" in last
    assert "2, 3 of 3" in last


def test_times_that_cannot_be_written_stop_nothing(tmp_path, flags, clipdata):
    (tmp_path / "out").mkdir()
    assert clipdata(*flags, "--worker", "0/3").returncode == 0
    (tmp_path / "out" / "_run.jsonl").unlink()
    (tmp_path / "out" / "_run.jsonl").symlink_to("/dev/full")  # every write to it: no space left
    assert clipdata(*flags).returncode == 0


@pytest.mark.parametrize("out", ["target.npz", "out"])
def test_nothing_good_is_no_result(tmp_path, flags, clipdata, out):
    for tar in range(3):
        (tmp_path / f"{tar}.tar").write_bytes(b"no tar")
    for _ in range(2):
        done = clipdata(*flags[:-3], out, "--on-bad", "skip", *(["--images-only"] if "." in out else []))
        assert done.returncode == 2
        assert "nothing could be embedded: all inputs are bad and were skipped" in done.stderr
        assert "the first: 0.tar: is a text file, not a tar file" in done.stderr
    assert not (tmp_path / "target.npz").exists()
    assert not (tmp_path / "out" / "_manifest.json").exists()


def test_a_tar_that_changes_while_it_is_embedded_fails_and_is_done_again(tmp_path, flags, clipdata, monkeypatch):
    fill = embedder._Embedding._fill

    def rewritten(self, unit):
        if unit.name == "1":
            write_pairs(tmp_path / "1.tar", range(40, 43))
        return fill(self, unit)

    with monkeypatch.context() as patched:
        patched.setattr(embedder._Embedding, "_fill", rewritten)
        done = clipdata(*flags)
    assert done.returncode == 2
    assert "out: 1 of 3 units are missing at the end of the run (1 for one)" in done.stderr
    assert clipdata("verify", "out").returncode == 2
    done = clipdata(*flags)
    assert done.returncode == 0
    assert "Embedded 11 pairs" in done.stdout
    assert clipdata("verify", "out").returncode == 0


def test_an_empty_tar_goes_all_the_way_as_a_part_without_pairs(tmp_path, small, clipdata):
    (tmp_path / "pool").mkdir()
    for tar, seeds in enumerate([(), range(6), ()]):
        write_pairs(tmp_path / f"pool/{tar}.tar", seeds)
    for command in (
        ("embed", "pool", "--model", small, "--batch-size", 4, "--out", "m"),
        ("score", "m", "--out", "s", "--division", "shard", "--batch-size", 3),
        ("select", "s", "--rule", "top(clip_score, 0.5)", "--out", "a.npy"),
        ("report", "s", "--subset", "a.npy", "--pool", "pool", "--out", "r.html"),
        ("reshard", "pool", "--subset", "a.npy", "--out", "r"),
        ("reshard", "pool", "--subset", "a.npy", "--out", "p", "--samples-per-tar", 2),
    ):
        done = clipdata(*command)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        if command[0] == "embed":
            assert "2 tars" in done.stdout
            assert "pool/0.tar: holds no samples" in done.stdout
    assert [file.name for file in sorted((tmp_path / "r").glob("*.tar"))] == ["1.tar"]


def test_url_and_original_size_come_from_the_json_where_it_has_them(tmp_path, small, clipdata):
    jsons = [
        {"url": "http://a/0.jpg", "original_width": 1200, "original_height": 800, "width": 50},
        {"url": None, "original_width": 1200, "original_height": None},
        {"original_width": "1200", "original_height": -1, "url": 5},
    ]
    members = []
    for key, fields in enumerate([*jsons, {}]):
        members += [(f"{key}.jpg", jpeg(key)), (f"{key}.txt", b"a"), (f"{key}.json", json.dumps(fields).encode())]
    tars.write_tar(str(tmp_path / "0.tar"), members)
    done = clipdata("embed", "0.tar", "--model", small, "--batch-size", 4, "--out", "m")
    assert done.returncode == 0, done.stderr
    table = pq.read_table(tmp_path / "m/0.parquet").to_pydict()
    assert table["url"] == ["http://a/0.jpg", None, None, None]
    assert list(zip(table["original_width"], table["original_height"], strict=True)) == [(1200, 800), *[(50, 40)] * 3]
