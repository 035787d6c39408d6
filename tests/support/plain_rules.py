"""The rules once more, one pair at a time in plain Python: what the tests compare with."""

from __future__ import annotations

import math
import operator
from decimal import Decimal

import numpy as np

from clipdata_jax.formats import hashing, uid_files
from clipdata_jax.selection import grouped, rules, steps, values

SIGNS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt, "==": operator.eq, "!=": operator.ne}
ARITHMETIC = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def scores(value, columns, rows):
    """The scores of all rows as a list; None is null or not finite."""
    match value:
        case values.Column(name):
            return [score.item() if math.isfinite(score) else None for score in columns[name]]
        case values.Constant(number):
            return [float(number)] * rows
        case values.Negative(by):
            return [None if score is None else -score for score in scores(by, columns, rows)]
        case values.Rank(by):
            of = scores(by, columns, rows)
            there = [score for score in of if score is not None]
            return [
                None if x is None else (sum(y < x for y in there) + (sum(y == x for y in there) + 1) / 2) / len(there)
                for x in of
            ]
        case values.Arithmetic(left, sign, right):
            sides = zip(scores(left, columns, rows), scores(right, columns, rows), strict=True)
            return [calculated(sign, *pair) for pair in sides]
    raise AssertionError(value)


def calculated(sign, left, right):
    if left is None or right is None or (sign == "/" and right == 0):
        return None
    result = ARITHMETIC[sign](left, right)
    return result if math.isfinite(result) else None


def first(order, amount, of, among, uid):
    """The first rows by (score, uid, row); `order` maps the rows that have a score to it, smaller first."""
    numerator, denominator = Decimal(amount).as_integer_ratio()
    count = numerator if amount > 1 else numerator * (len(uid) if of == "pool" else len(among)) // denominator
    return set(sorted(order, key=lambda i: (order[i], tuple(map(int, uid[i])), i))[:count])


def keep(rule, columns, uid, among=None):
    """The set of the rows that a rule keeps of a set of rows."""
    among = set(range(len(uid))) if among is None else among
    match rule:
        case grouped.BestOf(group, by):
            of = scores(by, columns, len(uid))
            names = [("alone", i) if math.isnan(column) else column for i, column in enumerate(columns[group.name])]
            best = {}
            for i in sorted(among, key=lambda i: (-(of[i] or 0), tuple(map(int, uid[i])), i)):
                if of[i] is not None:
                    best.setdefault(names[i], i)
            return set(best.values())
        case rules.Then(left, right):
            return keep(right, columns, uid, keep(left, columns, uid, among))
        case rules.And(left, right):
            return keep(left, columns, uid, among) & keep(right, columns, uid, among)
        case rules.Or(left, right):
            return keep(left, columns, uid, among) | keep(right, columns, uid, among)
        case rules.Minus(left, right):
            return keep(left, columns, uid, among) - keep(right, columns, uid, among)
        case steps.Top(by, fraction, of, highest, number):
            found = scores(by, columns, len(uid))
            sign = -1 if highest else 1
            order = {i: sign * found[i] for i in among if found[i] is not None}
            if number is not None:
                return set(sorted(order, key=lambda i: (order[i], tuple(map(int, uid[i])), i))[:number])
            return first(order, fraction, of, among, uid)
        case steps.AtMost(number):
            order = {i: hashing.mix(steps._AT_MOST, *map(int, uid[i])).item() for i in among}
            return set(sorted(order, key=lambda i: (order[i], tuple(map(int, uid[i])), i))[:number])
        case steps.WeightedSample(by, amount, temperature, seed, of):
            found = scores(by, columns, len(uid))
            order = {}
            for i in among:
                if found[i] is not None:
                    word = hashing.mix(steps._SAMPLE, seed, *map(int, uid[i])).item()
                    uniform = (2 * (word >> 12) + 1) / 2**53
                    order[i] = -(found[i] / float(temperature) - np.log(-np.log(np.float64(uniform))))
            return first(order, amount, of, among, uid)
        case steps.ListedUids(path):
            given = set(uid_files.read_subset(path).tolist())
            return {i for i in among if uid[i].item() in given}
        case values.Compare(left, sign, right):
            a, b = (scores(side, columns, len(uid)) for side in (left, right))
            if isinstance(left, values.Column) and isinstance(right, values.Constant):
                with np.errstate(over="ignore"):
                    b = [np.float32(right.number).item()] * len(uid)
            return {i for i in among if a[i] is not None and b[i] is not None and SIGNS[sign](a[i], b[i])}
    raise AssertionError(rule)
