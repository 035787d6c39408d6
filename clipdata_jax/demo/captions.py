"""Captions that describe a scene's facts the way alt-texts do: true, varied, seldom complete."""

import numpy as np

from clipdata_jax.demo import words
from clipdata_jax.demo.facts import AERIAL, Facts, Thing, pick


def describe(facts: Facts, rng: np.random.Generator) -> str:
    """Writes a caption of the facts.

    Args:
      facts: what the scene holds.
      rng: chooses the template, the synonyms and what is left out.

    Returns:
      One line of text; every object, colour, number, size, place and relation in it is in the facts.
    """
    roll = rng.random()
    if roll < 0.05:
        text = _tags(facts, rng)
    elif roll < 0.22:
        link = pick(rng, (": ", " with ", ", "))
        text = f"{pick(rng, words.SCENES[facts.background])}{link}{_subject(facts, rng)}"
    elif roll < 0.42:
        text = f"{_article(pick(rng, words.MEDIA))} of {_subject(facts, rng)}{_setting(facts, rng)}"
    elif roll < 0.48:
        text = f"{pick(rng, words.OPENINGS)}{_subject(facts, rng)}{_setting(facts, rng)}"
    elif roll < 0.54:
        subject = _subject(facts, rng)
        verb = "are" if subject.startswith(("two ", "three ")) else "is"
        text = f"there {verb} {subject}{_setting(facts, rng)}"
    elif roll < 0.60:
        text = f"{_subject(facts, rng)}{_setting(facts, rng)}{pick(rng, words.TAILS)}"
    else:
        text = f"{_subject(facts, rng)}{_setting(facts, rng)}"
    return _finish(text, rng)


def _subject(facts: Facts, rng: np.random.Generator) -> str:
    """The things and how they lie, the main one now and then alone or second."""
    first = _noun_phrase(facts.things[0], rng)
    if len(facts.things) == 1 or rng.random() < 0.1:
        return first
    second, relation = _noun_phrase(facts.things[1], rng), facts.relation
    if rng.random() < 0.4:
        first, second, relation = second, first, words.OPPOSITES[relation]
    roll = rng.random()
    if roll < 0.25:
        return f"{first} and {second}"
    if roll < 0.45 and relation in ("left", "right"):
        return f"{first} {pick(rng, words.BESIDE)} {second}"
    return f"{first} {pick(rng, words.RELATIONS[relation])} {second}"


def _noun_phrase(thing: Thing, rng: np.random.Generator) -> str:
    forms = words.NOUNS[thing.kind]
    noun = (forms[0] if rng.random() < 0.65 else pick(rng, forms))[thing.count > 1]
    parts = []
    if rng.random() < 0.08:
        parts.append(pick(rng, words.PRAISE))
    if words.SIZES[thing.size] and rng.random() < 0.6:
        parts.append(pick(rng, words.SIZES[thing.size]))
    if rng.random() < 0.85:
        parts.append(_colour(thing.colour, rng))
    text = " ".join([*parts, noun])
    count = pick(rng, words.COUNTS[thing.count])
    return _article(text) if count == "a" else f"{count} {text}"


def _colour(colour: str, rng: np.random.Generator) -> str:
    shades = words.COLOURS[colour]
    return shades[0] if rng.random() < 0.75 else pick(rng, shades)


def _setting(facts: Facts, rng: np.random.Generator) -> str:
    """Background and sky, each left out at times."""
    where = ""
    if rng.random() < 0.8:
        places = words.WHERE[facts.background]
        stands = {_stand(thing.kind, facts.background) for thing in facts.things}
        loose = len(stands) == 2 or rng.random() < 0.4
        where = " " + pick(rng, places["any" if loose else stands.pop()])
    if facts.sky and rng.random() < 0.35:
        where += " " + pick(rng, words.SKIES[facts.sky])
    return where


def _stand(kind: str, background: str) -> str:
    return "air" if kind in AERIAL or (kind, background) == ("fish", "underwater") else "ground"


def _tags(facts: Facts, rng: np.random.Generator) -> str:
    tags = [word for t in facts.things for word in (words.NOUNS[t.kind][0][t.count > 1], _colour(t.colour, rng))]
    return ", ".join([*tags, pick(rng, words.SCENES[facts.background])])


def _article(text: str) -> str:
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def _finish(text: str, rng: np.random.Generator) -> str:
    """A capital and a full stop, a capital alone, or neither."""
    roll = rng.random()
    if roll < 0.25:
        return f"{text[0].upper()}{text[1:]}."
    return text[0].upper() + text[1:] if roll < 0.5 else text
