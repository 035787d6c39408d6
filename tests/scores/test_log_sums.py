"""The form of the log-sums that GPUs run, on a CPU, and the programs that are lowered for GPUs and TPUs."""

import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from scores.formulas import unit_pairs

import clipdata_jax as cj
from clipdata_jax.scores import log_sums

GPU = pytest.mark.parametrize("platform", ["cuda", "rocm"])


def halves(rows, dim):
    """Images and texts that are opposite in every second row: no one shift suits all of a tile at t = 0.01."""
    f, _ = unit_pairs(0, rows, dim)
    signs = np.where(np.arange(rows) % 2, 1, -1).astype(np.float16)[:, None]
    return f[:1] * signs, f[:1] * -np.roll(signs, rows // 2 + 1, axis=0)


def arguments(f, g, mask, *temperatures):
    return jnp.asarray(f), jnp.asarray(g), mask, mask, jnp.asarray(temperatures, jnp.float32)


@pytest.mark.parametrize("pairs", [unit_pairs(0, 24, 8, noise=0.5), halves(24, 8)], ids=["usual", "out of range"])
def test_one_branch_for_all_tiles_gives_the_sums_and_derivatives_of_one_a_tile(pairs):
    mask = jnp.arange(24) != 5
    rows = arguments(*pairs, mask, 0.01)
    weights = np.random.default_rng(0).normal(size=(1, 24, 4)).astype(np.float32)

    def total(tables):
        return sum((jnp.where(jnp.isfinite(one), one, 0) * weights).sum() for one in tables)

    def both(form):
        tables = form(*rows)
        return tables, jax.grad(lambda f, g: total(form(f, g, *rows[2:])), argnums=(0, 1))(
            *(x.astype(jnp.float32) for x in rows[:2])
        )

    got, want = (
        both(lambda *rows: log_sums._guarded(4, *rows)),
        both(lambda *rows: log_sums._tables("checked", 4, *rows)),
    )
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5 * np.abs(other[np.isfinite(other)]).max())


def test_the_pairs_out_of_range_are_marked_where_they_are():
    found = log_sums._tables("unchecked", 1, *arguments(*halves(24, 8), jnp.ones(24, bool), 0.01, 0.2))[0]
    assert (found[0] >= 1e29).any()
    assert (found[1] < 1e3).all()


def lowered(function, *shapes, platform):
    return jax.export.export(jax.jit(function), platforms=[platform])(*shapes).mlir_module()


def branches(text):
    """Branches on something computed; those on a constant choose what is compiled for the platform."""
    condition = r"(%\w+) = stablehlo.convert %\w+ : \(tensor<i1>\) -> tensor<i32>.*\n"
    return len(re.findall(condition + r'.*"stablehlo.case"\(\1\)', text))


GROUP = [jax.ShapeDtypeStruct((8192, 64), jnp.float16)] * 2
DIVISIONS = np.tile(np.repeat(np.arange(2, dtype=np.int32), 8), (3, 1))
KERNELS = {
    "neg_clip_loss": (lambda f, g: cj.neg_clip_loss_divisions(f, g, DIVISIONS), GROUP),
    "norm_sim": (cj.norm_sim, GROUP),
}


@GPU
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_gpu_multiplies_float16_rows_as_they_are_and_adds_in_float32(kernel, platform):
    function, shapes = KERNELS[kernel]
    text = lowered(function, *shapes, platform=platform)
    large = re.findall(r"dot_general.*: \((.*?)\) -> (\S+)", text)
    large = [(operands, result) for operands, result in large if "x64xf16" in operands or "x64xf32" in operands]
    tiles = [(operands, result) for operands, result in large if result.count("2048x2048")]
    assert tiles
    for operands, result in tiles:
        assert operands == "tensor<2048x64xf16>, tensor<2048x64xf16>"
        assert result.startswith("tensor<2048x2048xf32>")
    # No float32 copy of all embeddings.
    assert not re.findall(r"convert.*-> tensor<8192x64xf32>", text)
    assert "callback" not in text


@GPU
def test_a_gpu_branches_once_for_all_tiles_and_takes_one_exponential_a_tile(platform):
    def unchecked(f, g):
        return log_sums._tables("unchecked", 16, f, g, *[jnp.ones(8192, bool)] * 2, jnp.asarray([0.01], jnp.float32))

    text = lowered(unchecked, *GROUP, platform=platform)
    assert len(re.findall(r"exponential .*: tensor<2048x2048xf32>", text)) == 1
    assert branches(text) == 0
    whole = lowered(lambda f, g: cj.cell_log_sums(f, g, cells=16, temperature=0.01), *GROUP, platform=platform)
    assert branches(whole) == 1


def test_a_tpu_multiplies_at_the_highest_precision():
    text = lowered(*KERNELS["norm_sim"][:1], *GROUP, platform="tpu")
    products = [line for line in text.splitlines() if "dot_general" in line and "2048x2048" in line]
    assert products
    assert all("HIGHEST" in line for line in products)
