"""text_based: a made WordNet in the real one's file format, its lookups stated once more, and the command."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import metadata_pools as made

from clipdata_jax.errors import InputError
from clipdata_jax.filters import wordnet as synsets
from clipdata_jax.formats import uids

LICENCE = "  1 This software and database is being provided to you, the LICENSEE, by  \n"
# part of speech -> word -> offsets of its senses, the first one first
SENSES = {
    "noun": {
        "house": [3544360, 8078020],
        "goose": [1855672],
        "dog": [2084071, 10114209],
        "man": [10287213],
        "woman": [10787470],
        "fireman": [10091651],
        "river": [9411430],
        "axe": [2764044],
        "bus": [2924116],
        "a": [13637376],
        "glass": [3438257],
        "hot_dog": [7697537],
    },
    "verb": {"house": [2459173], "run": [1926311], "try": [2530167], "hope": [1826723]},
    "adj": {"old": [1638438], "large": [1382086], "nice": [1586342]},
    "adv": {"well": [11093], "fast": [86000]},
}
EXCEPTIONS = {
    "noun": {"geese": ["goose"], "axes": ["axis", "axe"]},
    "verb": {"ran": ["run"]},
    "adj": {"older": ["old"]},
    "adv": {"best": ["well"]},
}
# WordNet's documentation of morphy
ENDINGS = {
    "noun": "s: ses:s xes:x zes:z ches:ch shes:sh men:man ies:y ves:f",
    "verb": "s: ies:y es:e es: ed:e ed: ing:e ing:",
    "adj": "er: est: er:e est:e",
    "adv": "",
}


def write_wordnet(folder: Path) -> None:
    folder.mkdir(parents=True)
    for part, words in SENSES.items():
        lines = [LICENCE]
        for word, senses in sorted(words.items()):
            signs = ["@", "~"][: len(senses)]
            numbers = " ".join(f"{offset:08d}" for offset in senses)
            lines.append(f"{word} {part[0]} {len(senses)} {len(signs)} {' '.join(signs)} {len(senses)} 1 {numbers}  \n")
        (folder / f"index.{part}").write_text("".join(lines))
        exceptions = "".join(f"{word} {' '.join(bases)}\n" for word, bases in EXCEPTIONS[part].items())
        (folder / f"{part}.exc").write_text(exceptions)


def first_sense(word: str) -> int | None:
    """The first sense of the word itself or a base form, nouns first; of a base form's base form, and so on."""
    word = word.lower()
    for part, words in SENSES.items():
        rules = [rule.split(":") for rule in ENDINGS[part].split()]
        if word in EXCEPTIONS[part]:
            forms = [word, *EXCEPTIONS[part][word]]
        else:
            forms = [word]
            for form in forms:  # grows
                forms += [form[: len(form) - len(old)] + new for old, new in rules if form.endswith(old)]
        for form in forms:
            if form in words:
                return words[form][0]
    return None


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory) -> synsets.WordNet:
    folder = tmp_path_factory.mktemp("data") / "wordnet"
    write_wordnet(folder)
    return synsets.WordNet(str(folder))


@given(data=st.data())
def test_first_senses(wordnet, data):
    stem = data.draw(st.sampled_from([word for words in SENSES.values() for word in words] + ["hop", "tr", "firem"]))
    ending = data.draw(
        st.sampled_from(["", "s", "es", "ies", "ed", "ing", "er", "est", "men", "mens", "ings", "en", ",", "!"])
    )
    word = data.draw(st.sampled_from([str, str.upper, str.title]))(stem + ending)
    assert wordnet.first_sense(word) == first_sense(word)


def test_words_that_matter(wordnet):
    wanted = {
        "geese": 1855672,
        "Axes": 2764044,  # "axis" is not in this database
        "firemen": 10091651,
        "houses": 3544360,  # the noun comes before the verb
        "tries": 2530167,
        "ran": 1926311,
        "largest": 1382086,
        "best": 11093,
        "Womens": 10787470,  # by way of "women"
        "nicerest": 1586342,
        "axess": 2764044,
        "dog,": None,  # signs cling to words
        "gooses": 1855672,
        "glasses": 3438257,
        "": None,
    }
    assert {word: wordnet.first_sense(word) for word in wanted} == wanted
    assert wordnet.first_sense("s" * 100_000) is None
    assert wordnet.nouns == {offset for senses in SENSES["noun"].values() for offset in senses}


def test_the_database_that_nltk_downloaded_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("NLTK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(synsets, "_roots", lambda: [])
    with pytest.raises(InputError, match=r"WordNet was not found.*nltk.downloader wordnet.*--wordnet"):
        synsets.WordNet()
    write_wordnet(tmp_path / "wordnet")
    (tmp_path / "nltk_data" / "corpora").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "nltk_data" / "corpora" / "wordnet.zip", "w") as archive:
        for file in (tmp_path / "wordnet").iterdir():
            archive.write(file, f"wordnet/{file.name}")
    assert synsets.WordNet().first_sense("geese") == 1855672
    write_wordnet(tmp_path / "data" / "corpora" / "wordnet")
    assert synsets.WordNet().path == str(tmp_path / "data" / "corpora" / "wordnet")


def test_the_command_keeps_english_captions_that_name_a_synset(tmp_path, clipdata):
    pairs = made.rows()
    captions = [row["text"] for row in pairs]
    made.write(tmp_path / "metadata", pairs)
    write_wordnet(tmp_path / "wn")
    # 1638438 is an adjective's: offsets alone are compared.
    (tmp_path / "ids.txt").write_text("n03544360 house\n\nn01638438\nn09411430\nn02084071\n")
    arguments = ("filter", "metadata", "--preset", "text_based", "--synsets", "ids.txt", "--wordnet", "wn")
    done = clipdata(*arguments, "--out", "s.npy")
    assert done.returncode == 0, done.stderr
    assert "synsets in ids.txt that are not nouns of wn: 1 of 4" in done.stdout
    offsets = {3544360, 1638438, 9411430, 2084071}

    def keep(row):
        text = row["text"]
        return text is not None and made.is_english(text) and any(first_sense(w) in offsets for w in text.split())

    kept = uids.to_hex(np.load(tmp_path / "s.npy"))
    assert kept == made.subset(pairs, keep)
    assert 0 < len(kept) < len(captions)
    content = json.loads((tmp_path / "s.npy.manifest.json").read_text())
    assert [Path(entry["name"]).name for entry in content["inputs"]] == ["lid.176.ftz", "ids.txt", "wn"]


@pytest.mark.parametrize(
    ("ids", "wordnet", "words"),
    [
        ("dog\n", "wn", "ids.txt: line 1 is 'dog', expected a WordNet id"),
        ("\n", "wn", "ids.txt: holds no ids"),
        ("n12345678\n", "wn", "different versions of WordNet"),
        ("n02084071\n", "nowhere", "nowhere: holds no index.noun"),
        ("n02084071\n", "odd", "index.noun, line 1: 'house' is not an entry"),
        (None, "wn", "ids.txt: no such file"),
    ],
)
def test_bad_files_are_named(tmp_path, clipdata, ids, wordnet, words):
    made.write(tmp_path / "metadata", made.rows()[:3])
    write_wordnet(tmp_path / "wn")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "index.noun").write_text("house\n")
    if ids is not None:
        (tmp_path / "ids.txt").write_text(ids)
    arguments = ("filter", "metadata", "--preset", "text_based", "--synsets", "ids.txt", "--wordnet", wordnet)
    done = clipdata(*arguments, "--out", "s.npy")
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
