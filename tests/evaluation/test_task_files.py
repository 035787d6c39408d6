"""Where a task's data set is found, and what it is made of."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import eval_suites

from clipdata_jax.embedding.samples import decoded_samples
from clipdata_jax.errors import InputError
from clipdata_jax.evaluation.captioned_tables import CandidateImages
from clipdata_jax.evaluation.task_files import locate, locate_all, open_task
from clipdata_jax.evaluation.tasks import TASKS
from clipdata_jax.formats import tars
from clipdata_jax.formats.sources import hub_tables

MSCOCO = TASKS["retrieval/mscoco_2014_5k_test_image_text_retrieval"]


@pytest.mark.parametrize(
    "place",
    ["wds_mnist_test", "wds_mnist", "djghosh/wds_mnist_test", "datasets--djghosh--wds_mnist_test/snapshots/0a1b"],
)
def test_data_sets_are_found_as_downloaders_leave_them(tmp_path, place):
    folder = tmp_path / place
    folder.mkdir(parents=True)
    assert locate(str(tmp_path), TASKS["mnist"]) == str(folder)
    found, missing = locate_all(str(tmp_path))
    assert (list(found), len(missing)) == ([TASKS["mnist"]], 39)


def test_several_versions_in_the_cache_are_an_error(tmp_path):
    for name in ("0a", "1b"):
        (tmp_path / "datasets--djghosh--wds_mnist_test" / "snapshots" / name).mkdir(parents=True)
    with pytest.raises(InputError, match="holds 2 versions of the data set"):
        locate(str(tmp_path), TASKS["mnist"])


def test_class_names_keep_commas_and_odd_characters(tmp_path):
    eval_suites.draw_wds(tmp_path, "cifar10", 4, 1)
    found = open_task(TASKS["cifar10"], str(tmp_path / "wds_cifar10_test"))
    assert found.names == {"": eval_suites.NAMES}
    assert found.templates == {"": eval_suites.TEMPLATES}
    assert [source.path.rpartition("/")[2] for source in found.sources] == ["0.tar", "1.tar"]


def test_classes_of_faces_have_objectives(tmp_path):
    eval_suites.draw_wds(tmp_path, "fairness/fairface", 4, 1, [2, 2, 2, 2])
    folder = tmp_path / "wds_fairface_test"
    found = open_task(TASKS["fairness/fairface"], str(folder))
    assert {name: list(several) for name, several in found.names.items()} == eval_suites.FACE_CLASSES
    (folder / "classnames.txt").write_text("race:black\nmale\n")
    with pytest.raises(InputError, match="line 2 is 'male', expected \"objective:text\""):
        open_task(TASKS["fairness/fairface"], str(folder))


def test_retrieval_may_be_a_webdataset_of_clip_benchmark(tmp_path):
    folder = tmp_path / "wds_mscoco_captions"
    (folder / "test").mkdir(parents=True)
    (folder / "test" / "nshards.txt").write_text("1")
    (folder / "dataset_type.txt").write_text("retrieval")
    tars.write_tar(str(folder / "test" / "0.tar"), [("0.webp", eval_suites.image(0)), ("0.txt", b"a cat\na dog\n")])
    found = open_task(MSCOCO, locate(str(tmp_path), MSCOCO))
    assert [source.path for source in found.sources] == [str(folder / "test" / "0.tar")]


def test_a_folder_of_nothing_is_named(tmp_path):
    (tmp_path / "flickr_1k_test_image_text_retrieval").mkdir()
    with pytest.raises(InputError, match="holds neither parquet, arrow, csv or json files nor test/nshards"):
        open_task(
            TASKS["retrieval/flickr_1k_test_image_text_retrieval"],
            str(tmp_path / "flickr_1k_test_image_text_retrieval"),
        )


def test_candidates_may_have_their_images_inside_and_each_is_read_once(tmp_path):
    images = {name: eval_suites.image(i) for i, name in enumerate("abc")}
    instances = [("x", ["a", "b"], ["b"]), ("y", ["b", "c"], ["c", "b"])]
    columns = {
        "candidates": [names for _, names, _ in instances],
        "candidate_images": [[{"bytes": images[name], "path": None} for name in names] for _, names, _ in instances],
        "associations": [right for _, _, right in instances],
        "cue": [cue for cue, _, _ in instances],
    }
    pq.write_table(pa.table(columns), tmp_path / "test.parquet")
    source = CandidateImages(hub_tables.find_table(str(tmp_path)))
    samples = list(decoded_samples(source.samples(), [np.asarray], path=source.path, on_bad="stop", need_caption=False))
    assert [sample.key for sample in samples] == ["a", "b", "c"]
    assert [(one.cue, list(one.candidates), set(one.associations)) for one in source.instances] == [
        (cue, names, set(right)) for cue, names, right in instances
    ]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('"[""a"", ""b""]","[""c""]",x', "row 0: expected candidates that differ, an image of each, and some of them"),
        ('"[""a"", ""a""]","[""a""]",x', "row 0: expected candidates that differ"),
        ('"[""a""]","[""a""]",', "row 0: column 'cue' is '', expected a word"),
    ],
)
def test_bad_instances_are_named(tmp_path, row, words):
    (tmp_path / "t.csv").write_text(f"candidates,associations,cue\n{row}\n")
    with pytest.raises(InputError, match=r"t\.csv: ") as caught:
        list(CandidateImages(hub_tables.find_table(str(tmp_path))).samples())
    assert words in str(caught.value)
