"""Which files a URI names, what they are called in a store, and files that are no Parquet."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import fsspec
import numpy as np
import pytest

from raypq.data import storage
from raypq.data.storage import list_shards, open_parquet
from raypq.errors import InputError

X = np.ones((3, 2), np.float32)


@pytest.fixture
def tree(write, tmp_path):
    """Makes empty-ish Parquet files of these names and gives their folder."""

    def tree(*names: str) -> str:
        for name in names:
            write(f"store/{name}", id=["a", "b", "c"], feature=X)
        return str(tmp_path / "store")

    return tree


def stems(*uris: str) -> list[str]:
    return [shard.stem for shard in list_shards(uris)]


def test_a_folder_in_path_order(tree):
    folder = tree("b.parquet", "a.parquet", "sub/c.parquet")
    shards = list_shards([folder])
    assert [shard.stem for shard in shards] == ["a", "b", "sub--c"]
    assert [shard.index for shard in shards] == [0, 1, 2]
    assert all(shard.size == os.path.getsize(shard.uri) for shard in shards)


def test_globs(tree):
    folder = tree("x/a.parquet", "x/b.parquet", "y/a.parquet", "z/c.parquet")
    assert stems(f"{folder}/*/a.parquet") == ["x--a", "y--a"]
    assert stems(f"{folder}/[xz]") == ["x--a", "x--b", "z--c"]
    assert stems(f"{folder}/**/?.parquet") == ["x--a", "x--b", "y--a", "z--c"]


def test_hidden_files_and_folders_are_passed_over(tree):
    folder = tree("a.parquet", "_b.parquet", ".c.parquet", "_tmp/d.parquet", "s/.x/e.parquet")
    Path(folder, "README.txt").write_text("no shard")
    assert stems(folder) == ["a"]
    assert stems(f"{folder}/*") == ["a"]
    assert stems(f"{folder}/_b.parquet") == ["_b"], "named outright"


def test_a_hidden_folder_above_the_store_does_not_hide_it(tree):
    folder = tree(".hidden/f/a.parquet", ".hidden/f/b.parquet")
    assert stems(f"{folder}/.hidden/f") == ["a", "b"]
    assert stems(f"{folder}/.hidden/f/*.parquet") == ["a", "b"]


def test_spaces_unicode_and_brackets(tree):
    folder = tree("mit Leerzeichen/größe 图像.parquet", "f[1]/a b.parquet", "q?/c.parquet")
    assert stems(f"{folder}/mit Leerzeichen") == ["größe 图像"]
    assert stems(f"{folder}/f[1]") == ["a b"], "a folder that is there is no glob"
    assert stems(f"{folder}/f[1]/a b.parquet") == ["a b"]
    assert stems(f"{folder}/q?") == ["c"]


def test_stems_are_unique_and_stable(tree):
    folder = tree("a/b.parquet", "a--b.parquet", "c.parquet", "c.d.parquet")
    found = stems(folder)
    assert len(set(found)) == 4
    assert set(found[2:]) == {"c", "c.d"}
    assert found == stems(f"{folder}/**/*.parquet", folder), "however they are named"


def test_stems_do_not_hang_on_the_machine(tree, tmp_path):
    folder = tree("x/a.parquet", "y/a.parquet")
    moved = tmp_path / "elsewhere" / "deep"
    moved.parent.mkdir()
    before = stems(folder)
    Path(folder).rename(moved)
    assert stems(str(moved)) == before


def test_a_file_named_twice_counts_once(tree, monkeypatch):
    folder = tree("a.parquet", "b.parquet")
    monkeypatch.chdir(folder)
    assert stems(folder, f"{folder}/a.parquet", "a.parquet", f"file://{folder}/b.parquet") == [
        "a",
        "b",
    ]


def test_several_stores(tree):
    folder = tree("x/a.parquet", "y/a.parquet", "z/a.parquet")
    assert stems(f"{folder}/x", f"{folder}/y") == ["x--a", "y--a"]


def test_stores_of_several_kinds(tree):
    folder = tree("a.parquet")
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/shards-test/b.parquet", Path(folder, "a.parquet").read_bytes())
    shards = list_shards([folder, "memory://shards-test"])
    assert len({shard.stem for shard in shards}) == 2
    for shard in shards:
        with open_parquet(shard.uri) as file:
            assert file.metadata.num_rows == 3


@pytest.mark.parametrize("name", ["nothing", "*.parquet", "nothing/*"])
def test_nothing_there(tmp_path, name):
    with pytest.raises(InputError, match=r"at least one \.parquet file, found none"):
        list_shards([str(tmp_path / name)])


def test_one_of_several_is_missing(tree):
    folder = tree("a.parquet")
    with pytest.raises(InputError, match="missing"):
        list_shards([folder, f"{folder}/missing"])


def test_an_unknown_protocol():
    with pytest.raises(InputError, match="fsspec"):
        list_shards(["nosuch://bucket/x"])


@pytest.mark.parametrize("keep", [0, 3, 20, -5, -1])
def test_truncated_files(tree, keep):
    path = Path(tree("a.parquet"), "a.parquet")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=str(path)), open_parquet(str(path)):
        pass


@pytest.mark.parametrize("content", [b"hello", b"PAR1" * 10, b"\0" * 1000])
def test_not_parquet(tmp_path, content):
    path = tmp_path / "x.parquet"
    path.write_bytes(content)
    with (
        pytest.raises(InputError, match="expected a complete Parquet file"),
        open_parquet(str(path)),
    ):
        pass


def test_folders_and_missing_files(tmp_path):
    with pytest.raises(InputError, match="directory"), open_parquet(str(tmp_path)):
        pass
    with pytest.raises(InputError, match="no such file"), open_parquet(str(tmp_path / "no")):
        pass


def test_a_flipped_bit_in_a_page_is_found(write):
    values = np.arange(4000, dtype=np.float32).reshape(-1, 4)
    path = Path(write("x.parquet", id=np.arange(1000), feature=values))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=str(path)), open_parquet(str(path)) as file:
        file.read()


@pytest.mark.parametrize("seed", range(40))
def test_any_damage_is_an_input_error_or_none(write, seed):
    """Footers and pages damaged at random never give another error than the one that names it."""
    path = Path(write("x.parquet", id=np.arange(50), feature=np.ones((50, 4), np.float32)))
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    for _ in range(3):
        content[rng.integers(4, len(content) - 8)] = rng.integers(256)
    path.write_bytes(content)
    with suppress(InputError), open_parquet(str(path)) as file:
        for _ in file.iter_batches(batch_size=10):
            pass


def test_create_is_once_only(tmp_path):
    uri = str(tmp_path / "deep" / "x.json")
    storage.create(uri, b"one")
    with pytest.raises(FileExistsError):
        storage.create(uri, b"two")
    assert storage.read_bytes(uri) == b"one"
    assert storage.list_names(str(tmp_path / "deep")) == ["x.json"], "no temporary file is left"


def test_an_empty_file_is_not_overwritten(tmp_path):
    """``open("xb")`` of some filesystems takes an empty file for none."""
    uri = str(tmp_path / "x.json")
    storage.create(uri, b"")
    with pytest.raises(FileExistsError):
        storage.create(uri, b"two")


def test_write_bytes_replaces_in_one_step(tmp_path):
    uri = str(tmp_path / "x")
    storage.write_bytes(uri, b"one")
    storage.write_bytes(uri, b"two")
    assert storage.read_bytes(uri) == b"two"
    assert storage.list_names(str(tmp_path)) == ["x"]
    assert storage.list_names(str(tmp_path / "none")) == []
