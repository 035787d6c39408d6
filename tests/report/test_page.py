"""The page as a browser would take it: what it shows, and that nothing in it acts."""

import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from clipdata_jax.report import contents, page, thumbnails

HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>'",
    "</p></article><style>*{display:none}</style>",
    "{{ 7 * 7 }} {% raw %}",
    "abc\u202egnp.exe",
    "esc\x1b]0;title\x07",
    "&lt;b&gt; javascript:alert(1) ]]> <!--",
    "https://example.com/image.jpg",
]


class Reader(HTMLParser):
    """Collects tags with their attributes, and the text outside style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.text += " " if tag in ("td", "th", "dt", "dd", "tr", "div", "p", "span", "section", "h3") else ""
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "link", "br", "input", "line", "path", "rect", "image"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def image(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    Image.fromarray(pixels).resize((200, 150)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def plan() -> contents.Contents:
    random = np.random.default_rng(0)
    scores = {
        name: random.normal(size=800).astype(np.float32)
        for name in ("clip_score", "neg_clip_loss", "norm_sim_inf_in1k", "neg_clip_loss_se")
    }
    scores["clip_score"][:2] = np.nan
    return contents.plan(scores, scores["neg_clip_loss"] > 0.5, images=3)


@pytest.fixture(scope="module")
def pairs(plan) -> dict[int, page.Pair]:
    rows = sorted(plan.scores)
    found = {row: page.Pair(f"caption of {row}", thumbnails.make(image(row))) for row in rows[:-1]}
    found |= {row: page.Pair(text, "image unreadable") for row, text in zip(rows, HOSTILE)}
    return found


def test_the_page_says_what_was_kept(plan, pairs):
    about = page.About(
        "A title",
        rule="top(neg_clip_loss, 0.3)",
        steps=[page.RuleStep("top(neg_clip_loss, 0.3)", 800, 240)],
        replaced_share=0.0123,
    )
    html = page.render(plan, about, pairs)
    reader = Reader(html)
    assert not reader.open
    words = " ".join(reader.text.split())
    share = f"{plan.kept / 800:.1%}".replace("%", " %")
    assert f"keeps {plan.kept} of 800 image-text pairs, {share}" in words
    assert "Without a score 2" in words
    assert "top(neg_clip_loss, 0.3) 800 240" in words
    assert "would replace about 1.2 % of the kept pairs" in words
    assert f"Images {len(pairs)} of {len(plan.scores)} pairs shown" in words
    assert "not in the pool" in words
    assert words.count("image unreadable") >= len(HOSTILE)
    assert "image too large" not in words
    cards = [attrs for tag, attrs in reader.tags if tag == "article"]
    shown = [row for found in plan.bands.values() for band in found for row in band.drawn.rows]
    shown += [row for drawn in plan.quadrant_pairs for row in drawn.rows]
    assert plan.disagreement is not None
    shown += [*plan.disagreement.first_higher, *plan.disagreement.second_higher]
    assert len(cards) == len(shown) == 3 * 7 * 3 + 4 * 3 + 2 * 3
    assert sum(card["class"] == "card in" for card in cards) == sum(plan.is_kept[row] for row in shown)
    for title in ("NormSim∞ in1k × negCLIPLoss", "Where CLIPScore and negCLIPLoss differ most", "Provenance"):
        assert title in words


def test_figures_on_the_page_are_the_plans(plan, pairs):
    words = " ".join(Reader(page.render(plan, page.About("t"), pairs)).text.split())
    assert plan.quadrants is not None
    for count, kept in zip(plan.quadrants.pairs, plan.quadrants.kept):
        share = f"{kept / count:.1%}".replace("%", " %")
        assert f"{share} of the {count} pairs here are kept" in words
    clip = plan.figures_of("clip_score")
    number = f"{clip.kept.mean:.{clip.places}f} {clip.kept.median:.{clip.places}f}".replace("-", "\u2212")
    assert f"kept {number}" in words
    assert "2 without this score" in words


def test_nothing_on_the_page_acts_or_leaves_it(plan, pairs):
    about = page.About(
        HOSTILE[0], rule=HOSTILE[1], steps=[page.RuleStep(HOSTILE[2], 1, 1)], warnings=[HOSTILE[0]],
        provenance=[(HOSTILE[1], [(HOSTILE[0], HOSTILE[4])])],
    )  # fmt: skip
    html = page.render(plan, about, pairs)
    reader = Reader(html)
    assert not reader.open
    policy = next(i for i, (tag, attrs) in enumerate(reader.tags) if "http-equiv" in attrs)
    content = reader.tags[policy][1]["content"]
    assert content.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline';")
    before = [tag for tag, _ in reader.tags[:policy]]
    assert before == ["html", "head", "meta"]
    tags = {tag for tag, _ in reader.tags}
    assert not tags & {"script", "iframe", "object", "embed", "link", "form", "base", "foreignobject", "animate"}
    for tag, attrs in reader.tags:
        assert not [name for name in attrs if name.startswith("on")], tag
        for name in ("src", "href", "xlink:href", "action", "srcset", "poster", "data"):
            if name in attrs:
                assert re.match(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+$|#[a-z]+$", attrs[name])
        if "style" in attrs:
            assert re.fullmatch(r"(flex-grow|width):[\d.]+%?", attrs["style"])
    ids = {attrs["id"] for _, attrs in reader.tags if "id" in attrs}
    assert ids >= {attrs["href"][1:] for tag, attrs in reader.tags if tag == "a"}
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "</" not in style


def test_cards_name_their_pairs_and_open(plan, pairs):
    long, short = "many words " * 60, "few words"
    row, other, gone = sorted(plan.scores)[-4:-1]
    found = {
        row: page.Pair(long, thumbnails.make(image(0)), key="a/0", source="t.tar"),
        other: page.Pair(short, "no image"),
    }
    uids = {row: "0a" * 16, gone: "0b" * 16}
    html = page.render(plan, page.About("t"), found, uids=uids)
    assert not Reader(html).open
    cards = re.findall(r"<article.*?</article>", html, re.S)
    mine = next(card for card in cards if "0a0a" in card)
    assert re.findall(r'<dd title="([^"]+)">([^<]+)</dd>', mine) == [(one, one) for one in ("0a" * 16, "a/0", "t.tar")]
    # Images enlarge and long captions open without a script.
    assert re.search(r'<details class="zoom"><summary [^>]*><img src="data:image/jpeg', mine)
    assert re.search(r'<details class="long"><summary class="cap"[^>]*>' + long.strip() + "<", mine)
    assert not [card for card in cards if short in card and "<details" in card]
    assert any("0b0b" in card and "not in the pool" in card for card in cards)


def test_hostile_captions_are_shown_as_text(plan, pairs):
    html = page.render(plan, page.About("t"), pairs)
    words = Reader(html).text
    for caption in HOSTILE[:4] + HOSTILE[6:]:
        assert caption in words
    assert "abc[U+202E]gnp.exe" in words
    assert "esc[U+001B]]0;title[U+0007]" in words
    odd = [char for char in set(html) if ord(char) < 32 or 0x2028 <= ord(char) <= 0x202E]
    assert odd == ["\n"]


def test_column_names_are_strangers_too():
    name = "<script>x\u202e"
    scores = {name: np.arange(40, dtype=np.float32)}
    html = page.render(contents.plan(scores, np.arange(40) > 30, images=2), page.About("t"), {})
    assert "<script" not in html
    assert "\u202e" not in html
    assert "x[U+202E]" in html


def test_the_same_input_gives_the_same_bytes(plan, pairs):
    assert page.render(plan, page.About("t"), pairs) == page.render(plan, page.About("t"), pairs)


def test_without_images_the_page_has_figures_only(plan):
    html = page.render(plan, page.About("t"))
    reader = Reader(html)
    assert "figures only" in reader.text
    assert "found in the tars" not in reader.text
    assert not [tag for tag, _ in reader.tags if tag in ("img", "article")]
    assert len([tag for tag, _ in reader.tags if tag == "figure"]) == 5
    assert len(html) < 250_000


def test_the_size_is_bounded_by_the_cards(plan):
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    worst = page.Pair("\u202e" * 10_000, thumbnails.make(buffer.getvalue()))
    html = page.render(plan, page.About("t"), dict.fromkeys(plan.scores, worst))
    assert len(html.encode()) < 250_000 + 40_000 * (3 * 7 * 3 + 4 * 3 + 2 * 3)


@pytest.mark.parametrize("rows", [0, 1, 2])
@pytest.mark.parametrize("keep", [False, True])
def test_tiny_pools_have_a_page(rows, keep):
    scores = {name: np.full(rows, np.nan, np.float32) for name in ("clip_score", "norm_sim_2_x")}
    scores["neg_clip_loss"] = np.full(rows, -0.5, np.float32)
    plan = contents.plan(scores, np.full(rows, keep), images=3)
    html = page.render(plan, page.About("t"), {})
    assert not re.search(r"\bnan\b", html)
