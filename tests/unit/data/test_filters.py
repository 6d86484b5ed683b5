"""Filters compare as typed: integers as integers, however large, and text as text."""

from __future__ import annotations

import operator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raypq.data.codes import CodeBatch
from raypq.data.filters import Filter
from raypq.data.id_list import IdList
from raypq.errors import ConfigError, InputError

LEAST, MOST = -(2**63), 2**63 - 1
IDS = [LEAST, LEAST + 1, -5, 0, 1, 2, 3, 7, 2**53, 2**53 + 1, 10**18, MOST - 1, MOST]
NUMBERS = [
    "0", "-0", "-5", "2", "2.0", "2.5", "-2.5", "007", str(2**53 + 1), f"{2**53}.5",
    str(LEAST), f"{LEAST}.5", str(LEAST - 1), f"{LEAST - 1}.5", str(MOST), f"{MOST - 1}.5",
    f"{MOST}.0", f"{MOST}.5", str(MOST + 1), "99999999999999999999", "-" + "9" * 5000, "9" * 5000,
]  # fmt: skip
SIGNS = {
    "=": operator.eq, "!=": operator.ne, "<>": operator.ne,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
LABELS = [None if row % 4 == 0 else f"c{row % 3}" for row in range(len(IDS))]


def matching(text: str, ids: Any, kind: pa.DataType, labels: list[str | None] | None) -> list[Any]:
    """The ids that a filter keeps."""
    batch = CodeBatch(
        B=np.zeros((len(ids), 1), np.uint8),
        ids=pa.array(ids, kind),
        labels=None if labels is None else pa.array(labels, pa.string()),
    )
    row_filter = Filter.of(text, None, kind)
    assert row_filter is not None
    return batch.ids.filter(pa.array(row_filter.compile(kind, "x")(batch))).to_pylist()


def value(number: str) -> Fraction:
    whole, _, part = number.partition(".")
    digits = 0
    for start in range(0, len(whole.lstrip("-")), 1000):  # int() takes 4,300 digits at most
        piece = whole.lstrip("-")[start : start + 1000]
        digits = digits * 10 ** len(piece) + int(piece)
    found = Fraction(digits) + (Fraction(int(part), 10 ** len(part)) if part else 0)
    return -found if whole.startswith("-") else found


@pytest.mark.parametrize("number", NUMBERS, ids=lambda text: text[:30])
@pytest.mark.parametrize("sign", SIGNS)
def test_integers_compare_as_numbers(sign, number):
    right = [one for one in IDS if SIGNS[sign](Fraction(one), value(number))]
    assert matching(f"id {sign} {number}", IDS, pa.int64(), None) == right
    wrong = [one for one in IDS if one not in right]
    assert matching(f"NOT id {sign} {number}", IDS, pa.int64(), None) == wrong


def test_lists_of_numbers():
    listed = ", ".join(NUMBERS)
    right = [one for one in IDS if Fraction(one) in {value(number) for number in NUMBERS}]
    assert matching(f"id IN ({listed})", IDS, pa.int64(), None) == right
    assert matching(f"id NOT IN ({listed})", IDS, pa.int64(), None) == [
        one for one in IDS if one not in right
    ]
    assert matching("id IN (2.5, 99999999999999999999)", IDS, pa.int64(), None) == []
    assert matching("id NOT IN (2.5)", IDS, pa.int64(), None) == IDS


@pytest.mark.parametrize("text", ["id = '5'", "id IN (1, '5')", "id < 'a'", "NOT id != ''"])
def test_a_text_is_never_compared_with_integers(text):
    with pytest.raises(
        ConfigError, match=r"column 'id' holds int64, found the text.*without quote"
    ):
        matching(text, IDS, pa.int64(), None)


def test_whole_numbers_stand_for_their_digits():
    ids = ["5", "05", "-7", "x", str(2**70)]
    assert matching("id = 5", ids, pa.string(), None) == ["5"]
    assert matching("id != 5", ids, pa.string(), None) == ids[1:]
    assert matching(f"id IN (5, 'x', -7, {2**70})", ids, pa.string(), None) == [ids[0], *ids[2:]]
    assert matching("id = '05'", ids, pa.string(), None) == ["05"]


@pytest.mark.parametrize("column", ["id", "label"])
@pytest.mark.parametrize("number", ["05", "5.0", "-0", "1.50"])
def test_other_numbers_do_not_stand_for_a_text(column, number):
    for text in (f"{column} = {number}", f"{column} NOT IN ('a', {number})"):
        with pytest.raises(ConfigError, match=f"'{column}' holds text.*write '{number}'"):
            matching(text, ["a"], pa.string(), ["b"])


@pytest.mark.parametrize("column", ["id", "label"])
@pytest.mark.parametrize("sign", ["<", "<=", ">", ">="])
def test_text_is_not_ordered_by_numbers(column, sign):
    with pytest.raises(ConfigError, match=rf"column '{column}' holds text, which {sign} does not"):
        matching(f"{column} {sign} 100", ["a"], pa.string(), ["b"])


def test_nulls_are_neither_one_nor_the_other():
    def of(test: Any) -> list[int]:
        return [one for one, label in zip(IDS, LABELS, strict=True) if test(label)]

    for text, test in {
        "label = 'c1'": lambda label: label == "c1",
        "label != 'c1'": lambda label: label not in ("c1", None),
        "NOT label = 'c1'": lambda label: label not in ("c1", None),
        "label IN ('c1', 'c2')": lambda label: label in ("c1", "c2"),
        "label NOT IN ('c1')": lambda label: label not in ("c1", None),
        "NOT label IN ('c1')": lambda label: label not in ("c1", None),
        "NOT (label NOT IN ('c1'))": lambda label: label == "c1",
        "label IN ('c1') OR label IS NULL": lambda label: label in ("c1", None),
        "label IS NOT NULL": lambda label: label is not None,
    }.items():
        assert matching(text, IDS, pa.int64(), LABELS) == of(test), text


def test_a_file_without_labels_has_nulls():
    assert matching("label IS NULL", IDS, pa.int64(), None) == IDS
    for text in ("label = 'c1'", "label != 'c1'", "NOT label IN ('c1')", "label < 'x'"):
        assert matching(text, IDS, pa.int64(), None) == []
    assert matching("label = 'c1' OR id = 0", IDS, pa.int64(), None) == [0]


def listed(tmp_path: Path, content: bytes) -> IdList:
    (tmp_path / "ids.txt").write_bytes(content)
    return IdList.read(str(tmp_path / "ids.txt"))


@pytest.mark.parametrize(
    "content",
    [
        b"5\n17\n5\n1812345678901234000\n-9223372036854775808\n",
        b"\xef\xbb\xbf5\r\n17\r\n5\r\n1812345678901234000\r\n-9223372036854775808",
        b"\n 5\t\n\n  17 \n+5\n001812345678901234000\r\n-9223372036854775808\n\n",
    ],
)
def test_lists_of_ids_as_people_write_them(tmp_path, content):
    ids = listed(tmp_path, content).of_type(pa.int64())
    assert ids == pa.array([5, 17, 5, 1_812_345_678_901_234_000, LEAST])


def test_only_ends_of_lines_end_an_id(tmp_path):
    names = ["a b", "x\u2028y", "p\x0cq", "007", "+5"]
    content = "\n".join(names).encode()
    assert listed(tmp_path, content).of_type(pa.string()).to_pylist() == names


@pytest.mark.parametrize(
    "line", ["1e3", "5.0", "5 6", "0x10", "1_000", "٣", "9223372036854775808", "7" * 6000, "a"]
)
def test_lines_that_are_no_int64_are_named(tmp_path, line):
    with pytest.raises(InputError, match=r"ids\.txt, line 3: expected an int64 id.*found"):
        listed(tmp_path, f"5\n\n{line}\n6".encode()).of_type(pa.int64())


@pytest.mark.parametrize("content", [b"", b"\n \r\n", b"\xef\xbb\xbf"])
def test_a_list_without_ids(tmp_path, content):
    with pytest.raises(InputError, match="at least one id"):
        listed(tmp_path, content)


def test_long_numbers_make_another_work_than_before(tmp_path):
    short, long = (listed(tmp_path, text) for text in (b"5\n" + b"1" * 18, b"5\n-" + b"1" * 19))
    assert short.work_digest(pa.int64()) == short.digest
    assert long.work_digest(pa.int64()) != long.digest
    assert long.work_digest(pa.string()) == long.digest
