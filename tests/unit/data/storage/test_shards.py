"""Which files a URI names, what they are called in a store, and files that are no Parquet."""

from __future__ import annotations

import errno
import os
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from raypq.data import storage
from raypq.data.storage import list_shards, open_parquet, stem_of
from raypq.data.store.shard_writer import Source
from raypq.errors import EmptySourceError, InputError, MissingSourceError

X = np.ones((3, 2), np.float32)


@pytest.fixture
def tree(write, tmp_path):
    """Makes empty-ish Parquet files of these names and gives their folder."""

    def tree(*names: str) -> str:
        for name in names:
            write(f"store/{name}", id=["a", "b", "c"], feature=X)
        return str(tmp_path / "store")

    return tree


def names(folder: str, *uris: str) -> list[str]:
    """The files that URIs name, below a folder and without ``.parquet``."""
    shards = list_shards(uris)
    assert len({shard.stem for shard in shards}) == len(shards)
    return [shard.uri.removeprefix(f"{folder}/").removesuffix(".parquet") for shard in shards]


def test_a_folder_in_path_order(tree):
    folder = tree("b.parquet", "a.parquet", "sub/c.parquet")
    shards = list_shards([folder])
    assert names(folder, folder) == ["a", "b", "sub/c"]
    assert [shard.index for shard in shards] == [0, 1, 2]
    assert all(shard.size == os.path.getsize(shard.uri) for shard in shards)
    assert all(shard.modified == str(os.stat(shard.uri).st_mtime) for shard in shards)


def test_globs(tree):
    folder = tree("x/a.parquet", "x/b.parquet", "y/a.parquet", "z/c.parquet")
    assert names(folder, f"{folder}/*/a.parquet") == ["x/a", "y/a"]
    assert names(folder, f"{folder}/[xz]") == ["x/a", "x/b", "z/c"]
    assert names(folder, f"{folder}/[!xz]/") == ["y/a"]
    assert names(folder, f"{folder}/**/?.parquet") == ["x/a", "x/b", "y/a", "z/c"]
    assert names(folder, f"{folder}/**") == ["x/a", "x/b", "y/a", "z/c"]
    assert names(folder, f"{folder}/*/") == ["x/a", "x/b", "y/a", "z/c"]


def test_hidden_files_and_folders_are_passed_over(tree):
    folder = tree("a.parquet", "_b.parquet", ".c.parquet", "_tmp/d.parquet", "s/.x/e.parquet")
    Path(folder, "README.txt").write_text("no shard")
    assert names(folder, folder) == ["a"]
    assert names(folder, f"{folder}/*") == ["a"]
    assert names(folder, f"{folder}/_b.parquet") == ["_b"], "named outright"
    assert names(folder, f"{folder}/_?.parquet", f"{folder}/.[c].*") == [".c", "_b"], "asked for"


def test_partitions_whose_column_starts_with_an_underscore_are_read(tree):
    folder = tree("_day=1/a.parquet", "_day=2/b.parquet", "_day/c.parquet")
    assert names(folder, folder) == ["_day=1/a", "_day=2/b"]


def test_a_hidden_folder_above_the_store_does_not_hide_it(tree):
    folder = tree(".hidden/f/a.parquet", ".hidden/f/b.parquet")
    assert names(f"{folder}/.hidden/f", f"{folder}/.hidden/f") == ["a", "b"]
    assert names(f"{folder}/.hidden/f", f"{folder}/.hidden/f/*.parquet") == ["a", "b"]


def test_spaces_unicode_and_brackets(tree):
    folder = tree("mit Leerzeichen/größe 图像.parquet", "f[1]/a b.parquet", "q?/c.parquet")
    assert names(folder, f"{folder}/mit Leerzeichen") == ["mit Leerzeichen/größe 图像"]
    assert names(folder, f"{folder}/f[1]") == ["f[1]/a b"], "a folder that is there is no glob"
    assert names(folder, f"{folder}/f[1]/a b.parquet") == ["f[1]/a b"]
    assert names(folder, f"{folder}/q?") == ["q?/c"]


ODD = (
    "a.parquet", "a--b.parquet", "a/b.parquet", "A.parquet", "c.d.parquet", "_x.parquet",
    "größe 图像.parquet", "e\u0301.parquet", "\u00e9.parquet", "new\nline.parquet", "-dash.parquet",
    "...parquet", "con.parquet", "day=1/part-0.parquet", "day=2/part-0.parquet",
    f"{'x' * 240}.parquet",
    f"{'y' * 250}/{'z' * 240}.parquet", "a.PARQUET", "a.pq", "%20 #?&;'\"\\.parquet",
)  # fmt: skip


