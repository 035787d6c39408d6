"""The data set of a task, found in a folder: as DataComp's downloader, the hub's cache or CLIP_benchmark leaves it."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

from clipdata_jax import storage
from clipdata_jax.config.base import did_you_mean
from clipdata_jax.errors import InputError
from clipdata_jax.evaluation.captioned_tables import CaptionedTable
from clipdata_jax.evaluation.evaluator import PLACE
from clipdata_jax.evaluation.tasks import TASKS, EvaluationTask
from clipdata_jax.formats.sources import hub_tables
from clipdata_jax.formats.sources.source import Source, TarSource

_CLASSES, _PROMPTS = "classnames.txt", "zeroshot_classification_templates.txt"
_COUNT = "test/nshards.txt"
# CLIP_benchmark's names of the retrieval sets.
_OTHER_NAMES = {
    "flickr_1k_test_image_text_retrieval": ("wds_flickr30k",),
    "mscoco_2014_5k_test_image_text_retrieval": ("wds_mscoco_captions",),
}


@dataclasses.dataclass(frozen=True)
class TaskFiles:
    """The data set of a task.

    Attributes:
      task: the task.
      folder: of the data set.
      sources: of its images; none of WinoGAViL, whose `table` has them.
      names: class names in order, by objective ("" where there is one list).
      templates: prompts with "{c}" for the class, likewise.
      texts: the files of names and prompts.
      table: of a data set in another form than webdataset.
    """

    task: EvaluationTask
    folder: str
    sources: tuple[Source, ...] = ()
    names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    templates: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    texts: tuple[str, ...] = ()
    table: hub_tables.HubTable | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """All files that its figures depend on, but for single image files."""
        held = self.table.inputs if self.table is not None else ()
        return tuple(dict.fromkeys([*self.texts, *held, *(path for one in self.sources for path in one.inputs)]))


def locate(data: str, task: EvaluationTask) -> str | None:
    """Finds the folder of a task's data set in the folder of all; None if it isn't there.

    It has the data set's name, as DataComp's downloader leaves it, or that without "_test", as CLIP_benchmark's; and
    lies directly in `data`, in a folder of the repository's owner, or in a cache of the hub or of `datasets`.
    """
    owner, _, name = task.repository.partition("/")
    for one in (name, name.removesuffix("_test"), *_OTHER_NAMES.get(name, ())):
        for place in (one, f"{owner}/{one}", f"{owner}___{one}", f"hf_cache/{owner}___{one}"):
            if storage.is_folder(found := storage.join(data, *place.split("/"))):
                return found
        if storage.is_folder(cached := storage.join(data, f"datasets--{owner}--{one}")):
            return _snapshot(cached)
    return None


def locate_all(data: str, words: Sequence[str] = ()) -> tuple[dict[EvaluationTask, str], list[EvaluationTask]]:
    """Finds the folders of all tasks, or of those that are named.

    Args:
      data: folder of the data sets.
      words: keys or names of tasks; none means all.

    Returns:
      The folder of each task that is there, in DataComp's order, and the tasks that aren't there.

    Raises:
      InputError: a task is unknown, one that is named isn't there, or none is.
    """
    if not storage.is_folder(data):
        raise InputError(f"--data {data}: no such folder; expected the data sets of the suite")
    named = {name.casefold(): task for task in TASKS.values() for name in (task.key, task.name)}
    if unknown := [word for word in words if word.casefold() not in named]:
        advice = did_you_mean(unknown[0], [name for task in TASKS.values() for name in (task.key, task.name)])
        raise InputError(f"--tasks has {unknown[0]!r}, which is not a task{advice or '; expected its key or name'}")
    wanted = {named[word.casefold()].key for word in words} or TASKS.keys()
    places = {task: locate(data, task) for task in TASKS.values() if task.key in wanted}
    found = {task: place for task, place in places.items() if place is not None}
    missing = [task for task in places if task not in found]
    if missing and (words or not found):
        raise InputError(
            f"{data}: has no data set of {missing[0].name}; expected a folder {missing[0].folder}, from the repository"
            f" {missing[0].repository} of the hub"
        )
    return found, missing


def _snapshot(folder: str) -> str:
    """The files of a repository in the hub's cache."""
    at = storage.Folder(storage.join(folder, "snapshots"))
    names = at.names()
    if len(names) != 1:
        raise InputError(f"{at}: holds {len(names)} versions of the data set, expected one; delete the others")
    return at.join(names[0])


def open_task(task: EvaluationTask, folder: str) -> TaskFiles:
    """Reads what belongs to a task besides its images.

    Raises:
      InputError: a file is missing or of another form.
    """
    if task.kind in ("classification", "attributes"):
        names, names_path = _lines(folder, _CLASSES, "class names")
        templates, templates_path = _lines(folder, _PROMPTS, "prompts")
        if wrong := next((one for one in templates if PLACE not in one), None):
            raise InputError(f"{templates_path}: the prompt {wrong!r:.80} has no {PLACE} for the class")
        by_objective = task.kind == "attributes"
        return TaskFiles(
            task,
            folder,
            _shards(folder),
            _by_objective(names, names_path) if by_objective else {"": tuple(names)},
            _by_objective(templates, templates_path) if by_objective else {"": tuple(templates)},
            (names_path, templates_path),
        )
    if task.kind == "retrieval" and storage.exists(storage.join(folder, _COUNT)):
        return TaskFiles(task, folder, _shards(folder))
    table = hub_tables.find_table(folder)
    if table is None:
        raise InputError(f"{folder}: holds neither parquet, arrow, csv or json files nor {_COUNT} with tars")
    if task.kind == "retrieval":
        return TaskFiles(task, folder, (CaptionedTable(table),), table=table)
    return TaskFiles(task, folder, table=table)


def _lines(folder: str, name: str, what: str) -> tuple[list[str], str]:
    """The lines of a file, and its path.

    Raises:
      InputError: it is missing, not UTF-8, or a line is empty.
    """
    path = storage.join(folder, name)
    if not storage.exists(path):
        raise InputError(f"{path}: no such file; expected {what}, one a line, as DataComp's downloader leaves it")
    try:
        text = storage.read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 (byte {error.start}); download it again") from error
    # Not splitlines(), which also splits at characters that a name may hold.
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise InputError(f"{path}: line {number} is empty; expected {what}, one a line")
    return lines, path


def _by_objective(lines: Sequence[str], path: str) -> dict[str, tuple[str, ...]]:
    """Lines "objective:text" by objective."""
    found: dict[str, list[str]] = collections.defaultdict(list)
    for number, line in enumerate(lines, start=1):
        objective, sign, text = line.partition(":")
        if not (sign and text.strip()):
            raise InputError(f'{path}: line {number} is {line!r:.80}, expected "objective:text"')
        found[objective].append(text)
    return {objective: tuple(several) for objective, several in found.items()}


def _shards(folder: str) -> tuple[Source, ...]:
    path = storage.join(folder, _COUNT)
    if not storage.exists(path):
        raise InputError(f"{path}: no such file; expected the number of tars in {folder}/test")
    text = storage.read_bytes(path).decode("utf-8", "replace").strip()
    if not (text.isdecimal() and 0 < int(text) < 1_000_000):
        raise InputError(f"{path}: holds {text!r:.40}, expected the number of tars")
    names = [f"{number}.tar" for number in range(int(text))]
    at = storage.Folder(storage.join(folder, "test"))
    if missing := {*names} - {*at.names()}:
        first = min(missing, key=names.index)
        raise InputError(f"{at.join(first)}: no such file, but {path} says {len(names)} tars; download it again")
    return tuple(TarSource(at.join(name)) for name in names)
