"""The rules once more, one pair at a time in plain Python: what the tests compare with."""

from __future__ import annotations

import math
import operator
from decimal import Decimal

import numpy as np

from clipdata_jax.selection import conditions, rules

SIGNS = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
    "==": operator.eq,
    "!=": operator.ne,
}


def keep(rule, columns, uid, among=None):
    """The set of the rows that a rule keeps of a set of rows."""
    among = set(range(len(uid))) if among is None else among
    match rule:
        case rules.Then(left, right):
            return keep(right, columns, uid, keep(left, columns, uid, among))
        case rules.And(left, right):
            return keep(left, columns, uid, among) & keep(right, columns, uid, among)
        case rules.Or(left, right):
            return keep(left, columns, uid, among) | keep(right, columns, uid, among)
        case rules.Minus(left, right):
            return keep(left, columns, uid, among) - keep(right, columns, uid, among)
        case conditions.Top(by, fraction, of, highest):
            values = columns[by.name]
            numerator, denominator = Decimal(fraction).as_integer_ratio()
            count = numerator * (len(uid) if of == "pool" else len(among)) // denominator
            scored = [i for i in among if math.isfinite(values[i])]
            sign = -1 if highest else 1
            scored.sort(key=lambda i: (sign * float(values[i]), tuple(map(int, uid[i])), i))
            return set(scored[:count])
        case conditions.Compare(left, sign, right):
            a = columns[left.name]
            b = columns[right.name] if isinstance(right, conditions.Column) else None
            with np.errstate(over="ignore"):
                number = None if b is not None else np.float32(right)
            return {
                i
                for i in among
                if math.isfinite(a[i])
                and (b is None or math.isfinite(b[i]))
                and SIGNS[sign](a[i], number if b is None else b[i])
            }
    raise AssertionError(rule)
