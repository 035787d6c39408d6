"""Files of object stores and web servers: whole or not at all, never short, never mixed, and calls end."""

from __future__ import annotations

import re
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import stores

from clipdata_jax import storage
from clipdata_jax.errors import InputError, StorageError
from clipdata_jax.formats import tars
from clipdata_jax.formats.sources import discovery
from clipdata_jax.storage import location, remote_files, retries

KINDS = ("500", "503", "reset", "cut", "short", "slow")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.001)


@pytest.fixture(scope="module")
def s3_faults():
    with pytest.MonkeyPatch.context() as patch:
        faults = stores.Faults(stores.s3_app())
        with stores.serving(faults) as address:
            stores.use_s3(patch, address)
            storage.Folder("s3://pool").fs.mkdir("pool")
            yield faults


@pytest.fixture
def s3(s3_faults):
    s3_faults.reset()
    yield s3_faults
    s3_faults.reset()


@pytest.fixture(scope="module")
def web_server():
    web = stores.Web()
    faults = stores.Faults(web)
    with stores.serving(faults) as address:
        yield web, faults, address


@pytest.fixture
def web(web_server):
    server, faults, address = web_server
    faults.reset()
    server.files, server.ranges, server.lengths = {}, True, True
    return server, faults, address


def write_formats(place):
    """A tar, a parquet, a npz, a npy and a text in a folder; what is to be read of them again."""
    random = np.random.default_rng(0)
    arrays = {name: random.normal(size=(500, 16)).astype(np.float16) for name in ("a_img", "a_txt")}
    table = pa.table({"uid": [f"{i:032x}" for i in range(3000)]})
    members = [(f"{i:04}.jpg", random.bytes(400 + i)) for i in range(60)]
    tars.write_tar(f"{place}/f.tar", members)
    with storage.open_write(f"{place}/f.npz") as file:
        np.savez(file, **arrays)
    with storage.open_write(f"{place}/f.parquet") as file:
        pq.write_table(table, file)
    storage.write_bytes(f"{place}/f.txt", b"line\n" * 5000)


def read_formats(place):
    with storage.open_read(f"{place}/f.parquet") as file:
        table = pq.read_table(file)
    with storage.open_read(f"{place}/f.npz") as file, zipfile.ZipFile(file) as members:
        assert members.testzip() is None
    with storage.open_read(f"{place}/f.npz") as file, np.load(file) as found:
        arrays = {name: found[name].tobytes() for name in found}
    with storage.open_read(f"{place}/f.txt") as file:
        lines = list(file)
    names = list(tars.read_members(f"{place}/f.tar"))
    return table, arrays, lines, names, storage.digest(f"{place}/f.tar")


@pytest.mark.parametrize("kinds", [(), *((kind,) for kind in KINDS), KINDS])
def test_every_format_reads_alike_from_s3_and_through_faults(s3, tmp_path, monkeypatch, kinds):
    monkeypatch.setattr(remote_files, "BLOCK", 1 << 12)
    s3.kinds = kinds
    write_formats(str(tmp_path))
    write_formats("s3://pool/formats")
    assert read_formats("s3://pool/formats") == read_formats(str(tmp_path))
    assert bool(sum(s3.broken.values())) == bool(kinds)


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no-ranges"])
@pytest.mark.parametrize("kinds", [(), KINDS])
def test_every_format_reads_alike_from_a_web_server(web, tmp_path, monkeypatch, ranges, kinds):
    monkeypatch.setattr(remote_files, "BLOCK", 1 << 12)
    server, faults, address = web
    write_formats(str(tmp_path))
    server.files = {f"/pool/{path.name}": path.read_bytes() for path in tmp_path.iterdir()}
    server.ranges, faults.kinds = ranges, kinds
    assert read_formats(f"{address}/pool") == read_formats(str(tmp_path))
    assert storage.Folder(f"{address}/pool").files(".tar") == [f"{address}/pool/f.tar"]
    assert storage.is_folder(f"{address}/pool")
    assert not storage.is_folder(f"{address}/pool/f.tar")
    assert storage.exists(f"{address}/pool/f.tar")
    assert not storage.exists(f"{address}/pool/g.tar")
    with pytest.raises(InputError, match=r"g\.tar: no such file"):
        storage.read_bytes(f"{address}/pool/g.tar")


