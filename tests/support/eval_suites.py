"""A small suite of evaluation tasks of every kind, as DataComp's downloader and the hub leave them."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from clipdata_jax.evaluation.tasks import TASKS
from clipdata_jax.formats import tars

# With a comma, other letters, a colon and what str.splitlines() would take for a line's end.
NAMES = ("red house", "crane, the bird", "Käse 奶酪", "two: boats", "blue\x85star", "crane")
TEMPLATES = ("a photo of a {c}.", "a drawing, {c}")
FACE_CLASSES = {
    "race": ["black", "white", "indian", "east asian"],
    "gender": ["male", "female"],
    "age": ["young", "old", "older"],
    "toxic": [*(f"person {i}" for i in range(14)), "animal", "gorilla", "chimpanzee", "orangutan", "thief", "criminal"],
}
FACE_TEMPLATES = {name: [f"a photo of a {{c}} {name}", f"{{c}}, {name}"] for name in FACE_CLASSES}
CUES = [("Owl", 5), ("tree", 10), ("ice", 12), ("sea", 6)]


@dataclasses.dataclass
class DrawnTask:
    """A task's images, in order, with what is known of them."""

    images: list[bytes]
    labels: list[int] = dataclasses.field(default_factory=list)
    rows: list[list[int]] = dataclasses.field(default_factory=list)
    captions: list[list[str]] = dataclasses.field(default_factory=list)


def image(seed: int, kind: str = "WEBP") -> bytes:
    """A small image of large blocks, so that a model tells it from others."""
    blocks = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(blocks).resize((20, 20), Image.Resampling.NEAREST).save(buffer, kind, lossless=True)
    return buffer.getvalue()


def npy(row: Sequence[int], dtype: object = np.int64) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(row, dtype))
    return buffer.getvalue()