def test_stems_are_short_safe_and_no_two_alike():
    stems = [stem_of(f"/data/{name}") for name in ODD]
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", stem) for stem in stems)
    assert len({stem.lower() for stem in stems}) == len(ODD)
    assert len({stem_of(f"{root}/f/a.parquet") for root in ("/x", "/y", "s3://b", "s3://c")}) == 4


def test_the_stem_of_a_file_hangs_on_its_own_uri_alone(tree, monkeypatch):
    """However it is named, and whatever lies beside it."""
    folder = tree("x/a.parquet")
    (alone,) = list_shards([folder])
    assert alone.stem == stem_of(f"{folder}/x/a.parquet")
    tree("x/b.parquet", "y/a.parquet", "z/deep/er/a.parquet", "a.parquet")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", folder)
    for uri in (folder, "x/a.parquet", ".//x/../x/", f"file://{folder}/x", "~/x", "*/[a]*"):
        assert alone in [replace(shard, index=0) for shard in list_shards([uri])], uri


def test_a_file_named_twice_counts_once(tree, monkeypatch):
    folder = tree("a.parquet", "b.parquet", "s/c.parquet")
    monkeypatch.chdir(folder)
    uris = [folder, f"{folder}/a.parquet", "a.parquet", f"file://{folder}/b.parquet", "s", "*",
            "s/../s//c.parquet", f"{folder}/**/*.parquet", "./"]  # fmt: skip
    assert names(folder, *uris) == ["a", "b", "s/c"]


def test_several_stores(tree):
    folder = tree("x/a.parquet", "y/a.parquet", "z/a.parquet")
    assert names(folder, f"{folder}/x", f"{folder}/y") == ["x/a", "y/a"]


def test_stores_of_several_kinds(tree):
    folder = tree("a.parquet")
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/shards-test/b.parquet", Path(folder, "a.parquet").read_bytes())
    shards = list_shards([folder, "memory://shards-test"])
    assert len({shard.stem for shard in shards}) == 2
    for shard in shards:
        with open_parquet(shard.uri) as file:
            assert file.metadata.num_rows == 3


# ---- links, names and folders that a listing must not lose ---------------------------------


def test_links_of_folders_and_files_are_followed(tree):
    folder = tree("a.parquet")
    tree("../elsewhere/b.parquet", "../elsewhere/deep/c.parquet", "../other/d.parquet")
    Path(folder, "day2").symlink_to("../elsewhere")
    Path(folder, "e.parquet").symlink_to("../other/d.parquet")
    assert names(folder, folder) == ["a", "day2/b", "day2/deep/c", "e"]
    assert names(folder, f"{folder}/*/*.parquet") == ["day2/b"]
    Path(folder).parent.joinpath("current").symlink_to("store")
    current = str(Path(folder).parent / "current")
    assert names(current, current) == ["a", "day2/b", "day2/deep/c", "e"], "named as asked"


def test_loops_of_links_end_and_what_is_linked_twice_counts_once(tree):
    folder = tree("x/a.parquet", "y/b.parquet")
    Path(folder, "x", "loop").symlink_to("..")
    Path(folder, "latest").symlink_to("y")
    Path(folder, "a-first.parquet").symlink_to("x/a.parquet")
    Path(folder, "y", "self").symlink_to(".")
    assert names(folder, folder) == ["x/a", "y/b"], "under their own paths"
    assert names(folder, f"{folder}/latest", f"{folder}/y/b.parquet") == ["y/b"]
    assert names(folder, f"{folder}/latest") == ["latest/b"]


def test_a_linked_file_is_told_by_its_target(tree):
    folder = tree("../blobs/one.parquet", "a.parquet")
    blob, link = Path(folder).parent / "blobs" / "one.parquet", Path(folder, "l.parquet")
    link.symlink_to(blob)
    before = list_shards([folder])[1]
    assert before.size == blob.stat().st_size
    assert before.modified.startswith(f"{blob.stat().st_mtime}@"), "and where it is"
    os.utime(blob, (1, 1))
    after = list_shards([folder])[1]
    assert after != before
    assert list_shards([str(link)])[0].modified == after.modified
    assert after.modified.startswith("1.0@")