def test_a_web_server_that_tells_no_size_is_refused_and_none_is_written_to(web):
    server, _, address = web
    server.files["/f"], server.lengths = b"12345", False
    with pytest.raises(StorageError, match="doesn't report its size"):
        storage.read_bytes(f"{address}/f")
    with pytest.raises(InputError, match="a web server can only be read"):
        storage.write_bytes(f"{address}/g", b"1")


@pytest.mark.parametrize("store", ["s3", "web"])
def test_a_file_that_changes_while_it_is_read_is_refused(s3, web, monkeypatch, store):
    monkeypatch.setattr(remote_files, "BLOCK", 8)
    server, _, address = web

    def write(data):
        server.files["/f"] = data
        storage.write_bytes("s3://pool/f", data)

    write(bytes(64))
    path = {"s3": "s3://pool/f", "web": f"{address}/f"}[store]
    with pytest.raises(StorageError, match="was changed while it was read"), storage.open_read(path) as file:
        assert file.read(4) == bytes(4)
        write(b"\1" * 64)
        file.read()


@pytest.mark.parametrize("size", [64, 8])
def test_a_file_that_changed_since_it_was_listed_is_refused(s3, size):
    storage.write_bytes("s3://pool/listed/f", bytes(64))
    with storage.stat_cache():
        assert storage.Folder("s3://pool/listed").files() == ["s3://pool/listed/f"]
        s3.reset()
        assert storage.size("s3://pool/listed/f") == 64
        assert storage.read_bytes("s3://pool/listed/f") == bytes(64)
        assert s3.seen == {"GET": 1}
        storage.Folder("s3://pool").fs.pipe_file("pool/listed/f", b"\1" * size)  # as another process does
        with (
            pytest.raises(StorageError, match="was changed while it was read"),
            storage.open_read("s3://pool/listed/f") as file,
        ):
            file.seek(32)
            file.read()
        storage.write_bytes("s3://pool/listed/f", b"2")  # as this process does
        assert storage.size("s3://pool/listed/f") == 1
        assert storage.read_bytes("s3://pool/listed/f") == b"2"


def test_a_permanent_failure_is_one_sentence(s3):
    storage.write_bytes("s3://pool/f", b"1")
    for kind in ("GET", "HEAD", "PUT"):
        s3.always = stores.re.compile(kind)
        with pytest.raises(StorageError, match=r"s3://pool/f.*failed 6 times, last with.*503.*kept"):
            storage.read_bytes("s3://pool/f") if kind != "PUT" else storage.write_bytes("s3://pool/f", b"2")
        with pytest.raises(StorageError, match="failed 6 times"):
            storage.Folder("s3://pool").names() if kind == "GET" else storage.exists(
                "s3://pool/f"
            ) if kind == "HEAD" else (storage.write_bytes("s3://pool/g", b"2"))
    s3.reset()
    assert storage.read_bytes("s3://pool/f") == b"1"
    assert not storage.exists("s3://pool/g")


def test_permanent_errors_are_not_retried(s3, monkeypatch):
    with pytest.raises(InputError, match="no such file"):
        storage.read_bytes("s3://pool/none")
    with pytest.raises(InputError, match=r"s3://none/f: no such bucket"):
        storage.write_bytes("s3://none/f", b"")
    with pytest.raises(InputError, match="is a folder"):
        storage.write_bytes("s3://pool/folder/f", b"")
        storage.read_bytes("s3://pool/folder")
    assert max(s3._attempts.values()) == 1