def draw_wds(data: Path, key: str, count: int, seed: int, values: Sequence[int] = ()) -> DrawnTask:
    """A webdataset folder of two tars; `values` are the numbers that each column of metadata may have."""
    task, rng = TASKS[key], np.random.default_rng(seed)
    folder = data / task.folder
    (folder / "test").mkdir(parents=True)
    drawn = DrawnTask([image(1000 * seed + i) for i in range(count)])
    if task.kind == "classification":
        drawn.labels = rng.integers(0, len(NAMES) - 1, count).tolist()  # the last class has no image
        names, templates = list(NAMES), list(TEMPLATES)
    else:
        names = [f"{name}:{one}" for name, several in FACE_CLASSES.items() for one in several]
        templates = [f"{name}:{one}" for name, several in FACE_TEMPLATES.items() for one in several]
    drawn.rows = [[int(rng.integers(0, most)) for most in values] for _ in range(count)] if values else []
    (folder / "classnames.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates))
    (folder / "test" / "nshards.txt").write_text("2\n")
    for shard, rows in enumerate((range(count // 2), range(count // 2, count))):
        tars.write_tar(str(folder / "test" / f"{shard}.tar"), [one for i in rows for one in members(drawn, i)])
    return drawn


def members(drawn: DrawnTask, i: int) -> list[tuple[str, bytes]]:
    found = [(f"s{i:07}.cls", f"{drawn.labels[i]}".encode())] if drawn.labels else []
    found += [(f"s{i:07}.npy", npy(drawn.rows[i]))] if drawn.rows else []
    return [*found, (f"s{i:07}.webp", drawn.images[i])]


def draw_captioned(count: int, seed: int, kind: str) -> DrawnTask:
    words = ["red", "blue", "house", "boat", "tree", "star", "sea", "field"]
    rng = np.random.default_rng(seed)
    captions = [[f"a {' '.join(rng.choice(words, 3))}, {i} {j}" for j in range(1 + i % 3)] for i in range(count)]
    return DrawnTask([image(1000 * seed + i, kind) for i in range(count)], captions=captions)


def draw_zip_and_csv(data: Path, seed: int) -> DrawnTask:
    """Flickr as its repository holds it: a zip of images, and a csv with the captions as a list in JSON."""
    drawn = draw_captioned(7, seed, "JPEG")
    folder = data / "flickr_1k_test_image_text_retrieval"
    folder.mkdir()
    with zipfile.ZipFile(folder / "images_flickr_1k_test.zip", "w") as archive:
        archive.writestr("images_flickr_1k_test/", b"")
        for i, one in enumerate(drawn.images):
            archive.writestr(f"images_flickr_1k_test/{i}.jpg", one)
    rows = [f'{quoted(json.dumps(texts))},"[0, 1]",test,{i}.jpg,{i}' for i, texts in enumerate(drawn.captions)]
    (folder / "test_1k_flickr.csv").write_text("\n".join(["raw,sentids,split,filename,img_id", *rows]) + "\n")
    return drawn


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def draw_parquet(data: Path, seed: int) -> DrawnTask:
    """MSCOCO as `datasets` writes parquet: images inside, captions as lists."""
    drawn = draw_captioned(7, seed, "PNG")
    folder = data / "datasets--nlphuji--mscoco_2014_5k_test_image_text_retrieval" / "snapshots" / "0123" / "data"
    folder.mkdir(parents=True)
    images = [{"bytes": one, "path": f"{i}.png"} for i, one in enumerate(drawn.images)]
    pq.write_table(pa.table({"image": images, "caption": drawn.captions}), folder / "test-00000-of-00001.parquet")
    return drawn


@dataclasses.dataclass
class DrawnInstances:
    """WinoGAViL's images by name, and cue, candidates and associations of each instance."""

    images: dict[str, bytes]
    instances: list[tuple[str, list[str], list[str]]]


def draw_winogavil(data: Path, seed: int) -> DrawnInstances:
    rng = np.random.default_rng(seed)
    images = {f"thing{i}": image(1000 * seed + i, "JPEG") for i in range(14)}
    instances = []
    for cue, count in CUES:
        candidates = rng.permutation(list(images))[:count].tolist()
        instances.append((cue, candidates, rng.permutation(candidates)[: count // 3 + 1].tolist()))
    folder = data / "nlphuji" / "winogavil"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "winogavil_images.zip", "w") as archive:
        for name, one in images.items():
            archive.writestr(f"winogavil_images/{name}.jpg", one)
    rows = [
        f"{i},{cue},{quoted(json.dumps(associations))},{quoted(json.dumps(candidates))}"
        for i, (cue, candidates, associations) in enumerate(instances)
    ]
    (folder / "winogavil_dataset.csv").write_text("\n".join(["ID,cue,associations,candidates", *rows]) + "\n")
    return DrawnInstances(images, instances)


def draw(data: Path) -> dict[str, DrawnTask | DrawnInstances]:
    """All tasks, by key."""
    data.mkdir()
    return {
        "cifar10": draw_wds(data, "cifar10", 12, 1),
        "vtab/flowers": draw_wds(data, "vtab/flowers", 12, 2),
        "retrieval/flickr_1k_test_image_text_retrieval": draw_zip_and_csv(data, 3),
        "retrieval/mscoco_2014_5k_test_image_text_retrieval": draw_parquet(data, 4),
        "misc/winogavil": draw_winogavil(data, 5),
        "wilds/iwildcam": draw_wds(data, "wilds/iwildcam", 12, 6, [3] * 9),
        "wilds/camelyon17": draw_wds(data, "wilds/camelyon17", 12, 7, [5, 4, 2]),
        "wilds/fmow": draw_wds(data, "wilds/fmow", 16, 8, [6, 3, 9]),
        "fairness/dollar_street": draw_wds(data, "fairness/dollar_street", 12, 9, [4, 4, 3]),
        "fairness/geode": draw_wds(data, "fairness/geode", 12, 10, [4, 9]),
        "fairness/fairface": draw_wds(data, "fairness/fairface", 14, 11, [3, 2, 4, 2]),
        "fairness/utkface": draw_wds(data, "fairness/utkface", 14, 12, [3, 2, 4, 2]),
    }
