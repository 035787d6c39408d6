"""Small good inputs of every kind, damaged files in their place, and what the commands make of them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from support import damage
from support.pools import unit_rows

from clipdata_jax.formats import tars, uids

SHIPPED = Path(__file__).parents[2] / "clipdata_jax" / "demo" / "model"

ROWS, DIM, SHARDS, SAMPLES = 24, 16, 3, 5
_SCORE = "--batch-size 24 --group 1 --repeats 2 --temperature 0.07 --max-bad-rows 1"
COMMANDS = {
    "score": f"score pool {_SCORE} --out out",
    "folders": f"score folders {_SCORE} --out out",
    "npy target": f"score pool {_SCORE} --scores norm_sim --target t=target.npy --out out",
    "npz target": f"score pool {_SCORE} --scores norm_sim --target t=target.npz --out out",
    "norm-sim-d": "norm-sim-d pool --fraction 0.5 --steps 2 --max-bad-rows 1 --out out.npy",
    "filter": "filter pool --preset clip_score --arch b32 --threshold 0.2 --out out.npy",
    "select": "select scores --rule top(clip_score,0.5) --out out.npy",
    "npy columns": "select scores --columns extra.npy --rule top(extra,0.5) --out out.npy",
    "parquet columns": "select scores --columns extra.parquet --rule top(extra,0.5) --out out.npy",
    "uids": "uids union subset.npy more.txt --out out.npy",
    "reshard": "reshard tars --subset subset.npy --out out",
    "report": "report scores --subset subset.npy --pool tars --out out.html",
    "embed": "embed tars --model m=model --batch-size 8 --out out",
    "table": "embed pairs.parquet --model m=model --batch-size 8 --out out",
}
_OTHER_PAIRS = ("no-rows", "row-fewer", "row-more", "one-null", "column-null")
_SKIPPING = ("score", "folders", "npy target", "npz target", "norm-sim-d", "filter", "reshard", "report", "embed")


@dataclasses.dataclass(frozen=True)
class Case:
    """A damaged file in place of a good one, and the command that reads it.

    Attributes:
      name: of the case.
      route: a key of `COMMANDS`.
      file: which file is damaged.
      data: its damaged bytes, made when they are asked for.
      skip: whether the command is asked to skip what is broken.
    """

    name: str
    route: str
    file: str
    data: Callable[[], bytes]
    skip: bool = False

    def argv(self) -> list[str]:
        """The command's arguments."""
        return COMMANDS[self.route].split() + (["--on-bad", "skip"] if self.skip else [])

    def place(self, good: Path, folder: Path) -> None:
        """Puts copies of the good inputs, and the damaged file among them, into a new folder."""
        shutil.copytree(good, folder, copy_function=os.link)
        path = folder / self.file
        path.unlink()
        path.write_bytes(self.data())