def test_a_failed_block_uploads_nothing(s3):
    with pytest.raises(RuntimeError), storage.open_write("s3://pool/half") as file:
        file.write(b"half")
        with storage.open_write("s3://pool/other") as other:
            other.write(b"whole")
        raise RuntimeError
    assert not storage.exists("s3://pool/half")
    assert storage.read_bytes("s3://pool/other") == b"whole"


def test_downloaded_files_are_read_from_the_copy(s3):
    storage.write_bytes("s3://pool/k", b"12345")
    s3.reset()
    with storage.downloaded(["s3://pool/k", "s3://pool/none", __file__]):
        assert storage.digest("s3://pool/k")
        assert storage.read_bytes("s3://pool/k") == b"12345"
        assert storage.size("s3://pool/k") == 5
        assert not storage.is_folder("s3://pool/k")
        fingerprint = storage.fingerprint("s3://pool/k")
    assert s3.seen["GET"] == 2
    assert s3.seen["HEAD"] == 2
    assert (
        storage.Folder("s3://pool").fingerprints()["s3://pool/k"] == fingerprint == storage.fingerprint("s3://pool/k")
    )


@pytest.mark.parametrize(("pattern", "requests"), [("tars", 20), ("tars/{0..9}.tar", 30)])
def test_tars_are_found_in_few_requests(s3, pattern, requests):
    for number in range(10):
        storage.write_bytes(f"s3://pool/tars/{number}.tar", bytes(number))
    s3.reset()
    found = discovery.find_sources([f"s3://pool/{pattern}"], images_only=False)
    assert [source.inputs for source in found.units.values()] == [
        (f"s3://pool/tars/{number}.tar",) for number in range(10)
    ]
    assert s3.seen.total() < requests


@pytest.mark.parametrize(("path", "extra"), [("s3://b/f", "s3"), ("gs://b/f", "gs"), ("https://h/f", "http")])
def test_a_missing_package_names_its_extra(monkeypatch, path, extra):
    def missing(*_, **__):
        raise ImportError("Install it")

    monkeypatch.setattr(location.fsspec.core, "url_to_fs", missing)
    with pytest.raises(InputError, match=rf"needs a package that is missing.*pip install .*\[{extra}\]"):
        storage.read_bytes(path)


def test_fsspecs_configuration_overrides_ours(monkeypatch):
    seen = {}
    monkeypatch.setattr(location.fsspec.core, "url_to_fs", lambda path, **options: (seen.update(options), path))
    monkeypatch.setitem(location.fsspec.config.conf, "gs", {"token": "anon", "use_listings_cache": True})
    storage.Folder("gs://bucket/x")
    assert seen == {"token": "anon", "use_listings_cache": True}


@pytest.mark.parametrize("place", ["s3://pool", "memory://pool"])
@pytest.mark.parametrize("conditions", [True, False])
def test_a_new_file_is_written_once(s3, monkeypatch, place, conditions):
    s3.conditions = conditions
    path = f"{place}/new-{conditions}"
    assert storage.Folder(path).write_new("", b"first")
    assert not storage.Folder(path).write_new("", b"second")
    if conditions:  # another process may put it between a look and the put
        monkeypatch.setattr(remote_files, "fetch_info", lambda *_: None)
        assert not storage.Folder(path).write_new("", b"second")
        monkeypatch.undo()
    assert storage.read_bytes(path) == b"first"


def test_a_store_without_conditional_puts_is_checked_first(s3, monkeypatch):
    fs = storage.Folder("s3://pool").fs
    put = fs._pipe_file

    async def older(path, data, chunksize=1 << 20):
        return await put(path, data, chunksize)

    monkeypatch.setattr(fs, "_pipe_file", older)
    assert storage.Folder("s3://pool/older").write_new("", b"first")
    assert not storage.Folder("s3://pool/older").write_new("", b"second")
    with pytest.raises(InputError, match="no such bucket"):
        storage.Folder("s3://nowhere/older").write_new("", b"first")
    s3.always = re.compile("PUT /pool/failing")
    with pytest.raises(StorageError, match="failed 6 times"):
        storage.Folder("s3://pool/failing").write_new("", b"first")
