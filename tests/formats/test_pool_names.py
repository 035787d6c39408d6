"""Names of sources in their pool, by the rule written out plainly, and of the units."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from clipdata_jax.formats.pool_names import pool_names, repeats, repeats_text, unit_names

PATHS = st.lists(st.lists(st.sampled_from("ab"), max_size=4).map("/".join), min_size=1, max_size=9, unique=True)


def plain_names(paths):
    """Each path's shortest end that no other path ends with, else all of it."""
    whole = {path: path.split("/") for path in paths}
    while len({parts[0] for parts in whole.values()}) == 1 and all(len(parts) > 1 for parts in whole.values()):
        whole = {path: parts[1:] for path, parts in whole.items()}
    names = {}
    for path, parts in whole.items():
        others = [other for key, other in whole.items() if key != path]
        ends = [parts[-depth:] for depth in range(1, len(parts) + 1)]
        alone = [end for end in ends if all(other[-len(end) :] != end for other in others)]
        names[path] = "/".join([*alone, parts][0])
    return names


@settings(max_examples=200, deadline=None)
@given(PATHS, st.randoms(use_true_random=False))
def test_names_follow_the_rule_wherever_the_pool_lies(folders, shuffled: random.Random):
    paths = [f"{folder}/0.tar".lstrip("/") for folder in folders]
    names = pool_names([f"/pool/{path}" for path in paths])
    assert names == {f"/pool/{path}": name for path, name in plain_names(paths).items()}
    assert len(set(names.values())) == len(paths)
    shuffled.shuffle(paths)
    for moved in ("", "./", "/elsewhere/deep/", "s3://bucket/x/"):
        assert pool_names([moved + path for path in paths]) == {moved + path: names[f"/pool/{path}"] for path in paths}


def test_a_file_name_of_its_own_is_the_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert pool_names([]) == {}
    assert pool_names(["p/0.tar", "q/1.tar", "pairs.csv"]) == {
        "p/0.tar": "0.tar",
        "q/1.tar": "1.tar",
        "pairs.csv": "pairs.csv",
    }
    assert pool_names(["tfds:a/train", "tfds:b/train", "x/train"])["tfds:b/train"] == "tfds:b/train"
    assert pool_names(["s3://x/p/0.tar", "s3://y/p/0.tar"])["s3://y/p/0.tar"] == "y/p/0.tar"


def test_repeats_are_counted():
    assert repeats(pool_names(["a/0.tar", "b/1.tar", "tfds:a/train", "tfds:b/train"])) == {}
    found = repeats(pool_names([f"{part}/0.tar" for part in "dcba"] + ["a/1.tar"]))
    assert found == {"sources": 4, "first": ["a/0.tar", "b/0.tar", "c/0.tar"]}
    assert "4 sources share a file name" in repeats_text(found)
    assert repeats_text({}) == ""


def test_units_are_named_after_their_tars():
    assert unit_names([]) == []
    assert unit_names(["p/0.tar", "p/1.tar"]) == ["0", "1"]
    assert unit_names(["p/0.tar", "q/0.tar", "q/1.tar"]) == ["p_0", "q_0", "1"]
    assert unit_names(["q/0.tar", "p/0.tar"]) == ["q_0", "p_0"]
    assert unit_names(["a/p/0.tar", "b/p/0.tar", "a/0.tar"]) == ["a_p_0", "b_p_0", "a_0"]
    assert unit_names(["s3://x/p/0.tar", "s3://y/p/0.tar"]) == ["x_p_0", "y_p_0"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("ab_/", max_size=6), max_size=8, unique=True))
def test_unit_names_are_unique_in_any_order(stems):
    paths = sorted({"/".join(part for part in f"{stem}0.tar".split("/") if part) for stem in stems})
    names = unit_names(paths)
    assert len(set(names)) == len(paths)
    assert not any("/" in name for name in names)
    assert unit_names(paths[::-1]) == names[::-1]
