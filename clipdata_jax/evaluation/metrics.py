"""DataComp's metrics, as pure functions of labels, predictions and groups.

Their names are those of DataComp's result files: Gadre et al. 2023, arXiv:2304.14108.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int

_KS = (1, 5, 10)


def classification_metrics(
    top: Int[np.ndarray, "n k"], labels: Int[np.ndarray, " n"], classes: int
) -> dict[str, float | None]:
    """Computes accuracies of zero-shot classification.

        acc_k = mean_i [y_i in top_i,1..k],   mean_per_class_recall = mean_c mean_(i: y_i = c) [top_i,1 = c]

    Args:
      top: the nearest classes, nearest first, shape (n, k), with k at least min(5, classes); from `nearest`.
      labels: y, the true classes.
      classes: their number.

    Returns:
      "acc1", "acc5" (None for fewer than five classes) and "mean_per_class_recall", over the classes that occur.

    >>> import numpy as np
    >>> from clipdata_jax.evaluation import classification_metrics
    >>> classification_metrics(np.array([[0, 1], [0, 1], [1, 0]]), np.array([0, 0, 0]), classes=2)
    {'acc1': 0.6666666666666666, 'acc5': None, 'mean_per_class_recall': 0.6666666666666666}
    """
    right = top[:, 0] == labels
    return {
        "acc1": float(right.mean()),
        "acc5": float((top[:, :5] == labels[:, None]).any(axis=1).mean()) if classes >= 5 else None,
        "mean_per_class_recall": macro_metrics(top[:, 0], labels)["recall-macro_all"],
    }


def macro_metrics(predicted: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> dict[str, float]:
    """Computes the means of the classes' F1 and recall, over the classes that occur among the labels.

        F1_c = 2 tp_c / (2 tp_c + fp_c + fn_c),   recall_c = tp_c / (tp_c + fn_c)

    As WILDS defines them for iWildCam: Koh et al. 2021, arXiv:2012.07421.

    Args:
      predicted: classes.
      labels: the true ones; at least one.

    Returns:
      "F1-macro_all" and "recall-macro_all".

    >>> import numpy as np
    >>> from clipdata_jax.evaluation import macro_metrics
    >>> macro_metrics(np.array([0, 2, 1]), np.array([0, 0, 1]))
    {'F1-macro_all': 0.8333333333333333, 'recall-macro_all': 0.75}
    """
    count = int(max(predicted.max(), labels.max())) + 1
    seen, guessed = np.bincount(labels, minlength=count), np.bincount(predicted, minlength=count)
    right = np.bincount(labels[predicted == labels], minlength=count)
    occurs = seen > 0
    return {
        "F1-macro_all": float(np.mean(2 * right[occurs] / (seen + guessed)[occurs])),
        "recall-macro_all": float(np.mean(right[occurs] / seen[occurs])),
    }


def group_metrics(
    right: Bool[np.ndarray, " n"], columns: Mapping[str, Int[np.ndarray, " n"]], *, name: str = "acc"
) -> dict[str, float | int]:
    """Computes accuracy by group, and that of the worst group.

    A group is a combination of the columns' values; only those that occur count. As WILDS defines them: Koh et al.
    2021, arXiv:2012.07421.

    Args:
      right: whether each image is classified right.
      columns: the values that make the groups, by column.
      name: of the metric.

    Returns:
      The mean over images "NAME_avg", "NAME_COLUMN:VALUE" and "count_COLUMN:VALUE" of each group (several columns are
      joined by _), and the least of the groups' accuracies, "NAME_wg".

    >>> import numpy as np
    >>> from clipdata_jax.evaluation import group_metrics
    >>> found = group_metrics(np.array([True, False, True]), {"region": np.array([1, 1, 4])})
    >>> found["acc_region:1"], found["count_region:1"], found["acc_wg"]
    (0.5, 2, 0.5)
    """
    rows = np.stack(list(columns.values()), axis=1)
    groups, group_of = np.unique(rows, axis=0, return_inverse=True)
    counts = np.bincount(group_of.reshape(-1))
    shares = np.bincount(group_of.reshape(-1), right) / counts
    found: dict[str, float | int] = {f"{name}_avg": float(right.mean())}
    for values, count, share in zip(groups.tolist(), counts.tolist(), shares.tolist(), strict=True):
        group = "_".join(f"{column}:{value}" for column, value in zip(columns, values, strict=True))
        found |= {f"{name}_{group}": share, f"count_{group}": count}
    return {**found, f"{name}_wg": float(shares.min())}


def recall_metrics(
    top_texts: Int[np.ndarray, "n texts"], top_images: Int[np.ndarray, "m images"], image_of: Int[np.ndarray, " m"]
) -> dict[str, float]:
    """Computes image-text retrieval's recall at 1, 5 and 10, both ways, where an image may have several captions.

    An image is found if any of its captions is among the first k; in the other direction each caption is a query. The
    protocol of Karpathy and Fei-Fei 2015, arXiv:1412.2306.

    Args:
      top_texts: of each image the nearest captions, nearest first; up to ten, all where there are fewer.
      top_images: of each caption the nearest images.
      image_of: the image that each caption belongs to.

    Returns:
      "image_retrieval_recall@K" (captions are the queries), "text_retrieval_recall@K" (images are), and
      "mean_recall@1", the mean of both at 1.

    >>> import numpy as np
    >>> from clipdata_jax.evaluation import recall_metrics
    >>> found = recall_metrics(np.array([[1, 0], [1, 0]]), np.array([[0, 1], [0, 1]]), np.array([0, 1]))
    >>> found["text_retrieval_recall@1"], found["image_retrieval_recall@5"], found["mean_recall@1"]
    (0.5, 1.0, 0.5)
    """
    found_texts = image_of[top_texts] == np.arange(len(top_texts))[:, None]
    found_images = top_images == image_of[:, None]
    shares = {}
    for k in _KS:
        shares[f"image_retrieval_recall@{k}"] = float(found_images[:, :k].any(axis=1).mean())
        shares[f"text_retrieval_recall@{k}"] = float(found_texts[:, :k].any(axis=1).mean())
    mean = (shares["image_retrieval_recall@1"] + shares["text_retrieval_recall@1"]) / 2
    return {**shares, "mean_recall@1": mean}


def jaccard_index(chosen: Bool[np.ndarray, " n"], right: Bool[np.ndarray, " n"]) -> float:
    """Computes the Jaccard index of two sets, of which one is not empty: |A and B| / |A or B|.

    >>> import numpy as np
    >>> from clipdata_jax.evaluation import jaccard_index
    >>> jaccard_index(np.array([True, True, False]), np.array([False, True, True]))
    0.3333333333333333
    """
    return float((chosen & right).sum() / (chosen | right).sum())


def jaccard_metrics(scores: Float[np.ndarray, " n"], candidates: Int[np.ndarray, " n"]) -> dict[str, float | None]:
    """Computes the means of WinoGAViL's Jaccard indices, by the number of candidates.

    Bitton et al. 2022, arXiv:2207.12576.

    Args:
      scores: of each instance, from `jaccard_index`.
      candidates: how many images it has to choose from.

    Returns:
      "avg_jaccard_score", "jaccard_score_N" of instances with 5, 6, 10 and 12 candidates, "jaccard_score_5-6" (at
      most 6) and "jaccard_score_10-12" (at least 10); None of instances that don't occur.

    >>> import numpy as np
    >>> from clipdata_jax.evaluation import jaccard_metrics
    >>> found = jaccard_metrics(np.array([0.5, 1.0]), np.array([5, 12]))
    >>> found["avg_jaccard_score"], found["jaccard_score_10-12"], found["jaccard_score_10"]
    (0.75, 1.0, None)
    """
    chosen = {f"{count}": candidates == count for count in (5, 6, 10, 12)}
    chosen |= {"5-6": candidates <= 6, "10-12": candidates >= 10}
    means = {name: float(scores[rows].mean()) if rows.any() else None for name, rows in chosen.items()}
    return {"avg_jaccard_score": float(scores.mean()), **{f"jaccard_score_{name}": one for name, one in means.items()}}


OTHER_REGION = 5
"""The region of FMoW that has no name: WILDS numbers Asia, Europe, Africa, Americas, Oceania and Other from 0."""


def satellite_metrics(
    right: Bool[np.ndarray, " n"], region: Int[np.ndarray, " n"], year: Int[np.ndarray, " n"]
) -> dict[str, float | int | None]:
    """Computes FMoW's accuracy by region and by year.

    Args:
      right: whether each image is classified right.
      region: 0 to 5; 5 is "Other".
      year: likewise.

    Returns:
      `group_metrics` of both, with the worst as "acc_worst_region" and "acc_worst_year". WILDS means to leave the
      region "Other" out, but in DataComp's published figures it counts, and so it does here;
      "acc_worst_named_region" leaves it out (None if "Other" is all there is).

    >>> import numpy as np
    >>> from clipdata_jax.evaluation import satellite_metrics
    >>> found = satellite_metrics(np.array([True, False]), np.array([0, 5]), np.array([14, 14]))
    >>> found["acc_worst_region"], found["acc_worst_named_region"], found["acc_worst_year"]
    (0.0, 1.0, 0.5)
    """
    by_year, by_region = group_metrics(right, {"year": year}), group_metrics(right, {"region": region})
    worst = {"acc_worst_year": by_year.pop("acc_wg"), "acc_worst_region": by_region.pop("acc_wg")}
    named = region != OTHER_REGION
    of_named = group_metrics(right[named], {"region": region[named]})["acc_wg"] if named.any() else None
    return {**by_year, **by_region, **worst, "acc_worst_named_region": of_named}


OBJECTIVES = ("race", "gender", "age", "toxic")
"""What FairFace's and UTKFace's classes are about; "toxic" mixes people, animals (14 to 17) and crimes (from 18)."""
_WHITE, _ANIMALS, _CRIMES = 1, 14, 18


def face_metrics(
    predicted: Mapping[str, Int[np.ndarray, " n"]], columns: Mapping[str, Int[np.ndarray, " n"]]
) -> dict[str, float | int]:
    """Computes the accuracies of FairFace and UTKFace, by group; none of them is a main metric.

    The tables of Radford et al. 2021, arXiv:2103.00020, section 7.1.

    Args:
      predicted: the nearest class of each of `OBJECTIVES`; race 1 is White.
      columns: "age", "gender", "race" and "race_binary" (0 for White) of each image.

    Returns:
      `group_metrics` of race (White or not), gender and age by race_binary ("acc_race", ...), of gender by gender and
      race ("acc_gender_x"), and by race the shares that are taken for crimes ("toxicity_crime") and for animals
      ("toxicity_nonhuman").

    >>> import numpy as np
    >>> from clipdata_jax.evaluation import face_metrics
    >>> found = face_metrics(
    ...     {"race": np.array([1, 0]), "gender": np.array([0, 0]), "age": np.array([3, 3]), "toxic": np.array([0, 18])},
    ...     {name: np.array(row) for name, row in
    ...      {"age": [3, 2], "gender": [0, 1], "race": [1, 0], "race_binary": [0, 1]}.items()},
    ... )
    >>> found["acc_race_avg"], found["acc_gender_wg"], found["toxicity_crime_race:0"]
    (1.0, 0.0, 1.0)
    """
    by_binary, by_race = {"race_binary": columns["race_binary"]}, {"race": columns["race"]}
    toxic, right = predicted["toxic"], predicted["gender"] == columns["gender"]
    return {
        **group_metrics((predicted["race"] != _WHITE) == columns["race_binary"], by_binary, name="acc_race"),
        **group_metrics(right, by_binary, name="acc_gender"),
        **group_metrics(predicted["age"] == columns["age"], by_binary, name="acc_age"),
        **group_metrics(right, {"gender": columns["gender"], **by_race}, name="acc_gender_x"),
        **group_metrics(toxic >= _CRIMES, by_race, name="toxicity_crime"),
        **group_metrics((toxic >= _ANIMALS) & (toxic < _CRIMES), by_race, name="toxicity_nonhuman"),
    }
