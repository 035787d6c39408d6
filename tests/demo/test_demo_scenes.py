"""The drawn world: captions tell the truth, images show what the facts say, seeds decide everything."""

import dataclasses
import re

import numpy as np
import pytest

from clipdata_jax.demo import words
from clipdata_jax.demo.captions import describe
from clipdata_jax.demo.facts import BACKGROUNDS, KINDS, SIDES, Facts, Thing, imagine
from clipdata_jax.demo.pen import PAINTS
from clipdata_jax.demo.scenes import draw_scene, paint

PLACES = {p: b for b, stands in words.WHERE.items() for phrases in stands.values() for p in phrases}
PLACES |= {p: b for b, phrases in words.SCENES.items() for p in phrases}
SKIES = {p: sky for sky, phrases in words.SKIES.items() for p in phrases}
NOUNS = {form: kind for kind, pairs in words.NOUNS.items() for pair in pairs for form in pair}
COLOURS = {p: colour for colour, phrases in words.COLOURS.items() for p in phrases}
SIZES = {p: size for size, phrases in words.SIZES.items() for p in phrases}
COUNTS = {p: count for count, phrases in words.COUNTS.items() for p in phrases} | {"an": 1}
RELATIONS = {p: relation for relation, phrases in words.RELATIONS.items() for p in phrases}
# Words that say nothing that could be false.
EMPTY = {"there is", "there are", "and", "with", "of", ":", ",", "."}
EMPTY |= {*words.BESIDE, *words.PRAISE, *words.MEDIA}
EMPTY |= {phrase.strip().rstrip(",").lower() for phrase in (*words.TAILS, *words.OPENINGS)}
TABLES = (PLACES, SKIES, NOUNS, COLOURS, SIZES, COUNTS, RELATIONS, dict.fromkeys(EMPTY))
LONGEST_FIRST = sorted({phrase for table in TABLES for phrase in table}, key=len, reverse=True)


def split(caption: str) -> list[str]:
    """The caption as known phrases; fails on a word that is in none."""
    rest, phrases = caption.lower(), []
    while rest := rest.lstrip():
        found = next((p for p in LONGEST_FIRST if begins(rest, p)), None)
        assert found, f"unknown words {rest!r} in {caption!r}"
        phrases.append(found)
        rest = rest[len(found) :]
    return phrases


def begins(text: str, phrase: str) -> bool:
    return text.startswith(phrase) and (phrase in ":,." or not text[len(phrase) :][:1].isalnum())


def check(caption: str, facts: Facts) -> None:
    """Fails unless everything that the caption says is in the facts."""
    things = {thing.kind: thing for thing in facts.things}
    said: dict[str, object] = {}
    named: list[Thing] = []
    relation = ""
    for phrase in split(tags_to_prose(caption)):
        assert PLACES.get(phrase, facts.background) == facts.background, caption
        assert SKIES.get(phrase, facts.sky) == facts.sky, caption
        relation = RELATIONS.get(phrase, relation)
        if phrase in NOUNS:
            thing = things[NOUNS[phrase]]
            named.append(thing)
            assert phrase in {pair[thing.count > 1] for pair in words.NOUNS[thing.kind]}, caption
            assert said.items() <= dataclasses.asdict(thing).items(), caption
            said = {}
        elif phrase in words.MEDIA:  # "an image of two cars" counts no cars with its "a"
            said = {}
        else:
            tables = (("colour", COLOURS), ("size", SIZES), ("count", COUNTS))
            said |= {name: table[phrase] for name, table in tables if phrase in table}
    assert named, caption
    assert not said, caption
    if relation:
        first = named[0] is facts.things[0]
        assert relation == (facts.relation if first else words.OPPOSITES[facts.relation])


def tags_to_prose(caption: str) -> str:
    """Puts the colour of "car, red, night scene" before its noun, as in all other captions."""
    return re.sub(rf"(?i)([\w ]+), ({'|'.join(COLOURS)}), ", r"\2 \1, ", caption)


def test_everything_a_caption_says_is_in_the_facts():
    for seed in range(1500):
        rng = np.random.default_rng(seed)
        facts = imagine(rng)
        for _ in range(3):
            check(describe(facts, rng), facts)


