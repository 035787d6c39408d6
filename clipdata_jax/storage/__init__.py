"""Bytes at any path, local or in a store, written whole or not at all."""

from __future__ import annotations

from clipdata_jax.storage.local import reserve as reserve
from clipdata_jax.storage.paths import digest as digest
from clipdata_jax.storage.paths import downloaded as downloaded
from clipdata_jax.storage.paths import exists as exists
from clipdata_jax.storage.paths import expand as expand
from clipdata_jax.storage.paths import filesystem as filesystem
from clipdata_jax.storage.paths import fingerprint as fingerprint
from clipdata_jax.storage.paths import fingerprints as fingerprints
from clipdata_jax.storage.paths import is_folder as is_folder
from clipdata_jax.storage.paths import is_local as is_local
from clipdata_jax.storage.paths import join as join
from clipdata_jax.storage.paths import list_folder as list_folder
from clipdata_jax.storage.paths import list_names as list_names
from clipdata_jax.storage.paths import list_tree as list_tree
from clipdata_jax.storage.paths import open_read as open_read
from clipdata_jax.storage.paths import open_write as open_write
from clipdata_jax.storage.paths import parts_ahead as parts_ahead
from clipdata_jax.storage.paths import read_bytes as read_bytes
from clipdata_jax.storage.paths import remove as remove
from clipdata_jax.storage.paths import size as size
from clipdata_jax.storage.paths import size_and_digest as size_and_digest
from clipdata_jax.storage.paths import sizes as sizes
from clipdata_jax.storage.paths import stat_cache as stat_cache
from clipdata_jax.storage.paths import sweep as sweep
from clipdata_jax.storage.paths import sweep_beside as sweep_beside
from clipdata_jax.storage.paths import threads_for as threads_for
from clipdata_jax.storage.paths import write as write
from clipdata_jax.storage.paths import write_bytes as write_bytes
from clipdata_jax.storage.paths import write_new as write_new
from clipdata_jax.storage.run_folder import MANIFEST as MANIFEST
from clipdata_jax.storage.run_folder import PLAN as PLAN
from clipdata_jax.storage.run_folder import TIMES as TIMES
from clipdata_jax.storage.run_folder import TRACE as TRACE
from clipdata_jax.storage.run_folder import check_finished as check_finished
from clipdata_jax.storage.run_folder import recorded_sizes as recorded_sizes
