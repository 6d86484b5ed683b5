"""``docs/upgrading.md`` and the changelog name the formats and settings that the code has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import raypq
from raypq.data import (
    clusters,
    codes,
    duplicate_groups,
    model_files,
    network_info,
    pairs,
    predictions,
    search_results,
)
from raypq.data.store import id_index_files, manifest, snapshot
from raypq.stages.classification import counts
from raypq.stages.stores import work_id
from raypq.stages.training import checkpoint

ROOT = Path(raypq.__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "upgrading.md").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
FORMATS = {
    "version of a store": snapshot.FORMAT,
    "manifest of a version": manifest._FORMAT,
    "model": model_files.FORMAT,
    "codes": codes._FORMAT,
    "predictions": predictions._FORMAT,
    "search results": search_results._FORMAT,
    "pairs": pairs._FORMAT,
    "groups": duplicate_groups._FORMAT,
    "clusters": clusters._FORMAT,
    "id index": id_index_files._FORMAT.decode(),
    "counts of predictions": counts._FORMAT,
    "checkpoint of a training": checkpoint.FORMAT,
    "work id": work_id.VERSION,
    "preparation of images": network_info._VERSION,
}


def rows(title: str) -> list[list[str]]:
    """The cells of the table in a chapter, without its head."""
    chapter = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in chapter.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_page_has_every_format_with_its_number() -> None:
    """A format that rises is also named in the changelog, under Formats."""
    listed = {row[0]: row[1] for row in rows("What stays usable") if len(row) > 1}
    assert {name: listed.get(name) for name in FORMATS} == {
        name: str(number) for name, number in FORMATS.items()
    }


def test_the_first_section_of_the_changelog_is_of_this_version() -> None:
    first = CHANGELOG.split("\n## ")[1]
    assert first.split(",")[0].split()[0] == raypq.__version__
    assert "\n### Formats\n" in first
    for name, number in FORMATS.items():
        if int(number) > 1:
            named = re.search(rf"{name}[^:\n]*: {number}\b", first, re.IGNORECASE)
            assert named, f"the changelog does not name format {number} of {name}"


@pytest.mark.parametrize(
    ("command", "fields"),
    [
        ("encode", work_id.ENCODE),
        ("extract", work_id.EXTRACT),
        ("classify", work_id.CLASSIFY),
        ("search", work_id.SEARCH),
        ("duplicates", work_id.DUPLICATES),
        ("deduplicate", work_id.DEDUPLICATE),
        ("neighbors", work_id.NEIGHBORS),
        ("cluster", work_id.CLUSTER),
    ],
)
def test_the_page_says_of_every_setting_whether_outputs_depend_on_it(
    command: str, fields: work_id.Fields
) -> None:
    (row,) = [row for row in rows("Which settings change outputs") if f"`{command}`" in row[0]]
    changing, unchanging = (set(re.findall(r"`([\w.]+)`", cell)) for cell in row[1:])
    # The codes, by their content; a version or path of them is none of the outputs' business.
    prose = {"model", "codes", "version", "where", "classes", "no_calibration"}
    assert {*fields.always, *fields.later, *fields.apart} - prose <= changing
    paths = {"output", "features", "images", "codes", "version", "queries"}
    assert fields.none - paths <= unchanging
    assert "where.device" in changing
