"""Score columns to uids: rules as text or as Python objects, exact top-k. Imports no jax."""

from clipdata_jax.selection.balancing import balanced as balanced
from clipdata_jax.selection.grouped import best_of as best_of
from clipdata_jax.selection.parsing import parse as parse
from clipdata_jax.selection.repetition import hard_cap as hard_cap
from clipdata_jax.selection.repetition import soft_cap as soft_cap
from clipdata_jax.selection.rules import Rule as Rule
from clipdata_jax.selection.steps import at_most as at_most
from clipdata_jax.selection.steps import bottom as bottom
from clipdata_jax.selection.steps import sample as sample
from clipdata_jax.selection.steps import top as top
from clipdata_jax.selection.steps import uids as uids
from clipdata_jax.selection.values import Column as Column
from clipdata_jax.selection.values import Value as Value
from clipdata_jax.selection.values import column as column
from clipdata_jax.selection.values import rank as rank
from clipdata_jax.selection.work import StepCounts as StepCounts
