"""Random crops: within the image, of the shapes and areas they should have, the same for ever."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from clipdata_jax.training.crops import crop_box, crop_uniforms

SIDES = st.integers(1, 3000)


@given(SIDES, SIDES, st.integers(0, 2**64 - 1), st.floats(0.05, 1))
def test_a_box_lies_inside_and_is_not_empty(width, height, uid, min_area):
    key = np.array([uid], np.uint64)
    left, top, right, bottom = crop_box(
        width, height, crop_uniforms(seed=1, epoch=0, uid_hi=key, uid_lo=key)[0], min_area=min_area
    )
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_areas_shapes_and_places_are_uniform():
    numbers = np.arange(4000, dtype=np.uint64)
    uniforms = crop_uniforms(seed=0, epoch=2, uid_hi=numbers, uid_lo=numbers)
    assert abs(uniforms.mean() - 0.5) < 0.005
    boxes = np.array([crop_box(1000, 1000, row, min_area=0.25) for row in uniforms])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    ratios = np.log(width / height)
    assert np.abs(ratios).max() < np.log(4 / 3) + 0.01
    assert abs(ratios.mean()) < 0.01
    assert 0.249 < (width * height / 1e6).min() < 0.26
    places = boxes[:, 0] / np.maximum(1000 - width, 1)
    assert abs(places.mean() - 0.5) < 0.02


def test_crops_are_these_ones_for_ever():
    high, low = np.array([7, 7], np.uint64), np.array([1, 2], np.uint64)
    uniforms = crop_uniforms(seed=5, epoch=np.array([0, 1]), uid_hi=high, uid_lo=low)
    assert [crop_box(640, 480, row, min_area=0.9) for row in uniforms] == [(18, 4, 634, 479), (29, 7, 619, 478)]
    alone = crop_uniforms(seed=5, epoch=1, uid_hi=high[1:], uid_lo=low[1:])
    np.testing.assert_array_equal(alone, uniforms[1:])


def test_a_picture_of_an_extreme_shape_gives_the_largest_box_in_the_middle():
    uniforms = np.full((10, 4), 0.5)
    assert crop_box(10, 100, uniforms, min_area=0.9) == (0, 43, 10, 56)
    assert crop_box(1, 1, uniforms, min_area=0.9) == (0, 0, 1, 1)
