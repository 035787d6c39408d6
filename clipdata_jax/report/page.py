"""Rendering the page: one self-contained HTML file without scripts, untrusted text shown as text."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from clipdata_jax.report import caption_statistics, column_labels, comparison, histogram, lines, text, throughput, trace
from clipdata_jax.report.caption_statistics import Captions
from clipdata_jax.report.comparison import Comparison
from clipdata_jax.report.contents import Contents
from clipdata_jax.report.duplicates import Duplicates
from clipdata_jax.report.thumbnails import Thumbnail
from clipdata_jax.report.trace import TraceStep

_SHORT = 80  # characters that fit into the lines of a caption that isn't opened
_KEY = 200


@dataclasses.dataclass(frozen=True)
class Nearest:
    """A target's name and its image nearest to a pair's, or the reason why it is missing."""

    target: str
    image: Thumbnail | str


@dataclasses.dataclass(frozen=True)
class Pair:
    """A pair found in the pool, as a card shows it.

    Attributes:
      caption: as found; it is shortened and made visible by the page.
      image: the thumbnail, or the reason why it is missing.
      nearest: the nearest image of each target.
      key: its key in the pool.
      source: the file or data set that holds it.
    """

    caption: str
    image: Thumbnail | str
    nearest: Sequence[Nearest] = ()
    key: str = ""
    source: str = ""


@dataclasses.dataclass(frozen=True)
class RuleStep:
    """One part of the selection's rule: its text, how many pairs it looked at, how many of them it kept."""

    rule: str
    seen: int
    kept: int


@dataclasses.dataclass(frozen=True)
class About:
    """The selection, and where the page's data come from.

    Attributes:
      title: the page's heading.
      rule: text of the selection's rule; "" if unknown.
      steps: what each part of the rule kept, in order; empty if unknown.
      replaced_share: share of the kept pairs that another draw of the batches would replace; None if unknown.
      trace: the steps of NormSim_2-D, if that made the selection.
      runs: throughput of the runs that made the scores, where they left a record of it.
      warnings: sentences that a reader must see.
      provenance: (heading, (name, value) pairs) of each input.
    """

    title: str
    rule: str = ""
    steps: Sequence[RuleStep] = ()
    replaced_share: float | None = None
    trace: Sequence[TraceStep] = ()
    runs: Sequence[throughput.RunThroughput] = ()
    warnings: Sequence[str] = ()
    provenance: Sequence[tuple[str, Sequence[tuple[str, str]]]] = ()


def render(
    contents: Contents,
    about: About,
    pairs: Mapping[int, Pair] | None = None,
    *,
    compared: Comparison | None = None,
    captions: Captions | None = None,
    uids: Mapping[int, str] | None = None,
    duplicates: Duplicates | None = None,
) -> str:
    """Renders the page.

    Its size is bounded by the number of cards: at most 40 kB each, 15 kB on average, and 3 kB for each target's image,
    plus about 60 kB and 10 kB for every score column.

    Args:
      contents: as returned by `contents.plan`.
      about: title, rule, provenance.
      pairs: shown row -> its pair; missing rows get a placeholder. None: the page has
        figures only, and says so.
      compared: as returned by `comparison.plan`; `contents` has the rows it shows.
      captions: as returned by `caption_statistics.describe`, if captions were read.
      uids: shown row -> its uid, 32 hex digits.
      duplicates: as returned by `duplicates.plan`; `contents` has the rows it shows.

    Returns:
      HTML, the same for the same arguments.
    """
    cards = (
        {}
        if pairs is None
        else {row: _card(contents, row, pairs.get(row), (uids or {}).get(row, "")) for row in contents.scores}
    )
    return environment().get_template("page.html.j2").render(
        contents=contents,
        about=about,
        cards=cards,
        with_images=pairs is not None,
        found=0 if pairs is None else len(pairs),
        comparison=compared,
        captions=captions,
        duplicates=duplicates,
        trace=trace.charts(about.trace) if about.trace else [],
        chart={"width": histogram.WIDTH, "height": histogram.HEIGHT},
        box={"width": lines.WIDTH, "height": lines.HEIGHT},
    )  # fmt: skip


def _card(contents: Contents, row: int, pair: Pair | None, uid: str) -> dict[str, Any]:
    own = contents.scores[row]
    labels = column_labels.short_labels(own)
    scores = [
        {
            "name": name,
            "label": labels[name],
            "value": text.value(value, contents.figures_of(name).places),
            "top": text.top(share),
        }
        for name, (value, share) in own.items()
    ]
    image = "not in the pool" if pair is None else pair.image
    caption = "" if pair is None else text.shorten(pair.caption)
    found = [] if pair is None else [("key", text.shorten(pair.key, _KEY)), ("in", text.shorten(pair.source, _KEY))]
    return {
        "kept": contents.is_kept[row],
        "image": image if isinstance(image, Thumbnail) else None,
        "problem": image,
        "caption": caption,
        "is_long": len(caption) > _SHORT,
        "ids": [("uid", uid), *found],
        "no_caption": "caption unknown" if pair is None else "no caption",
        "scores": scores,
        "nearest": []
        if pair is None
        else [
            {
                "target": one.target,
                "image": one.image if isinstance(one.image, Thumbnail) else None,
                "problem": one.image,
            }
            for one in pair.nearest
        ],
    }


@functools.cache
def environment() -> jinja2.Environment:
    """Returns the environment of the templates: all output is escaped, invisible characters made visible."""
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: resources.files(__package__).joinpath(name).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    made.filters.update(
        count=text.count,
        pairs=text.pairs,
        compact=text.compact,
        duration=text.duration,
        percent=text.percent,
        top=text.top,
        value=text.value,
    )
    made.globals.update(
        label=column_labels.label,
        nan=float("nan"),
        own=comparison.OWN,
        pool=comparison.POOL,
        most_captions=caption_statistics.MOST,
        few_words=caption_statistics.FEW_WORDS,
    )
    return made


def _finalize(value: Any) -> Any:
    """Every text that the template prints, column names and manifests included, is in visible form."""
    return text.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