@pytest.mark.parametrize(
    ("link", "to", "asked"),
    [
        ("cur.parquet", "../{}/a/p.parquet", "cur.parquet"),
        ("cur.parquet", "../{}/a/p.parquet", "*.parquet"),
        ("cur.parquet", "../{}/a/p.parquet", ""),
        ("cur", "../{}", "cur"),
        ("cur", "../{}", "cur/a/p.parquet"),
        ("cur", "../{}", "c*/a/*.parquet"),
        ("cur", "../{}", "cur/**/*.parquet"),
        ("cur", "../{}/a", ""),
        ("cur", "../by-way-of-{}/a", "cur"),
        ("cur", "../by-way-of-{}/a", "**"),
    ],
)
def test_a_link_that_leads_elsewhere_is_another_file(tree, link, to, asked):
    """Both targets have the same size and time, as releases made by a tool may have."""
    folder = tree("../v1/a/p.parquet", "../v2/a/p.parquet")
    Path(folder).mkdir(exist_ok=True)
    seen = []
    for version in ("v1", "v2", "v1"):
        os.utime(Path(folder, "..", version, "a", "p.parquet"), ns=(5, 5))
        way = Path(folder).parent / f"by-way-of-{version}"
        way.unlink(missing_ok=True)
        way.symlink_to(version)
        Path(folder, link).unlink(missing_ok=True)
        Path(folder, link).symlink_to(to.format(version))
        (shard,) = list_shards([f"{folder}/{asked}".rstrip("/")])
        seen.append(Source.of(shard))
    assert seen[0].uri == seen[1].uri
    assert not seen[0].same_file(seen[1])
    assert seen[0] == seen[2]


@pytest.mark.parametrize("name", ["gone.parquet", "gone", "loop"])
def test_a_link_that_leads_nowhere_is_named(tree, name):
    folder = tree("a.parquet")
    Path(folder, name).symlink_to("loop" if name == "loop" else "/nowhere/at/all")
    for uri in (folder, f"{folder}/{name}", f"{folder}/*"):
        with pytest.raises(InputError, match=name):
            list_shards([uri])


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("call", ["scandir", "stat"])
def test_a_folder_that_cannot_be_listed_is_named(tree, monkeypatch, code, call):
    """As root no folder is closed, so the system call is made to fail."""
    folder = tree("day=1/a.parquet", "day=2/b.parquet")
    real = getattr(os, call)

    def refuse(path, *rest, **more):
        if str(path).endswith("day=2"):
            raise OSError(code, os.strerror(code), str(path))
        return real(path, *rest, **more)

    monkeypatch.setattr(os, call, refuse)
    uris = [f"{folder}/day=2"] if call == "stat" else [folder, f"{folder}/*", f"{folder}/**"]
    for uri in uris:
        with pytest.raises(InputError, match="day=2") as caught:
            list_shards([uri])
        assert not isinstance(caught.value, EmptySourceError)


@pytest.mark.parametrize("name", ["a.parq", "a.pq", "a.PARQUET", "a.Parquet", "a.snappy.parquet"])
def test_all_names_of_parquet_files_are_taken(tree, name):
    folder = tree(name, "x.parquet/part-0.parquet")
    uris = [shard.uri for shard in list_shards([folder])]
    assert uris == [f"{folder}/{name}", f"{folder}/x.parquet/part-0.parquet"]


@pytest.mark.parametrize(
    ("name", "told"),
    [("b.parquet.gz", True), ("part-00000", True), ("b.orc", True), ("b.parquet.tmp", True),
     ("b.csv", True), ("README", False), ("notes.txt", False), ("_SUCCESS", False),
     (".b.parquet.crc", False), ("b.parquet.sha256", False), ("stats.json", False)],
)  # fmt: skip
def test_what_is_passed_over_and_looks_like_data_is_named(tree, caplog, name, told):
    folder = tree("a.parquet", name)
    assert names(folder, folder) == ["a"]
    assert (f"{folder}/{name}" in caplog.text) == told
    assert len(caplog.records) == told
    if told:
        Path(folder, "a.parquet").unlink()
        with pytest.raises(EmptySourceError, match=f"none, only .*{re.escape(name)}"):
            list_shards([folder])
        assert list_shards([f"{folder}/{name}"]), "named outright it is taken"


@pytest.mark.parametrize(
    "name",
    ["b.parquet~", "b.parquet (1)", "b.parquet-1", "b.parquet1", "b.parquet copy", "b.parquet,v",
     "b.parquet ", "b.parquets", "b.geoparquet", "b.pqt", "b.parquet?x=1", "b.PARQUET2",
     "b.parquet%20", "b.parquet\n", "b.snappy.parq2", "b.pq~", "b.parquet_old"],
)  # fmt: skip
def test_a_suffix_of_parquet_anywhere_in_a_name_is_reported(tree, caplog, name):
    folder = tree("a.parquet", name)
    assert names(folder, folder) == ["a"]
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.isprintable()
    assert "skipped 1 file(s)" in line
    assert name.strip() in line


@pytest.mark.parametrize(
    "name",
    ["parquet-notes.txt", "b.parquet.crc", "b.parquet.md5", ".b.parquet.tmp", "_b.parquet-1",
     "b.pqzsl.txt", "notes about parq.md"],
)  # fmt: skip
def test_other_names_are_not_reported(tree, caplog, name):
    folder = tree("a.parquet", name)
    assert names(folder, folder) == ["a"]
    assert not caplog.records


