"""DataComp's evaluation: 40 tasks, of which 38 have a main metric, and the groups whose means are reported.

Gadre et al. 2023, "DataComp: In search of the next generation of multimodal datasets", arXiv:2304.14108.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

GROUPS = ("ImageNet", "shifts", "VTAB", "retrieval")
"""Groups of tasks whose means are reported, besides the mean of all main metrics."""


@dataclasses.dataclass(frozen=True)
class EvaluationTask:
    """One task.

    Attributes:
      key: its name in files: "vtab/caltech101".
      name: its name in tables and in DataComp's results: "Caltech-101".
      folder: of its data set, as DataComp's downloader names it.
      images: their published number; of WinoGAViL the instances'.
      classes: their number; None if it has no classes, or several lists of them.
      main_metric: the name of the one that counts; None if none does.
      group: one of `GROUPS`; None if it is in none of them.
      columns: of the images' rows of metadata.
    """

    key: str
    name: str
    folder: str
    images: int
    classes: int | None
    main_metric: str | None
    group: str | None = None
    columns: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """Either "retrieval", "association", "attributes" or "classification"."""
        if self.key.startswith("retrieval/"):
            return "retrieval"
        if self.key.startswith("misc/"):
            return "association"
        return "attributes" if self.classes is None else "classification"

    @property
    def repository(self) -> str:
        """The data set of the hub that holds its files."""
        return f"{'djghosh' if self.folder.startswith('wds_') else 'nlphuji'}/{self.folder}"

    @property
    def unit(self) -> str:
        """Its name as a unit of a run."""
        return self.key.replace("/", "-")


_RECALL = "mean_per_class_recall"
_FACES = ("age", "gender", "race", "race_binary")
_WHEN = ("year", "month", "day", "hour", "minute", "second")
_TASKS = (
    EvaluationTask("vtab/caltech101", "Caltech-101", "wds_vtab-caltech101_test", 6_085, 102, _RECALL, "VTAB"),
    EvaluationTask("cifar10", "CIFAR-10", "wds_cifar10_test", 10_000, 10, "acc1"),
    EvaluationTask("vtab/cifar100", "CIFAR-100", "wds_vtab-cifar100_test", 10_000, 100, "acc1", "VTAB"),
    EvaluationTask("vtab/clevr_count_all", "CLEVR Counts", "wds_vtab-clevr_count_all_test", 15_000, 8, "acc1", "VTAB"),
    EvaluationTask(
        "vtab/clevr_closest_object_distance",
        "CLEVR Distance",
        "wds_vtab-clevr_closest_object_distance_test",
        15_000,
        6,
        "acc1",
        "VTAB",
    ),
    EvaluationTask("country211", "Country211", "wds_country211_test", 21_100, 211, "acc1"),
    EvaluationTask("vtab/dtd", "Describable Textures", "wds_vtab-dtd_test", 1_880, 47, "acc1", "VTAB"),
    EvaluationTask("vtab/eurosat", "EuroSAT", "wds_vtab-eurosat_test", 5_400, 10, "acc1", "VTAB"),
    EvaluationTask("fgvc_aircraft", "FGVC Aircraft", "wds_fgvc_aircraft_test", 3_333, 100, _RECALL),
    EvaluationTask("food101", "Food-101", "wds_food101_test", 25_250, 101, "acc1"),
    EvaluationTask("gtsrb", "GTSRB", "wds_gtsrb_test", 12_630, 43, "acc1"),
    EvaluationTask("imagenet1k", "ImageNet 1k", "wds_imagenet1k_test", 50_000, 1000, "acc1", "ImageNet"),
    EvaluationTask("imagenet_sketch", "ImageNet Sketch", "wds_imagenet_sketch_test", 50_889, 1000, "acc1", "shifts"),
    EvaluationTask("imagenetv2", "ImageNet v2", "wds_imagenetv2_test", 10_000, 1000, "acc1", "shifts"),
    EvaluationTask("imagenet-a", "ImageNet-A", "wds_imagenet-a_test", 7_500, 200, "acc1", "shifts"),
    EvaluationTask("imagenet-o", "ImageNet-O", "wds_imagenet-o_test", 2_000, 200, "acc1", "shifts"),
    EvaluationTask("imagenet-r", "ImageNet-R", "wds_imagenet-r_test", 30_000, 200, "acc1", "shifts"),
    EvaluationTask(
        "vtab/kitti_closest_vehicle_distance",
        "KITTI Vehicle Distance",
        "wds_vtab-kitti_closest_vehicle_distance_test",
        711,
        4,
        "acc1",
        "VTAB",
    ),
    EvaluationTask("mnist", "MNIST", "wds_mnist_test", 10_000, 10, "acc1"),
    EvaluationTask("objectnet", "ObjectNet", "wds_objectnet_test", 18_574, 113, "acc1", "shifts"),
    EvaluationTask("vtab/flowers", "Oxford Flowers-102", "wds_vtab-flowers_test", 6_149, 102, _RECALL, "VTAB"),
    EvaluationTask("vtab/pets", "Oxford-IIIT Pet", "wds_vtab-pets_test", 3_669, 37, _RECALL, "VTAB"),
    EvaluationTask("voc2007", "Pascal VOC 2007", "wds_voc2007_test", 14_976, 20, "acc1"),
    EvaluationTask("vtab/pcam", "PatchCamelyon", "wds_vtab-pcam_test", 32_768, 2, "acc1", "VTAB"),
    EvaluationTask("renderedsst2", "Rendered SST2", "wds_renderedsst2_test", 1_821, 2, "acc1"),
    EvaluationTask("vtab/resisc45", "RESISC45", "wds_vtab-resisc45_test", 6_300, 45, "acc1", "VTAB"),
    EvaluationTask("cars", "Stanford Cars", "wds_cars_test", 8_041, 196, "acc1"),
    EvaluationTask("stl10", "STL-10", "wds_stl10_test", 8_000, 10, "acc1"),
    EvaluationTask("sun397", "SUN397", "wds_sun397_test", 108_754, 397, "acc1", "VTAB"),
    EvaluationTask("vtab/svhn", "SVHN", "wds_vtab-svhn_test", 26_032, 10, "acc1", "VTAB"),
    EvaluationTask(
        "retrieval/flickr_1k_test_image_text_retrieval",
        "Flickr",
        "flickr_1k_test_image_text_retrieval",
        1_000,
        None,
        "mean_recall@1",
        "retrieval",
    ),
    EvaluationTask(
        "retrieval/mscoco_2014_5k_test_image_text_retrieval",
        "MSCOCO",
        "mscoco_2014_5k_test_image_text_retrieval",
        5_000,
        None,
        "mean_recall@1",
        "retrieval",
    ),
    EvaluationTask("misc/winogavil", "WinoGAViL", "winogavil", 3_563, None, "jaccard_score_10-12", "retrieval"),
    EvaluationTask(
        "wilds/iwildcam",
        "iWildCam",
        "wds_wilds-iwildcam_test",
        42_791,
        182,
        "F1-macro_all",
        None,
        ("location", "sequence", *_WHEN, "y"),
    ),
    EvaluationTask(
        "wilds/camelyon17",
        "Camelyon17",
        "wds_wilds-camelyon17_test",
        85_054,
        2,
        "acc1",
        None,
        ("hospital", "slide", "y"),
    ),
    EvaluationTask(
        "wilds/fmow", "FMoW", "wds_wilds-fmow_test", 22_108, 62, "acc_worst_region", None, ("region", "year", "y")
    ),
    EvaluationTask(
        "fairness/dollar_street",
        "Dollar Street",
        "wds_dollar_street_test",
        3_503,
        58,
        "acc_top5_wg",
        None,
        ("income_ds", "income_meta", "region"),
    ),
    EvaluationTask("fairness/geode", "GeoDE", "wds_geode_test", 12_488, 40, "acc_wg", None, ("region", "country")),
    EvaluationTask("fairness/fairface", "FairFace", "wds_fairface_test", 10_954, None, None, None, _FACES),
    EvaluationTask("fairness/utkface", "UTKFace", "wds_utkface_test", 23_703, None, None, None, _FACES),
)
TASKS: Mapping[str, EvaluationTask] = {task.key: task for task in _TASKS}
"""The tasks by key, in DataComp's order."""