def png(seed: int) -> bytes:
    """An image of noise, which has a checksum in every chunk."""
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def make_inputs(folder: Path, run: Callable[[list[str]], object]) -> None:
    """Writes good inputs of every kind; `run` runs a command in the folder."""
    random = np.random.default_rng(0)
    for name in ("pool", "folders/img_emb", "folders/text_emb", "folders/metadata", "tars", "images"):
        (folder / name).mkdir(parents=True)
    shutil.copytree(SHIPPED, folder / "model")
    for shard in range(SHARDS):
        rows = {name: unit_rows(random, ROWS, DIM).astype(np.float16) for name in ("b32_img", "b32_txt")}
        np.savez(folder / f"pool/{shard:08d}.npz", **rows)
        np.save(folder / f"folders/img_emb/img_emb_{shard}.npy", rows["b32_img"])
        np.save(folder / f"folders/text_emb/text_emb_{shard}.npy", rows["b32_txt"])
        for path in (f"pool/{shard:08d}.parquet", f"folders/metadata/metadata_{shard}.parquet"):
            (folder / path).write_bytes(damage.parquet_bytes(_metadata(shard), write_page_checksum=True))
        tars.write_tar(str(folder / f"tars/{shard}.tar"), _members(shard))
    np.save(folder / "target.npy", unit_rows(random, 9, DIM).astype(np.float16))
    np.savez(folder / "target.npz", b32_img=unit_rows(random, 9, DIM).astype(np.float16))
    for number in range(4):
        (folder / f"images/{number}.png").write_bytes(png(number))
    table = pa.table({"file_name": [f"images/{i}.png" for i in range(4)], "text": ["a word"] * 4})
    pq.write_table(table, folder / "pairs.parquet", write_page_checksum=True)
    run([*COMMANDS["score"].replace("--out out", "--out scores").split()])
    every = _uids(range(SHARDS))
    np.save(folder / "subset.npy", np.sort(uids.from_hex([*every[::2], *map(_tar_uid, range(0, 15, 2))])))
    (folder / "more.txt").write_text("\n".join(every[:9]) + "\n")
    pq.write_table(
        pa.table({"uid": every, "extra": random.random(len(every))}), folder / "extra.parquet", write_page_checksum=True
    )
    np.save(folder / "extra.npy", extra_rows(every))


def extra_rows(every: list[str]) -> np.ndarray:
    """A column of others by uid."""
    rows = np.empty(len(every), "u8,u8,f4")
    found = uids.from_hex(every)
    rows["f0"], rows["f1"], rows["f2"] = found["f0"], found["f1"], np.linspace(0, 1, len(every))
    return rows


def _uids(shards: range) -> list[str]:
    return [hashlib.sha256(f"{s}/{r}".encode()).hexdigest()[:32] for s in shards for r in range(ROWS)]


def _tar_uid(number: int) -> str:
    return hashlib.sha256(f"tar {number}".encode()).hexdigest()[:32]


def _metadata(shard: int) -> pa.Table:
    return pa.table(
        {
            "uid": _uids(range(shard, shard + 1)),
            "text": [f"caption {row}" for row in range(ROWS)],
            "original_width": pa.array([300] * ROWS, pa.int64()),
            "original_height": pa.array([300] * ROWS, pa.int64()),
            "clip_b32_similarity_score": np.linspace(0.1, 0.4, ROWS, dtype=np.float32),
        }
    )


def _members(tar: int) -> list[tuple[str, bytes]]:
    found = []
    for i in range(SAMPLES):
        number = tar * SAMPLES + i
        found += [
            (f"{number:03d}.png", png(number)),
            (f"{number:03d}.txt", f"caption {number}".encode()),
            (f"{number:03d}.json", f'{{"uid": "{_tar_uid(number)}"}}'.encode()),
        ]
    return found


def cases(good: Path) -> Iterator[Case]:
    """All cases: every second one asks the command to skip what is broken, where it can."""
    for number, (route, file, name, data) in enumerate(_damaged(good)):
        skip = number % 2 == 1 and route in _SKIPPING
        yield Case(f"{route}: {file}: {name}", route, file, data, skip)


def _damaged(good: Path) -> Iterator[tuple[str, str, str, Callable[[], bytes]]]:
    npz, parquet, tar = "pool/00000001.npz", "pool/00000001.parquet", "tars/1.tar"
    npy = "folders/img_emb/img_emb_1.npy"
    plain: list[tuple[str, str, int]] = [
        ("score", npz, 0),
        ("score", parquet, 1),
        ("reshard", tar, 2),
        ("select", "scores/00000001.parquet", 3),
    ]
    for route, file, seed in plain:
        data = (good / file).read_bytes()
        for name, one in damage.plain_damages(seed).items():
            yield route, file, name, functools.partial(one, data)
    # No checksum is in a .npy file: what is tried is what can be told.
    for route, file in (("folders", npy), ("reshard", "subset.npy"), ("uids", "subset.npy")):
        data = (good / file).read_bytes()
        for name in ("flip-first", "empty", "half", "without-last", *(["zeros"] if file == npy else [])):
            yield route, file, name, functools.partial(damage.plain_damages(4)[name], data)
    for route, file, other in (
        ("score", npz, parquet),
        ("score", parquet, npz),
        ("folders", npy, npz),
        ("reshard", tar, npz),
        ("select", "scores/00000001.parquet", npz),
        ("reshard", "subset.npy", npz),
    ):
        yield route, file, f"swapped with {other}", (good / other).read_bytes
    yield from _made(good, npz, parquet, tar, npy)


