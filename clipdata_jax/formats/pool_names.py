"""Names of a pool's sources, of which uids are made, and of the shards written for them.

A name depends on where the sources lie relative to each other, not on the order or form in which they are given, nor on
where the whole pool lies.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence

_EXAMPLES = 3


def pool_names(paths: Sequence[str]) -> dict[str, str]:
    """Names each source of a pool by its file name, preceded by as many of its folders as no other source shares.

    Args:
      paths: of all sources of the pool, each once: local paths, URLs, `tfds:name/split`.

    Returns:
      path -> name: the shortest end of the path with which no other one ends. Where another one ends with all of it
      below the folder that holds the whole pool, that part is the name. A `tfds:name/split` is its own name.

    >>> pool_names(["cc3m/00000.tar", "cc12m/00000.tar", "cc12m/00001.tar"])
    {'cc3m/00000.tar': 'cc3m/00000.tar', 'cc12m/00000.tar': 'cc12m/00000.tar', 'cc12m/00001.tar': '00001.tar'}
    >>> pool_names(["/data/00000.tar", "/data/more/00000.tar"])
    {'/data/00000.tar': '00000.tar', '/data/more/00000.tar': 'more/00000.tar'}
    """
    files = [path for path in paths if not path.startswith("tfds:")]
    return {**{path: path for path in paths}, **dict(zip(files, map("/".join, _shortest(files)), strict=True))}


def unit_names(paths: Sequence[str]) -> list[str]:
    """Names what is written for each source: as `pool_names`, with "_" for "/" and without the ending.

    >>> unit_names(["a/0.tar", "b/0.tar", "b/1.tar"])
    ['a_0', 'b_0', '1']
    """
    names = ["_".join(parts) for parts in _shortest([path.removesuffix(".tar") for path in paths])]
    if len(set(names)) == len(names):
        return names
    # Even so a/b_0.tar and a_b/0.tar are both "a_b_0".
    rank = {path: i for i, path in enumerate(sorted(paths))}
    return [f"{rank[path]:05d}_{name}" for path, name in zip(paths, names, strict=True)]


def repeats(names: Mapping[str, str]) -> dict[str, object]:
    """Counts the sources whose file name another one has too, for a manifest.

    Args:
      names: from `pool_names`.

    Returns:
      "sources": their number, and "first": the names of a few; {} if all file names differ.
    """
    files = [name for name in names.values() if not name.startswith("tfds:")]
    last = Counter(name.rpartition("/")[2] for name in files)
    found = sorted(name for name in files if last[name.rpartition("/")[2]] > 1)
    return {"sources": len(found), "first": found[:_EXAMPLES]} if found else {}


def repeats_text(found: Mapping[str, object]) -> str:
    """Formats `repeats` as a line of a summary; "" if there are none."""
    if not found:
        return ""
    first = found["first"]
    assert isinstance(first, list)
    more = ", ..." if found["sources"] != len(first) else ""
    return f"{found['sources']:,} sources share a file name, and are named with their folders: {', '.join(first)}{more}"


def _shortest(paths: Sequence[str]) -> list[tuple[str, ...]]:
    """For each path, its last components that no other path ends with."""
    parts = [_components(path) for path in paths]
    folders = [part[:-1] for part in parts]
    low, high = min(folders, default=()), max(folders, default=())  # they share what all share
    common = next((i for i, pair in enumerate(zip(low, high, strict=False)) if pair[0] != pair[1]), len(low))
    parts = [part[common:] for part in parts]
    names, left, depth = list(parts), list(range(len(parts))), 1
    while left:
        ends = Counter(parts[i][-depth:] for i in left)
        for i in left:
            if ends[parts[i][-depth:]] == 1:
                names[i] = parts[i][-depth:]
        left = [i for i in left if ends[parts[i][-depth:]] > 1 and len(parts[i]) > depth]
        depth += 1
    return names


def _components(path: str) -> tuple[str, ...]:
    whole = path if "://" in path else os.path.abspath(path)
    return tuple(part for part in whole.split("/") if part)
