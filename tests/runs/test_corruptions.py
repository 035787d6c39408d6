"""Damaged and hostile files of every kind, some of each: an error of one sentence, a listed skip, or no harm."""

from __future__ import annotations

import contextlib

import pytest
from support.corruptions import cases
from support.judging import Judge

# Those that compile a model take seconds; benchmarks/corruptions.py runs them all.
SOME = {
    "score: pool/00000001.npz: flip-1",
    "score: pool/00000001.npz: member-rows-1e12",
    "score: pool/00000001.npz: member-header-4gb",
    "score: pool/00000001.npz: member-pickled-array",
    "score: pool/00000001.npz: bomb",
    "score: pool/00000001.npz: twice",
    "score: pool/00000001.npz: zip64-lies",
    "score: pool/00000001.npz: fortran",
    "score: pool/00000001.parquet: flip-0",
    "score: pool/00000001.parquet: rows-huge",
    "score: pool/00000001.parquet: column-twice",
    "folders: folders/img_emb/img_emb_1.npy: zeros",
    "folders: folders/img_emb/img_emb_1.npy: rows-one-more",
    "filter: pool/00000001.parquet: footer-4gb",
    "filter: pool/00000001.parquet: column-nested",
    "select: scores/00000001.parquet: half",
    "select: scores/00000001.parquet: column-bool",
    "npy columns: extra.npy: dtype-object",
    "uids: subset.npy: without-last",
    "reshard: tars/1.tar: zeros",
    "reshard: tars/1.tar: size-negative",
    "reshard: tars/1.tar: link-ring",
    "reshard: tars/1.tar: pax-size-negative",
    "reshard: tars/1.tar: up",
    "reshard: tars/1.tar: escape-codes",
    "report: tars/1.tar: json-nested",
    "reshard: subset.npy: rows-2e64",
}


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    return Judge(tmp_path_factory.mktemp("corruptions"))


@pytest.fixture(scope="module")
def found(judge):
    return {case.name: case for case in cases(judge.good) if case.name in SOME}


@pytest.mark.parametrize("name", sorted(SOME))
def test_damaged_input_is_told_of_or_skipped(judge, found, name):
    outcome, said = judge.judge(found[name], contextlib.nullcontext)
    assert outcome in ("error", "skipped", "harmless"), said


def test_the_judge_sees_what_is_wrong(judge, found, monkeypatch):
    case = found["score: pool/00000001.npz: fortran"]
    monkeypatch.setitem(judge._references, "score", {})
    assert judge.judge(case, contextlib.nullcontext)[0].startswith("wrong result")
