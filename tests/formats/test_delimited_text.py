""".csv and .tsv files: quotes, line ends, byte order marks, and what is refused."""

import csv
import io

import pytest

from clipdata_jax.errors import InputError
from clipdata_jax.formats.sources.delimited_text import read_delimited

STRAY = ["one", '"unbalanced', "c", 'the 5" pipe', '"quoted"']


def read(tmp_path, text, name="t.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return [list(row.values()) for row in read_delimited(str(path)).to_pylist()]


def test_quotes_between_tabs_are_text(tmp_path):
    rows = [[f"{i}.jpg", text] for i, text in enumerate(STRAY)]
    assert read(tmp_path, "".join("\t".join(row) + "\n" for row in [["p", "c"], *rows]), "t.tsv") == rows


@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_a_program_wrote_reads_back(tmp_path, delimiter, quoting, end):
    texts = [*STRAY, "a, b", "two\nlines", "a\tb", 'x""y', "", "A dog.\nBrown, big", "last\n\n"]
    rows = [[f"{i}.jpg", text] for i, text in enumerate(texts)]
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows([["p", "c"], *rows])
    assert read(tmp_path, buffer.getvalue()) == rows


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('p,c\n1.jpg,one\n2.jpg,"stray\n3.jpg,c\n4.jpg,the 5" pipe\n', 3),
        ('p,c\n1.jpg,one\n\n2.jpg,"stray\n3.jpg,c\n4.jpg,of 5"\n5.jpg,d\n', 4),
        ('c,p\n"stray,1.jpg\nb,2.jpg\nof 5",3.jpg\n', 2),
        ('p,c\n1,"said" he\n', 2),
        ('p,c\r1,a\r2,"never closed\r', 3),
    ],
)
def test_unbalanced_quotes_between_commas_are_refused_by_line(tmp_path, text, line):
    with pytest.raises(InputError, match=rf"t\.csv: line {line}: unbalanced quotes; .* or write a \.tsv"):
        read(tmp_path, text)


@pytest.mark.parametrize(("encoding", "delimiter"), [("utf-8-sig", ","), ("utf-16", "\t"), ("utf-8", ",")])
def test_byte_order_marks_are_no_part_of_the_header(tmp_path, encoding, delimiter):
    path = tmp_path / "t"
    path.write_bytes(f'"p"{delimiter}c\n1{delimiter}café\n'.encode(encoding))
    assert read_delimited(str(path)).to_pylist() == [{"p": "1", "c": "café"}]


def test_lines_end_at_line_ends_only(tmp_path):
    rows = [["1", "a\u2028b\x85c\x0b"], ["2", "d"]]
    assert read(tmp_path, "p\tc\r\n\r\n" + "\r\n\r\n".join("\t".join(row) for row in rows)) == rows


def test_a_row_of_other_length_is_named(tmp_path):
    with pytest.raises(InputError, match=r"Row #3: Expected 2 columns, got 1"):
        read(tmp_path, "p\tc\n1\tone\n2\n3\td\n")
