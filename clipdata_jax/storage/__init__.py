"""Files at any path, local or in a store, written whole or not at all.

`Folder` resolves a path once; the functions here are for lone files. No read is silently short, requests are retried
with time limits, and the temporary files of a killed process are removed by the next one.
"""

from __future__ import annotations

from clipdata_jax.storage.local import reserve as reserve
from clipdata_jax.storage.location import absolute as absolute
from clipdata_jax.storage.location import join as join
from clipdata_jax.storage.location import parent as parent
from clipdata_jax.storage.location import relative as relative
from clipdata_jax.storage.location import resolve as resolve
from clipdata_jax.storage.location import store_of as store_of
from clipdata_jax.storage.paths import Folder as Folder
from clipdata_jax.storage.paths import digest as digest
from clipdata_jax.storage.paths import exists as exists
from clipdata_jax.storage.paths import fingerprint as fingerprint
from clipdata_jax.storage.paths import is_folder as is_folder
from clipdata_jax.storage.paths import open_read as open_read
from clipdata_jax.storage.paths import open_write as open_write
from clipdata_jax.storage.paths import read_bytes as read_bytes
from clipdata_jax.storage.paths import remove as remove
from clipdata_jax.storage.paths import size as size
from clipdata_jax.storage.paths import sweep_beside as sweep_beside
from clipdata_jax.storage.paths import write_bytes as write_bytes
from clipdata_jax.storage.patterns import SYSTEM_NAMES as SYSTEM_NAMES
from clipdata_jax.storage.patterns import expand as expand
from clipdata_jax.storage.patterns import is_hidden as is_hidden
from clipdata_jax.storage.patterns import split_joined as split_joined
from clipdata_jax.storage.remote import stat_cache as stat_cache
from clipdata_jax.storage.remote_files import downloaded as downloaded
from clipdata_jax.storage.run_folder import MANIFEST as MANIFEST
from clipdata_jax.storage.run_folder import PLAN as PLAN
from clipdata_jax.storage.run_folder import TIMES as TIMES
from clipdata_jax.storage.run_folder import TRACE as TRACE
from clipdata_jax.storage.run_folder import beside as beside
from clipdata_jax.storage.run_folder import check_finished as check_finished
from clipdata_jax.storage.run_folder import recorded_sizes as recorded_sizes
from clipdata_jax.storage.temporary import hold as hold
from clipdata_jax.storage.temporary import release as release
from clipdata_jax.storage.temporary import scratch as scratch
