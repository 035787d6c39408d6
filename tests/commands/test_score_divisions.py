"""Columns of negCLIPLoss that `clipdata score` makes: several settings a pass, mixed shards, the paper's cuts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scores.formulas import neg_clip_loss as formula
from support.pools import edit_npz, make_pool

import clipdata_jax as cj
from clipdata_jax.config import NegClipLoss
from clipdata_jax.formats import score_tables, uids
from clipdata_jax.scoring import group_scores, groups, reference_division
from clipdata_jax.scoring.columns import neg_clip_loss_columns
from clipdata_jax.scoring.group_scores import Pairs

pytestmark = pytest.mark.optimized

SIZES = [90, 30, 130]
SMALL = ("--repeats", 3, "--group", 2)


@pytest.fixture
def pool(tmp_path):
    return make_pool(tmp_path / "pool", SIZES)


def read(folder: Path, *names: str) -> dict[str, np.ndarray]:
    return score_tables.open_tables([str(folder)]).read(names)[1]


def mean_over(batches: list[np.ndarray], pool: dict[str, np.ndarray], t: float) -> np.ndarray:
    """The formula in float64, averaged over the batches that a row is in."""
    total, met = np.zeros(len(pool["uid"])), np.zeros(len(pool["uid"]))
    for rows in batches:
        total[rows] += formula(pool["img"][rows], pool["txt"][rows], t)
        met[rows] += 1
    return total / np.maximum(met, 1)


def dealt_batches(pool: dict[str, np.ndarray], sizes: list[int], *, mixed: bool) -> list[list[np.ndarray]]:
    """For each |B| the batches of all divisions, by the plan; |B| of 40 makes units of [90, 160] rows."""
    uid, found = uids.from_hex(list(pool["uid"])), [[] for _ in sizes]
    start = 0
    for rows in [250] if mixed else [90, 160]:
        planned = groups.plan_groups(rows, batch_sizes=sizes, group=2)
        rows_of = groups.rows_of_groups(uid[start : start + rows], planned, seed=0, mixed=mixed)
        for group, at in zip(planned, rows_of, strict=True):
            cell = groups.slots_of_rows(uid[start + at], group, 0) // group.slots
            dealt = groups.deal_cells(group, repeats=3, seed=0, name=start + group.start)
            for batches, of_size in zip(found, dealt, strict=True):
                for batch_of_cell in of_size:
                    batch = batch_of_cell[cell]
                    batches += [start + at[batch == one] for one in np.unique(batch)]
        start += rows
    return found


def test_several_temperatures_and_sizes_are_columns_of_one_pass(tmp_path, pool, clipdata):
    asked = ("--temperature", 0.01, 0.0125, "--batch-size", 20, 40)
    done = clipdata("score", "pool", "--out", "out", *SMALL, *asked)
    assert done.returncode == 0, done.stderr
    names = [f"neg_clip_loss_b32_t{t}_b{size}" for t in ("10", "12p5") for size in (20, 40)]
    assert f"Columns of negCLIPLoss: {', '.join(names)}" in done.stdout
    assert (
        "at temperatures 0.01 and 0.0125, in 12 batches of 20 to 23 pairs and in 6 batches of 40 to 45 pairs"
        in done.stdout
    )
    columns = score_tables.open_tables([str(tmp_path / "out")]).columns
    suffixes = ("", "_se", "_log_sum_text", "_log_sum_image")
    assert set(columns) == {"clip_score", *(name + suffix for name in names for suffix in suffixes)}
    found = read(tmp_path / "out", *names)
    by_size = dealt_batches(pool, [20, 40], mixed=False)
    for index, name in enumerate(names):
        want = mean_over(by_size[index % 2], pool, (0.01, 0.0125)[index // 2])
        np.testing.assert_allclose(found[name], want, atol=5e-6)
    alone = ("--temperature", 0.0125, "--batch-size", 40)
    assert clipdata("score", "pool", "--out", "one", *SMALL, *alone).returncode == 0
    both = ("neg_clip_loss", "neg_clip_loss_se")
    for one, many in zip(both, (names[3], f"{names[3]}_se"), strict=True):
        np.testing.assert_allclose(read(tmp_path / "one", one)[one], read(tmp_path / "out", many)[many], atol=2e-6)
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    assert manifest["temperature"] == [0.01, 0.0125]
    assert [size["batch_size"] for size in manifest["groups"]["sizes"]] == [20, 40]
    rule = f"top({names[0]}, 0.1)"
    assert clipdata("select", "out", "--rule", rule, "--out", "s.npy").returncode == 0


def test_columns_are_named_by_tag_temperature_and_size():
    one = NegClipLoss(batch_size=64, temperature=0.07)
    assert neg_clip_loss_columns(one, "l14", (0.07,)) == ["neg_clip_loss"]
    several = NegClipLoss(batch_size=(64, 32))
    assert neg_clip_loss_columns(several, "ViT-L/14", (0.0123456,)) == [
        "neg_clip_loss_ViT_L_14_t12p3456_b64",
        "neg_clip_loss_ViT_L_14_t12p3456_b32",
    ]
    named = neg_clip_loss_columns(NegClipLoss(), "b32", (1.0, 0.005, 30.0))
    assert [name.split("_")[-2] for name in named] == ["t1000", "t5", "t30000"]


def test_mixed_shards_are_dealt_over_the_groups_of_their_unit(tmp_path, pool, clipdata):
    img, txt = pool["img"][:90].copy(), pool["txt"][:90].copy()
    done = clipdata("score", "pool", "--out", "mixed", *SMALL, "--batch-size", 40, "--mix-shards", 2)
    assert done.returncode == 0, done.stderr
    table = score_tables.open_tables([str(tmp_path / "mixed")])
    assert table.rows == tuple(SIZES)
    uid, found = table.read(["neg_clip_loss", "clip_score"])
    np.testing.assert_array_equal(uids.to_hex(uid), pool["uid"])  # each row is where it was
    cos = (pool["img"].astype(float) * pool["txt"]).sum(axis=1)
    np.testing.assert_allclose(found["clip_score"], cos, atol=1e-6)
    (batches,) = dealt_batches(pool, [40], mixed=True)
    assert any(rows.min() < 90 and rows.max() >= 120 for rows in batches)
    want = mean_over(batches, pool, 0.01)
    np.testing.assert_allclose(found["neg_clip_loss"], want, atol=5e-6)
    # A masked row leaves the others where they were.
    img[7] = 0
    edit_npz(tmp_path / "pool" / "00000000.npz", b32_img=img, b32_txt=txt)
    flags = (*SMALL, "--batch-size", 40, "--mix-shards", 2)
    assert clipdata("score", "pool", "--out", "masked", *flags).returncode == 0
    masked = read(tmp_path / "masked", "neg_clip_loss")["neg_clip_loss"]
    kept = [rows[rows != 7] for rows in batches]
    want = mean_over([rows for rows in kept if len(rows)], pool, 0.01)
    rest = np.arange(250) != 7
    np.testing.assert_allclose(masked[rest], want[rest], atol=5e-6)
    assert np.isnan(masked[7])


def test_the_division_of_the_paper_cuts_whole_files(tmp_path, clipdata):
    pool = make_pool(tmp_path / "pool", [90, 40, 130])
    flags = ("--division", "shard", "--repeats", 3, "--batch-size", 40, "--temperature", 0.1)
    done = clipdata("score", "pool", "--out", "out", *flags)
    assert done.returncode == 0, done.stderr
    batches, start = [], 0
    for rows in (90, 40, 130):
        uid = uids.from_hex(list(pool["uid"][start : start + rows]))
        for order in reference_division.permutations(uid, repeats=3, seed=0):
            batches += [start + order[first : first + 40] for first in range(0, rows, 40)]
        start += rows
    assert sorted({len(rows) for rows in batches}) == [10, 40]
    found = read(tmp_path / "out", "neg_clip_loss", "neg_clip_loss_se")
    np.testing.assert_allclose(found["neg_clip_loss"], mean_over(batches, pool, 0.1), atol=5e-6)
    error = found["neg_clip_loss_se"]
    assert np.isnan(error[90:130]).all()
    assert np.mean(error[:90] > 1e-5) > 0.9
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    assert manifest["groups"] == {"count": 3, "sizes": [{"batch_size": 40, "batches": 8, "effective": [10, 40]}]}


@pytest.mark.parametrize(
    ("sizes", "flags", "words"),
    [
        ((3800, 2200), ("--batch-size", 550, "--group", 1), "in 11 batches of 542 to 550 pairs:"),
        ((1500, 1200, 2000, 1300), ("--division", "shard"), "in 4 batches of 1,200 to 2,000 pairs (--batch-size"),
        ((30, 30), ("--batch-size", 30, "--group", 1), "in 2 batches of 30 pairs:"),
    ],
)
def test_the_summary_says_the_smallest_and_the_largest_batch(tmp_path, clipdata, sizes, flags, words):
    make_pool(tmp_path / "pool", sizes, dim=8)
    done = clipdata("score", "pool", "--out", "s", "--scores", "clip_score", *flags)
    assert words in done.stdout, done.stderr


@pytest.mark.parametrize("division", ["group", "shard"])
def test_files_without_rows_are_parts_without_rows_for_every_command(tmp_path, clipdata, division):
    sizes = [0, 4, 0, 40, 0]
    pool = make_pool(tmp_path / "pool", sizes)
    for path in (tmp_path / "pool").glob("*.parquet"):
        table = pq.read_table(path)
        scores = pa.array(np.zeros(len(table), np.float32))
        pq.write_table(table.append_column("clip_b32_similarity_score", scores), path)
    np.save(tmp_path / "t.npy", pool["img"][:3])
    flags = ("--batch-size", 10, "--group", 1, "--division", division, "--target", "t=t.npy", "--p", "inf", 2)
    select = ("select", "s", "--rule", "top(neg_clip_loss, 0.5)", "--out", "a.npy")
    filtered = ("filter", "pool", "--preset", "clip_score", "--arch", "b32", "--fraction", 0.5, "--out", "f.npy")
    for command in (
        ("plan", "--", "score", "pool", "--out", "s", *flags),
        ("score", "pool", "--out", "s", *flags, "--nearest"),
        select,
        ("plan", "--", *select),
        ("export", "s", "--metadata", "pool", "--subset", "a.npy", "--out", "a.csv"),
        ("uids", "convert", "a.npy", "--ids", "pool", "--out", "a.txt"),
        filtered,
        ("norm-sim-d", "pool", "--fraction", 0.5, "--steps", 3, "--out", "n.npy"),
        ("report", "s", "--subset", "a.npy", "--out", "r.html"),
        ("verify", "s", "a.npy", "f.npy", "n.npy"),
    ):
        done = clipdata(*command)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    parts = [pq.read_table(path) for path in sorted((tmp_path / "s").glob("*.parquet"))]
    assert [len(part) for part in parts] == sizes
    assert len({str(part.schema) for part in parts}) == 1
    assert not np.isnan(read(tmp_path / "s", "neg_clip_loss")["neg_clip_loss"]).any()


def test_the_paper_code_s_numbers_come_of_its_permutations(golden):
    with np.load(golden / "reference_scores.npz") as file:
        reference = dict(file)
    pairs = Pairs(reference["img"], reference["txt"], np.ones(1000, bool))
    score, error, text, image = reference_division.score_permutations(
        pairs, reference["permutations"], batch_size=256, temperatures=(0.01, 0.07)
    )
    cos = np.einsum("bd,bd->b", *(reference[name].astype(float) for name in ("img", "txt")))
    for index, t in enumerate((0.01, 0.07)):
        np.testing.assert_allclose(score[index], reference[f"tau{t}_negcliploss_float64"], atol=5e-6, rtol=0)
        theirs = reference[f"tau{t}_negcliploss"]
        np.testing.assert_allclose(score[index][np.isfinite(theirs)], theirs[np.isfinite(theirs)], atol=5e-6)
        np.testing.assert_allclose(cos - t / 2 * (text + image)[index], score[index], atol=5e-6)
        assert np.mean(error[index] > 0) > 0.9


def test_the_standard_error_of_whole_files_counts_what_their_cuts_share():
    random = np.random.default_rng(0)
    scores, errors = [], []
    kept = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in random.normal(size=(2, 8, 32))]
    for _ in range(100):
        f, g = random.normal(size=(2, 160, 32))
        f, g = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (f, f + 1.2 * g))
        f[:8], g[:8] = kept
        orders = np.stack([random.permutation(160) for _ in range(6)])
        found = reference_division.score_permutations(
            Pairs(f.astype(np.float16), g.astype(np.float16), np.ones(160, bool)),
            orders,
            batch_size=40,
            temperatures=(0.2,),
        )
        scores.append(found[0][0, :8])
        errors.append(found[1][0, :8])
    true = np.sqrt(np.var(scores, axis=0, ddof=1).mean())
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(true, rel=0.12)


@pytest.mark.parametrize(
    ("flags", "counts"), [(("--mix-shards", 3), (1, 2, 8)), (("--division", "shard"), (1, 8))], ids=["mixed", "shard"]
)
def test_the_same_bits_on_any_number_of_devices_and_workers(tmp_path, clipdata, monkeypatch, flags, counts):
    make_pool(tmp_path / "pool", [90, 40, 130])
    flags = ("score", "pool", *SMALL, "--batch-size", 40, "--scores", "neg_clip_loss", *flags)
    for devices in counts:
        here = jax.devices()[:devices]
        monkeypatch.setattr(jax, "local_devices", lambda here=here: here)
        assert clipdata(*flags, "--out", f"on{devices}").returncode == 0
    for worker in ("1/2", "0/2"):
        assert clipdata(*flags, "--out", "dealt", "--worker", worker).returncode == 0
    parts = sorted((tmp_path / "on1").glob("*.parquet"))
    assert len(parts) == 3
    for part in [*parts, tmp_path / "on1" / "_manifest.json"]:
        for other in [*(f"on{devices}" for devices in counts[1:]), "dealt"]:
            assert part.read_bytes() == (tmp_path / other / part.name).read_bytes(), (other, part.name)


COLLECTIVES = ("all-reduce", "all-gather", "collective-permute", "all-to-all", "reduce-scatter", "collective-")


def test_the_program_that_score_runs_on_eight_devices_has_no_collective(tmp_path, clipdata, monkeypatch):
    make_pool(tmp_path / "pool", [640])  # eight groups: one round
    ran: list[tuple] = []
    program = group_scores.program

    def record(mesh: jax.sharding.Mesh) -> Callable:
        return lambda *args: ran.append((mesh, args)) or program(mesh)(*args)

    monkeypatch.setattr(group_scores, "program", record)
    done = clipdata("score", "pool", "--out", "out", "--batch-size", 40, *SMALL, "--scores", "neg_clip_loss")
    assert done.returncode == 0, done.stderr
    (mesh, args), *_ = ran
    assert len(ran) == 1
    assert mesh.size == 8
    assert len({shard.device for shard in args[0].addressable_shards}) == 8
    assert all(np.asarray(shard.data).sum() == 80 for shard in args[2].addressable_shards)  # each its own group
    text = program(mesh).lower(*args).compile().as_text()
    assert "num_partitions=8" in text
    assert not [word for word in COLLECTIVES if word in text]
    sharded = jax.jit(lambda f, g: cj.neg_clip_loss_sharded(f, g, mesh=mesh))
    text = sharded.lower(*[np.zeros((16, 8), np.float32)] * 2).compile().as_text()
    assert "num_partitions=8" in text
    assert "collective-permute" in text