def _made(
    good: Path, npz: str, parquet: str, tar: str, npy: str
) -> Iterator[tuple[str, str, str, Callable[[], bytes]]]:
    with np.load(good / npz) as file:
        arrays = dict(file)
    found: list[tuple[str, str, dict[str, damage.Made]]] = [
        ("score", npz, damage.npz_damages(arrays)),
        ("folders", npy, damage.npy_damages(arrays["b32_img"])),
        ("npy target", "target.npy", damage.npy_damages(np.load(good / "target.npy"))),
        ("reshard", "subset.npy", damage.npy_damages(np.load(good / "subset.npy"))),
        ("npy columns", "extra.npy", damage.npy_damages(np.load(good / "extra.npy"))),
        ("score", parquet, damage.parquet_damages(pq.read_table(good / parquet), "uid")),
        ("filter", parquet, damage.parquet_damages(pq.read_table(good / parquet), "clip_b32_similarity_score")),
        (
            "select",
            "scores/00000001.parquet",
            damage.parquet_damages(pq.read_table(good / "scores/00000001.parquet"), "clip_score"),
        ),
        ("parquet columns", "extra.parquet", damage.parquet_damages(pq.read_table(good / "extra.parquet"), "extra")),
        ("reshard", tar, damage.tar_damages(_members(1))),
        ("report", tar, damage.tar_damages(_members(1))),
        ("embed", tar, damage.tar_damages(_members(1))),
        (
            "embed",
            "model/model.safetensors",
            damage.safetensors_damages((good / "model/model.safetensors").read_bytes()),
        ),
        ("table", "pairs.parquet", damage.parquet_damages(pq.read_table(good / "pairs.parquet"), "file_name")),
        ("npz target", "target.npz", damage.npz_damages({"b32_img": np.load(good / "target.npz")["b32_img"]})),
        ("embed", tar, _with_images(damage.image_bombs(png(5)))),
    ]
    bomb = functools.partial(damage.parquet_bomb, pq.read_table(good / parquet), "uid")
    yield "score", parquet, "bomb", bomb
    yield "filter", parquet, "bomb", bomb
    for name, data in _json_damages().items():
        yield "embed", "model/config.json", name, functools.partial(bytes, data)
        yield "embed", "model/tokenizer.json", name, functools.partial(bytes, data)
    for route, file_name, damages in found:
        for name, data in damages.items():
            if route in ("select", "filter", "table") and name in _OTHER_PAIRS:
                continue  # a good file of other pairs
            yield route, file_name, name, data if callable(data) else functools.partial(bytes, data)


def _with_images(bombs: dict[str, damage.Made]) -> dict[str, damage.Made]:
    members = dict(_members(1))
    key = next(iter(members))

    def tar(image: damage.Made) -> bytes:
        data = image() if callable(image) else image
        return damage.tar_bytes(list({**members, key: data}.items()))

    return {f"image-{name}": functools.partial(tar, data) for name, data in bombs.items()}


def _json_damages() -> dict[str, bytes]:
    return {
        "nested": b"[" * 500_000,
        "nothing": b"{}",
        "list": b"[]",
        "bytes": b'{"\xff": 1}',
        "number": b'{"vision_config": {"num_hidden_layers": ' + b"9" * 9_999 + b"}}",
        "layers": b'{"model_type": "clip", "vision_config": {"num_hidden_layers": 1000000000}}',
    }
