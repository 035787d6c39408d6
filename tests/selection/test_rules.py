"""Rules on arrays, against the plain statement of what they mean."""

from __future__ import annotations

from decimal import Decimal
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import plain_rules

from clipdata_jax import selection
from clipdata_jax.errors import InputError
from clipdata_jax.formats import uids
from clipdata_jax.selection import bottom, column, grouped, parse, pools, rules, search, steps, top, values

SCORES = [-np.inf, np.inf, np.nan, -0.0, 0.0, 0.25, 0.3, 0.3, 1.0, -2.5, 1e-30]
FRACTIONS = ["0.29", "0.58", "0.3", "0.07", "1", "0.1", "0.999", "1e-3", "0.5", "0.141592653589793238462643"]
names = st.sampled_from(["a", "b", "c"])
columns_st = st.builds(values.Column, names)
numbers = st.sampled_from(["0.3", "-2.5", "0", "1e-30", "2"]).map(lambda text: values.Constant(Decimal(text)))
values_st = st.recursive(
    columns_st,
    lambda inner: (
        st.builds(values.Arithmetic, inner | numbers, st.sampled_from("+-*/"), inner)
        | st.builds(values.Arithmetic, inner, st.sampled_from("+-*/"), inner | numbers)
        | st.builds(values.Rank, inner)
        | st.builds(values.Negative, inner)
    ),
    max_leaves=3,
)
fractions = st.sampled_from(FRACTIONS).map(Decimal)
ofs = st.sampled_from(["pool", "kept"])
GIVEN = "memory://rules/given.npy"
leaves = st.one_of(
    st.just(steps.ListedUids(GIVEN)),
    st.builds(steps.Top, values_st, fractions, ofs, st.booleans()),
    st.builds(steps.Top, values_st, st.none(), st.just("pool"), st.booleans(), st.integers(1, 30)),
    st.builds(steps.AtMost, st.integers(1, 30)),
    st.builds(grouped.BestOf, columns_st, values_st),
    st.builds(
        steps.WeightedSample,
        values_st | numbers,
        fractions | st.integers(2, 30).map(Decimal),
        st.sampled_from(["1", "0.1", "30"]).map(Decimal),
        st.integers(0, 3),
        ofs,
    ),
    st.builds(values.Compare, values_st, st.sampled_from(list(plain_rules.SIGNS)), values_st | numbers),
    st.builds(values.Compare, columns_st, st.sampled_from([">", "<"]), st.just(values.Constant(Decimal("1e60")))),
)
rule_st = st.recursive(
    leaves,
    lambda inner: st.builds(
        lambda kind, a, b: kind(a, b), st.sampled_from([rules.Then, rules.And, rules.Or, rules.Minus]), inner, inner
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module", autouse=True)
def given_uids():
    """Some of the uids that the pools below are likely to hold."""
    uids.write_subset(GIVEN, np.array([(0, 0), (0, 2), (1, 1), (2, 0)], uids.DTYPE))


@st.composite
def made_pools(draw):
    rows = draw(st.lists(st.tuples(*[st.sampled_from(SCORES)] * 3), max_size=30))
    halves = st.integers(0, 2) | st.integers(0, 2**64 - 1)
    uid = [draw(st.tuples(halves, halves)) for _ in rows]
    columns = dict(zip("abc", np.array(rows, np.float32).reshape(-1, 3).T, strict=True))
    return columns, np.array(uid, uids.DTYPE)


def made_pool(rows, seed=0):
    rng = np.random.default_rng(seed)
    uid = uids.join_halves(*rng.integers(0, 2**64, (2, rows), dtype=np.uint64))
    return {name: rng.normal(size=rows).astype(np.float32) for name in "ab"}, uid


@settings(max_examples=200, deadline=None)
@given(rule=rule_st, pool=made_pools())
def test_every_rule_keeps_what_its_plain_statement_keeps(rule, pool):
    mask, counts = rule.trace(*pool)
    assert set(np.flatnonzero(mask)) == plain_rules.keep(rule, *pool)
    assert counts[-1].kept == mask.sum()
    assert all(step.kept <= step.seen <= len(pool[1]) for step in counts)


class Parts(pools.ScoredPool):
    """A pool in parts of given sizes, which keeps nothing in memory."""

    def __init__(self, columns, uid, cuts):
        bounds = [0, *sorted(cuts), len(uid)]
        self.slices = [slice(*bounds[i : i + 2]) for i in range(len(bounds) - 1)]
        super().__init__([s.stop - s.start for s in self.slices], memory=0)
        self.columns, self.uids = columns, uid

    def read(self, index, name):
        return self.columns[name][self.slices[index]]

    def read_uid(self, index):
        return self.uids[self.slices[index]]


@settings(max_examples=100, deadline=None)
@given(rule=rule_st, pool=made_pools(), data=st.data(), collect=st.integers(0, 4))
def test_parts_and_memory_change_nothing(rule, pool, data, collect):
    columns, uid = pool
    cuts = data.draw(st.lists(st.integers(0, len(uid)), max_size=4))
    few = mock.patch.object(grouped, "_ROWS", collect + 1)
    with mock.patch.object(search, "_COLLECT", collect), few, Parts(columns, uid, cuts) as parts:
        work = rule.apply(parts)
        masks = [mask for _, mask in work]
    assert set(np.flatnonzero(np.concatenate(masks))) == plain_rules.keep(rule, *pool)
    assert work.steps == rule.trace(*pool)[1]


@settings(max_examples=150, deadline=None)
@given(rule=rule_st)
def test_the_text_of_a_rule_is_the_rule(rule):
    assert parse(str(rule)) == rule


@settings(max_examples=60, deadline=None)
@given(rule=rule_st, pool=made_pools(), seed=st.integers(0, 9))
def test_the_order_of_the_rows_changes_nothing(rule, pool, seed):
    columns, uid = pool
    order = np.random.default_rng(seed).permutation(len(uid))
    if len(set(map(tuple, uid.tolist()))) < len(uid):
        return  # of two rows with one uid and one score, the earlier is taken
    mask = rule.keep({name: values[order] for name, values in columns.items()}, uid[order])
    np.testing.assert_array_equal(mask, rule.keep(columns, uid)[order])


@pytest.mark.parametrize(
    ("fraction", "rows", "count"),
    [("0.29", 100, 29), ("0.58", 100, 58), ("0.57", 100, 57), ("0.3", 1000, 300), ("0.3", 9, 2), ("0.1", 9, 0)],
)
def test_a_fraction_is_exact_in_decimals(fraction, rows, count):
    assert int(float("0.29") * 100) == 28  # what binary floats make of it
    columns, uid = made_pool(rows)
    for rule in (parse(f"top(a, {fraction})"), top("a", float(fraction)), top("a", np.float32(fraction))):
        assert rule.keep(columns, uid).sum() == count


def test_a_fraction_is_of_the_whole_pool():
    columns, uid = made_pool(1000)
    columns["a"][:200] = np.nan
    columns["b"][200:300] = np.inf
    assert top("a", 0.5).keep(columns, uid).sum() == 500
    assert top("a", 1).keep(columns, uid).sum() == 800
    two_steps = (top("a", 0.5) >> top("b", 0.2)).keep(columns, uid)
    assert two_steps.sum() == 200
    assert not (two_steps & ~top("a", 0.5).keep(columns, uid)).any()
    assert (top("a", 0.5) >> top("b", 0.2, of="kept")).keep(columns, uid).sum() == 100
    assert top("a", 0.5).keep(columns, uid, 1200).sum() == 600


def test_ties_go_to_the_smaller_uid():
    uid = np.array([(7, 0), (5, 9), (5, 1), (0, 3), (9, 9)], uids.DTYPE)
    columns = {"a": np.array([1, 1, 1, 1, 2], np.float32)}
    assert top("a", 0.6).keep(columns, uid).tolist() == [False, False, True, True, True]
    assert bottom("a", 0.4).keep(columns, uid).tolist() == [False, False, True, True, False]


def test_rows_equal_in_everything_come_in_order():
    uid = np.zeros(4, uids.DTYPE)
    assert top("a", 0.5).keep({"a": np.ones(4)}, uid).tolist() == [True, True, False, False]


def test_integer_and_float64_columns():
    uid = np.array([(0, i) for i in range(4)], uids.DTYPE)
    least = np.array([np.iinfo(np.int64).min, 5, -1, 2**62 + 1])
    assert top("a", 0.5).keep({"a": least}, uid).tolist() == [False, True, False, True]
    assert bottom("a", 0.25).keep({"a": least}, uid).tolist() == [True, False, False, False]
    assert top("a", 0.25).keep({"a": np.array([3, 0, 200, 7], np.uint8)}, uid).tolist()[2]
    assert (column("a") >= 5).keep({"a": least}, uid).tolist() == [False, True, False, True]
    wide = np.array([2**53 - 1, 2**53, 2**53 + 1, 2**63 - 1])
    for sign, number, want in (
        ("==", 2**53 + 1, [0, 0, 1, 0]), (">", 2**53, [0, 0, 1, 1]), ("<=", "9007199254740992.5", [1, 1, 0, 0]),
        (">=", "9007199254740992.5", [0, 0, 1, 1]), ("==", "0.5", [0] * 4), ("!=", "0.5", [1] * 4),
        ("<", "1e99", [1] * 4),
    ):  # fmt: skip
        assert parse(f"(a {sign} {number})").keep({"a": wide}, uid).tolist() == want, (sign, number)
    close = np.array([0.3, np.nextafter(0.3, 1), 0.3, 0.3])
    assert (column("a") > 0.3).keep({"a": close}, uid).tolist() == [False, True, False, False]


def test_objects_and_text_are_the_same_rules():
    assert top("a", 0.3) >> bottom("b", 0.20, of="kept") == parse('top(a, 0.3) >> bottom(b, 0.2, of="kept")')
    assert (column("a") >= 0.25) & (column("b") < column("a")) == parse("(a >= 0.25) & (b < a)")
    assert parse("0.25 <= a") == (column("a") >= 0.25)
    assert column("a").differs(-1) | column("a").equals(2) == parse("(a != -1) | (a == 2)")
    assert top("a", 1) - selection.uids("x.npy") == parse("top(a, 1) - uids('x.npy')")
    assert hash(top("a", 0.30)) == hash(parse("top(a, 0.3)"))


def test_operators_bind_as_in_python():
    a, b, c, d, e = (parse(f"top({name}, 0.5)") for name in "abcde")
    text = "top(a, 0.5) | top(b, 0.5) & top(c, 0.5) >> top(d, 0.5) - top(e, 0.5)"
    assert parse(text) == a | (b & (c >> (d - e)))
    assert str(parse(text)) == text
    assert parse("top(a, 0.5) - top(b, 0.5) - top(c, 0.5)") == (a - b) - c
    assert str(a - (b - c)) == "top(a, 0.5) - (top(b, 0.5) - top(c, 0.5))"


def test_the_trace_says_what_every_step_did():
    columns, uid = made_pool(1000)
    columns["b"][:] = np.nan
    mask, counts = parse("top(a, 0.3) >> (top(b, 0.2) | (a >= -9))").trace(columns, uid)
    assert mask.sum() == 300
    assert counts == [
        selection.StepCounts("top(a, 0.3)", 1000, 300, 300),
        selection.StepCounts("top(b, 0.2)", 300, 0, 200),
        selection.StepCounts("(a >= -9)", 300, 300),
        selection.StepCounts("top(b, 0.2) | (a >= -9)", 300, 300),
    ]


def test_uids_take_pairs_whatever_their_scores(tmp_path):
    columns, uid = made_pool(10)
    columns["a"][:5] = np.nan
    uids.write_subset(str(tmp_path / "s.npy"), uid[3:7])
    rule = selection.uids(str(tmp_path / "s.npy"))
    assert rule.files() == (str(tmp_path / "s.npy"),)
    assert rule.columns() == ()
    assert np.flatnonzero(rule.keep({}, uid)).tolist() == [3, 4, 5, 6]
    assert (top("a", 1) - rule).keep(columns, uid).sum() == 3
    assert parse(str(rule)) == rule


def test_the_reference_selection_is_reproduced(golden):
    with np.load(golden / "reference_scores.npz") as reference:
        scores = {"neg_clip_loss": reference["tau0.01_negcliploss_float64"], "norm_sim_inf": reference["normsim_inf"]}
        want = reference["select_0.3_then_0.2"]
    uid = uids.join_halves(np.zeros(1000, np.uint64), np.arange(1000, dtype=np.uint64))
    got = parse("top(neg_clip_loss, 0.3) >> top(norm_sim_inf, 0.2)").keep(scores, uid)
    np.testing.assert_array_equal(np.flatnonzero(got), np.sort(want))


def test_columns_and_files_come_once_and_in_order():
    rule = parse("(b > 1) & top(a, 0.1) | (b < a)")
    assert rule.columns() == ("b", "a")


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5, 5000, float("nan"), float("inf"), "much", True, 1e-400])
def test_fractions_outside_0_to_1_are_refused(fraction):
    with pytest.raises(InputError, match=r"fraction|finite number"):
        top("a", fraction)


