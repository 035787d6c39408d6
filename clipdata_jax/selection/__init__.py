"""Score columns to uids: rules as text or as Python objects, exact top-k. Imports no jax."""

from clipdata_jax.selection.conditions import Column as Column
from clipdata_jax.selection.conditions import bottom as bottom
from clipdata_jax.selection.conditions import column as column
from clipdata_jax.selection.conditions import top as top
from clipdata_jax.selection.conditions import uids as uids
from clipdata_jax.selection.parsing import parse as parse
from clipdata_jax.selection.rules import Rule as Rule
from clipdata_jax.selection.rules import Step as Step
