"""The batched encoder: every row, whatever the batch and the devices."""

import jax
import numpy as np
import pytest
from flax import nnx

from clipdata_jax.embedding.encoder import Encoder
from clipdata_jax.models import CLIP, CLIPConfig, TextConfig, VisionConfig

pytestmark = pytest.mark.optimized

CONFIG = CLIPConfig(
    vision=VisionConfig(width=16, layers=1, heads=2, mlp_width=32, image_size=16, patch_size=8),
    text=TextConfig(width=16, layers=1, heads=2, mlp_width=32, vocab_size=50, context_length=6, eos_token_id=49),
    embed_dim=12,
)
AUTO = jax.sharding.AxisType.Auto


@pytest.fixture(scope="module")
def model():
    return CLIP(CONFIG, rngs=nnx.Rngs(0))


def rows(n):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, 16, 16, 3), np.uint8), rng.integers(0, 50, (n, 6)).astype(np.int32)


def mesh(devices):
    return jax.make_mesh((devices,), ("data",), (AUTO,), devices=jax.devices()[:devices])


def test_embeddings_have_the_same_bits_on_any_number_of_devices(model):
    pixels, ids = rows(37)
    found = []
    for devices in (1, 2, 8):
        encoder = Encoder(model, 4, mesh(devices))
        assert encoder.rows == 4 * devices
        found.append((encoder.images(pixels), encoder.texts(ids)))
    for image_emb, text_emb in found:
        assert image_emb.dtype == text_emb.dtype == np.float32
        np.testing.assert_array_equal(image_emb, found[0][0])
        np.testing.assert_array_equal(text_emb, found[0][1])
    np.testing.assert_allclose(found[0][0], jax.jit(CLIP.encode_image)(model, pixels), atol=1e-6)
    np.testing.assert_allclose(found[0][1], jax.jit(CLIP.encode_text)(model, ids), atol=1e-6)


@pytest.mark.parametrize("n", [0, 1, 8, 9])
def test_no_row_is_dropped_or_added(model, n):
    pixels, ids = rows(n)
    encoder = Encoder(model, 4, mesh(2))
    assert encoder.images(pixels).shape == encoder.texts(ids).shape == (n, 12)
    np.testing.assert_allclose(np.linalg.norm(encoder.images(pixels), axis=1), 1, atol=1e-6)