def test_wrong_arrays_and_names_are_refused():
    columns, uid = made_pool(10)
    with pytest.raises(InputError, match=r"unknown column 'aa'; the columns are a, b; did you mean a\?"):
        top("aa", 0.1).keep(columns, uid)
    with pytest.raises(ValueError, match="column 'a' has shape"):
        top("a", 0.1).keep({"a": np.zeros(9)}, uid)
    with pytest.raises(ValueError, match="u8,u8"):
        top("a", 0.1).keep(columns, np.arange(10))
    with pytest.raises(ValueError, match="rows is 9"):
        top("a", 0.1).keep(columns, uid, 9)
    with pytest.raises(InputError, match=r"1\.5, but must be a fraction"):
        selection.sample("a", 1.5)
    with pytest.raises(InputError, match="temperature is 0"):
        selection.sample("a", 0.5, temperature=0)
    with pytest.raises(InputError, match="at least 1"):
        selection.at_most(0)
    with pytest.raises(InputError, match="the same for every pair"):
        top(values.value(1), 0.5)
    with pytest.raises(InputError, match="not a column name"):
        column("not a word")
    with pytest.raises(InputError, match="of='all'"):
        top("a", 0.1, of="all")
    with pytest.raises(InputError, match="not a finite number"):
        assert column("a") >= "b"


def test_python_words_between_rules_are_refused():
    with pytest.raises(TypeError, match="use & for and"):
        assert top("a", 0.1)
        assert top("b", 0.1)
    with pytest.raises(TypeError):
        top("a", 0.1) >> 0.3