def test_a_pipe_is_no_shard(tree):
    folder = tree("a.parquet")
    os.mkfifo(f"{folder}/b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet: expected a regular file, found a pipe"):
        list_shards([folder])


def test_a_name_that_is_no_text_is_refused(tree):
    folder = tree("a.parquet")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.parquet")).write_bytes(b"x")
    with pytest.raises(InputError, match="a name in UTF-8"):
        list_shards([folder])


def test_a_file_that_vanishes_during_the_walk_is_no_error(tree, monkeypatch):
    folder = tree("a.parquet", "b.parquet", "s/c.parquet")
    real = os.scandir

    def scandir(path):
        if str(path) == folder:
            listed = list(real(path))
            Path(folder, "b.parquet").unlink()
            Path(folder, "s", "c.parquet").unlink()
            Path(folder, "s").rmdir()
            return nullcontext(listed)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert names(folder, folder) == ["a"]


class Ghost(MemoryFileSystem):
    """A storage that tells nothing of its files but their size, or fails."""

    protocol, cachable, error = "ghost", False, None

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("ghost://", "/"))

    def ls(self, path, detail=True, **kwargs):
        if self.error and path.endswith("day=2"):
            raise self.error
        found = super().ls(path, detail=True)
        keep = ("name", "size", "type")
        return [{key: entry[key] for key in keep} for entry in found]

    def info(self, path, **kwargs):
        found = super().info(path)
        return {key: found[key] for key in ("name", "size", "type")}


@pytest.fixture
def ghost(monkeypatch):
    fsspec.register_implementation("ghost", Ghost, clobber=True)
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/ghosts/day=1/a.parquet", b"1234")
    fs.pipe_file("/ghosts/day=2/b.parquet", b"1234")
    yield Ghost
    Ghost.error = None
    fs.rm("/ghosts", recursive=True)


def test_a_storage_that_gives_no_tag_has_its_files_read(ghost, caplog):
    before = list_shards(["ghost://ghosts"])
    assert "neither a version tag nor a time" in caplog.text
    fsspec.filesystem("memory").pipe_file("/ghosts/day=2/b.parquet", b"1235")
    after = list_shards(["ghost://ghosts"])
    assert before[0] == after[0]
    assert before[1].modified != after[1].modified


@pytest.mark.parametrize("error", [PermissionError(13, "no"), OSError(5, "EIO"), TimeoutError()])
def test_a_remote_folder_that_cannot_be_listed_is_an_error(ghost, error):
    Ghost.error = error
    for uri in ("ghost://ghosts", "ghost://ghosts/*/*.parquet", "ghost://ghosts/day=2"):
        with pytest.raises((InputError, OSError), match="ghosts") as caught:
            list_shards([uri])
        assert not isinstance(caught.value, EmptySourceError)


@pytest.mark.parametrize("storage", ["local", "memory"])
@pytest.mark.parametrize(
    ("name", "error"),
    [("nosuch", MissingSourceError), ("nosuch/*.parquet", MissingSourceError),
     ("empty/*.parquet", MissingSourceError), ("empty/**", MissingSourceError),
     ("day=3/../nosuch", MissingSourceError), ("empty", EmptySourceError),
     ("emp*", EmptySourceError), ("texts/*", EmptySourceError), ("texts", EmptySourceError)],
)  # fmt: skip
def test_what_is_missing_is_told_from_what_is_empty(tmp_path, storage, name, error):
    root = str(tmp_path) if storage == "local" else f"memory://{tmp_path.name}"
    fs, place = fsspec.url_to_fs(root)
    fs.makedirs(f"{place}/empty", exist_ok=True)
    fs.makedirs(f"{place}/texts", exist_ok=True)
    fs.pipe_file(f"{place}/texts/notes.txt", b"x")
    with pytest.raises(error) as caught:
        list_shards([f"{root}/{name}"])
    assert type(caught.value) is error
    if error is MissingSourceError and "*" not in name:
        assert "no such file or folder" in str(caught.value)


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


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_an_error_of_a_disk_is_never_taken_for_not_there(tmp_path, monkeypatch, code):
    """As root nothing is closed, so the system call is made to fail."""
    path = str(tmp_path / "x")
    assert not storage.exists(path)
    Path(path).symlink_to(path)
    with pytest.raises(OSError, match="x"):
        storage.exists(path)  # a loop of links

    def refuse(path, *rest, **more):
        raise OSError(code, os.strerror(code), str(path))

    for call, looks in (("stat", [storage.exists]),
                        ("scandir", [storage.list_names, storage.list_folders])):  # fmt: skip
        monkeypatch.setattr(os, call, refuse)
        for look in looks:
            with pytest.raises(OSError, match="x"):
                look(path)
