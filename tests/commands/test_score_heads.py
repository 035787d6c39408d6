"""`clipdata score --head`: columns of linear and small MLP heads on stored embeddings."""

from __future__ import annotations

import jax.export
import numpy as np
import pytest
from safetensors.numpy import save_file
from support.pools import make_pool

from clipdata_jax import head_score
from clipdata_jax.formats import score_tables

SIZES = (32, 24, 16, 8, 4, 1)  # as deep as the aesthetic predictor's second version
ACTIVATIONS = {"none": lambda x: x, "relu": lambda x: np.maximum(x, 0), "sigmoid": lambda x: 1 / (1 + np.exp(-x))}


def made_layers(sizes=SIZES, seed=0):
    rng = np.random.default_rng(seed)
    shapes = zip(sizes[1:], sizes[:-1], strict=True)
    return [
        (rng.normal(0, shape[1] ** -0.5, shape).astype(np.float32), rng.normal(size=shape[0]).astype(np.float32))
        for shape in shapes
    ]


def named(layers, prefix="layers", step=2):
    """The arrays by the names of a PyTorch Sequential with dropout between the layers."""
    return {
        f"{prefix}.{step * number}.{kind}": array
        for number, pair in enumerate(layers)
        for kind, array in zip(("weight", "bias"), pair, strict=True)
    }


def formula(emb, layers, activation="none", output="none"):
    """The head in float64."""
    x = emb.astype(float)
    for number, (weight, bias) in enumerate(layers, start=1):
        x = x @ weight.astype(float).T + bias
        x = ACTIVATIONS[output if number == len(layers) else activation](x)
    return x[:, 0]


@pytest.mark.parametrize("kinds", [("none", "none"), ("relu", "sigmoid")])
def test_the_score_is_its_formula_and_lowers(kinds):
    layers, names = made_layers(), dict(zip(("activation", "output"), kinds, strict=True))
    emb = np.random.default_rng(1).normal(size=(50, 32)).astype(np.float16)
    np.testing.assert_allclose(head_score(emb, layers, **names), formula(emb, layers, *kinds), rtol=1e-5, atol=1e-5)
    for platform in ("tpu", "cuda"):
        function = jax.jit(lambda emb: head_score(emb, layers, **names))
        assert jax.export.export(function, platforms=[platform])(emb).mlir_module()
    with pytest.raises(ValueError, match="its input has 31 values"):
        head_score(emb[:, :31], layers)
    with pytest.raises(ValueError, match="has 4 outputs"):
        head_score(emb, layers[:-1])


def test_heads_are_columns_beside_the_others(tmp_path, clipdata):
    made = make_pool(tmp_path / "pool", [70, 30])
    deep, linear = made_layers(), made_layers((32, 1), seed=1)
    save_file(named(deep), tmp_path / "deep.safetensors")
    save_file(named(deep, "net", 1), tmp_path / "safe.safetensors", {"activation": "relu", "output": "sigmoid"})
    np.savez(tmp_path / "linear.npz", weight=linear[0][0], bias=linear[0][1], output="sigmoid")
    heads = ["--head", "deep=deep.safetensors", "safe=safe.safetensors", "linear=linear.npz"]
    done = clipdata("score", "pool", "--scores", "clip_score", "head", *heads, "--out", "scores")
    assert done.returncode == 0, done.stderr
    columns = score_tables.open_tables([str(tmp_path / "scores")]).read(("clip_score", "deep", "safe", "linear"))[1]
    for name, want in (
        ("deep", formula(made["img"], deep)),
        ("safe", formula(made["img"], deep, "relu", "sigmoid")),
        ("linear", formula(made["img"], linear, "none", "sigmoid")),
    ):
        np.testing.assert_allclose(columns[name], want, rtol=1e-5, atol=1e-5)
    assert clipdata("score", "pool", "--scores", "head", *heads, "--out", "one", devices=1).returncode == 0
    one = score_tables.open_tables([str(tmp_path / "one")]).read(("deep", "safe", "linear"))[1]
    for name, values in one.items():
        assert values.tobytes() == columns[name].tobytes()  # eight devices and one
    assert clipdata("verify", "scores").returncode == 0


def test_wrong_heads_are_refused(tmp_path, clipdata):
    make_pool(tmp_path / "pool", [20])
    good, small = named(made_layers((32, 4, 1))), named(made_layers((31, 1)))
    for name, arrays, words in (
        ("dim.npz", small, "layer 0 takes 31 values, but the pool's embeddings have 32"),
        ("wide.npz", named(made_layers((32, 4))), "its last layer gives 4 values"),
        ("gap.npz", named(made_layers((32, 4)) + made_layers((5, 1))), "layer 2 takes 5 values, but the layer before"),
        ("half.npz", {"weight": np.zeros((1, 32), np.float32)}, "layer 0 has only a weight"),
        ("odd.npz", {"kernel": np.zeros(3)}, "has an array 'kernel'"),
        ("empty.npz", {}, "holds no layers"),
        ("soft.npz", {**good, "output": "softmax"}, "its output is 'softmax'; choose from none, relu, sigmoid"),
    ):
        np.savez(tmp_path / name, **arrays)
        done = clipdata("score", "pool", "--scores", "head", "--head", f"x={name}", "--out", "s")
        assert done.returncode == 2, name
        assert words in done.stderr, (name, done.stderr)
    np.savez(tmp_path / "good.npz", **good)
    (tmp_path / "text.safetensors").write_text("no head")
    for words, text in (
        (["x=text.safetensors"], "can't be read"),
        (["x=head.pt"], ".safetensors or .npz file"),
        (["x=good.npz", "x=good.npz"], "each name once"),
        (["clip_score=good.npz"], "not that of another column"),
    ):
        done = clipdata("score", "pool", "--head", *words, "--out", "s")
        assert done.returncode == 2
        assert text in done.stderr
    assert "--scores head needs a head" in clipdata("score", "pool", "--scores", "head", "--out", "s").stderr