@pytest.mark.parametrize(
    "lie",
    ["a blue car at night", "two red cars", "a big red car", "a red cat", "a red car in winter", "a red car by rain"],
)
def test_the_check_finds_lies(lie):
    car = Thing(kind="car", colour="red", size="medium", count=1)
    facts = Facts(background="night", sky="", things=(car,), relation="")
    check("An image of one crimson automobile at night.", facts)
    with pytest.raises((AssertionError, KeyError)):
        check(lie, facts)


def test_phrases_say_one_thing_only():
    for table in TABLES:
        others = {phrase for other in TABLES if other is not table for phrase in other}
        assert not others & table.keys()
    naming = {word for phrase in (*NOUNS, *COLOURS) for word in phrase.split()} - {"home"}
    assert not naming & {word for phrase in (*PLACES, *SKIES) for word in phrase.split()}
    assert len(PLACES) == sum(len(p) for s in words.WHERE.values() for p in s.values()) + 3 * len(BACKGROUNDS)


def test_captions_vary():
    captions = [draw_scene(seed, size=8).caption for seed in range(400)]
    assert len(set(captions)) > 380
    assert len({word for caption in captions for word in caption.lower().split()}) > 200


def test_seeds_keep_their_meaning():
    assert draw_scene(0).caption == "A tiny five-pointed star in the nursery."


def test_equal_seeds_give_equal_scenes():
    one, two, other = draw_scene(3), draw_scene(np.random.default_rng(3)), draw_scene(4)
    assert one.image.tobytes() == two.image.tobytes()
    assert (one.caption, one.facts) == (two.caption, two.facts)
    assert one.image.tobytes() != other.image.tobytes()


def near(image: np.ndarray, colour: str) -> np.ndarray:
    """Which pixels have about this colour."""
    return np.abs(image.astype(int) - PAINTS[colour]).max(axis=-1) < 45


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_shows_its_colour(kind):
    for colour in ("red", "green", "purple"):
        thing = Thing(kind=kind, colour=colour, size="big", count=1)
        facts = Facts(background="snow", sky="", things=(thing,), relation="")
        image = np.asarray(paint(facts, np.random.default_rng(0)))
        assert image.shape == (64, 64, 3)
        assert near(image, colour).mean() > 0.02


@pytest.mark.parametrize("relation", words.OPPOSITES)
def test_things_lie_as_the_relation_says(relation):
    for seed in range(20):
        kinds = ("balloon", "ball") if relation == "above" else ("ball", "balloon")
        looks = zip(kinds, ("red", "purple"), strict=True)
        things = tuple(Thing(kind=kind, colour=colour, size="small", count=1) for kind, colour in looks)
        facts = Facts(background="snow", sky="", things=things, relation=relation)
        image = np.asarray(paint(facts, np.random.default_rng(seed)))
        (y, x), (other_y, other_x) = (np.argwhere(near(image, c)).mean(axis=0) for c in ("red", "purple"))
        distance = {"left": other_x - x, "right": x - other_x, "above": other_y - y, "below": y - other_y}
        assert distance[relation] > 5


def test_counts_are_seen():
    shares = []
    for count in (1, 2, 3):
        thing = Thing(kind="ball", colour="red", size="small", count=count)
        facts = Facts(background="snow", sky="", things=(thing,), relation="")
        shares.append(near(np.asarray(paint(facts, np.random.default_rng(1))), "red").mean())
    assert shares[1] / shares[0] == pytest.approx(2, rel=0.15)
    assert shares[2] / shares[0] == pytest.approx(3, rel=0.15)


def test_every_kind_background_and_colour_occurs():
    scenes = [imagine(np.random.default_rng(seed)) for seed in range(1500)]
    things = [thing for facts in scenes for thing in facts.things]
    assert {thing.kind for thing in things} == set(KINDS)
    assert {thing.colour for thing in things} == set(words.COLOURS) == set(PAINTS)
    assert {thing.size for thing in things} == set(SIDES)
    assert {thing.count for thing in things} == {1, 2, 3}
    assert {facts.background for facts in scenes} == set(BACKGROUNDS)
    assert {facts.sky for facts in scenes} == set(words.SKIES)
    assert {facts.relation for facts in scenes} == {"", *words.RELATIONS}


def test_a_scene_for_classification_shows_one_object():
    facts = imagine(np.random.default_rng(0), kind="cup", alone=True)
    (thing,) = facts.things
    assert (thing.kind, thing.count) == ("cup", 1)
    assert thing.size in ("medium", "big")


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="'dog'"):
        draw_scene(0, kind="dog")
    with pytest.raises(ValueError, match="size is 4"):
        draw_scene(0, size=4)
