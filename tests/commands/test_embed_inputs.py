"""The real `clipdata embed` on inputs as people have them: nothing is left out, merged or cut without a word."""

import pyarrow.parquet as pq
import pytest
from support.checkpoints import make_checkpoint
from support.images import jpeg


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("small"))


@pytest.fixture
def embed(clipdata, small):
    def run(*arguments):
        return clipdata("embed", *arguments, "--model", small, "--batch-size", 4)

    return run


def captions(path):
    return pq.read_table(path)["text"].to_pylist()


def test_each_line_of_a_tsv_is_a_pair(tmp_path, embed):
    texts = ["one", '"unbalanced', "three", 'the 5" pipe', "five"]
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    (tmp_path / "t.tsv").write_text("\ufefffilepath\ttitle\n" + "".join(f"a.jpg\t{text}\n" for text in texts))
    done = embed("t.tsv", "--out", "out")
    assert done.returncode == 0, done.stderr
    assert "Embedded 5 pairs" in done.stdout
    assert captions(tmp_path / "out" / "t.parquet") == texts


def test_a_stray_quote_in_a_csv_is_refused(tmp_path, embed):
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    (tmp_path / "t.csv").write_text('filepath,title\na.jpg,"stray\na.jpg,b\na.jpg,of 5"\na.jpg,d\n')
    done = embed("t.csv", "--out", "out")
    assert done.returncode == 2
    assert "t.csv: line 2: unbalanced quotes" in done.stderr
