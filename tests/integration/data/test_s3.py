"""The whole path on s3://, and what a run asks of the server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3server import SECRET, TOKEN, S3Server, reachable

from raypq import api
from raypq.config import (
    ClassifyJob,
    ClusterSettings,
    DeduplicateJob,
    DuplicatesJob,
    EncodeJob,
    EvaluateJob,
    SearchJob,
    TrainJob,
)
from raypq.data.storage import (
    Shard,
    StorageSettings,
    atomic_write,
    create,
    exists,
    file_size,
    filesystem,
    list_files,
    list_folders,
    list_names,
    list_shards,
    open_parquet,
    read_bytes,
    stem_of,
    write_bytes,
)
from raypq.data.store import shard_writer, snapshot
from raypq.errors import ConfigError, EmptySourceError, InputError, JobError
from raypq.stages.stores import garbage, versions

ALONE = ClusterSettings(cluster="none", workers=2)
SMALL = {"M": 4, "K": 16, "iterations": 2, "polish": 1}


def upload(world: Any, bucket: str) -> str:
    fs = fsspec.filesystem("s3")
    for path in world.root.rglob("*.parquet"):
        fs.pipe_file(f"{bucket}/world/{path.relative_to(world.root)}", path.read_bytes())
    return f"{bucket}/world"


class Path3:
    """The verbs over one bucket; ``made`` is where a run writes."""

    def __init__(self, root: str, made: str, where: ClusterSettings = ALONE) -> None:
        self.root, self.made, self.where = root, made, where

    def train(self) -> Any:
        return api.train(
            TrainJob(
                method="pqzsl", features=[f"{self.root}/train"], output=f"{self.made}/model",
                classes=f"{self.root}/classes.parquet", settings=SMALL, where=self.where,
            )
        )  # fmt: skip

    def encode(self) -> snapshot.Snapshot:
        return api.encode(
            EncodeJob(
                model=f"{self.made}/model", features=[f"{self.root}/test/*.parquet"],
                output=f"{self.made}/codes", where=self.where,
            )
        )  # fmt: skip

    def classify(self) -> snapshot.Snapshot:
        return api.classify(
            ClassifyJob(
                model=f"{self.made}/model", codes=f"{self.made}/codes",
                classes=f"{self.root}/classes.parquet", output=f"{self.made}/predictions",
                where=self.where,
            )
        )  # fmt: skip

    def evaluate(self) -> dict[str, Any]:
        return api.evaluate(
            EvaluateJob(
                predictions=f"{self.made}/predictions", classes=f"{self.root}/classes.parquet"
            ),
            self.where,
        )

    def search(self) -> snapshot.Snapshot:
        return api.search(
            SearchJob(
                codes=f"{self.made}/codes", queries=[f"{self.root}/train"],
                features=[f"{self.root}/test"], top_k=5, rerank=20, output=f"{self.made}/found",
                where=self.where,
            )
        )  # fmt: skip

    def duplicates(self) -> snapshot.Snapshot:
        return api.duplicates(
            DuplicatesJob(
                codes=f"{self.made}/codes", metric="l2", threshold=0.0,
                output=f"{self.made}/pairs", where=self.where,
            )
        )  # fmt: skip

    def deduplicate(self, version: int | None = None) -> snapshot.Snapshot:
        return api.deduplicate(
            DeduplicateJob(
                codes=f"{self.made}/codes", version=version, metric="l2", threshold=0.02,
                output=f"{self.made}/groups", keep_list=f"{self.made}/keep.txt", where=self.where,
            )
        )  # fmt: skip

    def all(self) -> dict[str, Any]:
        self.train()
        self.encode()
        self.classify()
        return self.evaluate()


def test_the_whole_path_equals_that_on_local_files(world: Any, bucket: str, tmp_path: Path) -> None:
    there = Path3(upload(world, bucket), f"{bucket}/made")
    here = Path3(str(world.root), str(tmp_path))
    ours, local = there.all(), here.all()
    assert ours.pop("predictions") == f"{bucket}/made/predictions"
    assert local.pop("predictions") == str(tmp_path / "predictions")
    assert ours.pop("run")["settings"] != local.pop("run")["settings"], "two runs of two places"
    assert ours == local
    for store in ("codes", "predictions"):
        far, near = snapshot.read(f"{bucket}/made/{store}"), snapshot.read(str(tmp_path / store))
        assert [item.rows for item in far.shards] == [item.rows for item in near.shards] == [60, 60]
        if store == "codes":
            assert [item.sha256 for item in far.shards] == [item.sha256 for item in near.shards]
        assert versions.verify(f"{bucket}/made/{store}", sha256=True)["files"] == 2
    assert there.encode().version == 1, "a finished run does nothing"


def test_retrieval_equals_that_on_local_files(world: Any, bucket: str, tmp_path: Path) -> None:
    """Search with re-ranking, whose partial answers go through the store, and duplicates."""
    there = Path3(upload(world, bucket), f"{bucket}/made")
    here = Path3(str(world.root), str(tmp_path))
    for place in (there, here):
        place.train()
        place.encode()
    for far, near in ((there.search(), here.search()), (there.duplicates(), here.duplicates())):
        assert far.rows
        assert [item.sha256 for item in far.shards] == [item.sha256 for item in near.shards]
    for store in ("found", "pairs"):
        held = list_names(f"{bucket}/made/{store}/data")
        assert not [name for name in held if name.startswith("partial")], "partial answers are gone"
        assert versions.verify(f"{bucket}/made/{store}", sha256=True)["files"] == len(held)


def test_groups_night_after_night(world: Any, bucket: str, tmp_path: Path) -> None:
    there = Path3(upload(world, bucket), f"{bucket}/made")
    here = Path3(str(world.root), str(tmp_path))
    groups = []
    for place in (there, here):
        place.train()
        first = place.encode()
        assert len(first.shards) == 2
        # The first version has one of the two shards.
        snapshot.commit(
            f"{place.made}/codes", kind="codes", run_id="less", expected=[first.shards[0].shard],
            receipts=first.shards[:1],
        )  # fmt: skip
        night = [place.deduplicate(version=2), place.deduplicate(version=1)]
        assert night[0].summary["rows"] < night[1].summary["rows"]
        assert night[1].rows
        (receipt,) = night[1].shards
        with open_parquet(f"{place.made}/groups/{receipt.path}") as file:
            table = file.read()
        groups.append(table.drop_columns(["shard"]))  # a name depends on the place
        kept = read_bytes(f"{place.made}/keep.txt").split()
        assert len(kept) == night[1].summary["rows"] - night[1].summary["dropped"]
    assert groups[0].equals(groups[1])
    held = list_names(f"{bucket}/made/groups/data")
    assert not [name for name in held if name.startswith("partial")], "partial answers are gone"


def test_versions_resume_and_gc(world: Any, bucket: str) -> None:
    path = Path3(upload(world, bucket), f"{bucket}/made")
    path.train()
    first = path.encode()
    store = f"{bucket}/made/codes"
    bad = f"{path.root}/test/part-1.parquet"
    good = read_bytes(bad)
    write_bytes(bad, good[:-100])
    write_bytes(f"{path.root}/test/part-2.parquet", good)
    with pytest.raises(JobError, match=r"part-1\.parquet"):
        path.encode()
    assert snapshot.versions(store) == [1]
    assert list_names(f"{store}/journal/{first.shards[0].work}"), "the good shard is remembered"
    held = set(list_names(f"{store}/data"))
    write_bytes(bad, good)
    second = path.encode()
    assert (second.version, len(second.shards)) == (2, 3)
    new = set(list_names(f"{store}/data")) - held
    assert len(new) <= 1, "only what was missing is done"
    assert versions.diff(store, 1)["added"] == [stem_of(f"{path.root}/test/part-2.parquet")]
    found = garbage.collect(store, keep=1, older_than_days=-1, remove=True)
    assert found.versions == [1]
    assert set(list_names(f"{store}/data")) == {
        item.path.removeprefix("data/") for item in second.shards
    }
    assert versions.verify(store, sha256=True)["version"] == 2


def test_many_objects_are_listed_by_page(bucket: str, s3: S3Server) -> None:
    from moto.s3.models import s3_backends

    backend = s3_backends["123456789012"]["aws"]  # past the server: 2,100 requests take 20 s
    for i in range(2100):
        backend.put_object(bucket.removeprefix("s3://"), f"many/part-{i:05d}.parquet", b"x")
    before = s3.asked["page"]
    assert [shard.uri for shard in list_shards([f"{bucket}/many"])] == [
        f"{bucket}/many/part-{i:05d}.parquet" for i in range(2100)
    ]
    assert len(list_files(f"{bucket}/many")) == 2100
    assert s3.asked["page"] - before == 4, "two pages after the first, twice"


def test_a_large_file_goes_up_in_parts(
    bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYPQ_STORAGE_PART_MIB", "5")
    before = s3.asked["part"]
    content = np.random.default_rng(1).bytes(12 << 20)
    with atomic_write(f"{bucket}/large") as file:
        for start in range(0, len(content), 1 << 20):
            file.write(content[start : start + (1 << 20)])
    assert s3.asked["part"] - before >= 2
    assert read_bytes(f"{bucket}/large") == content


def test_a_failed_upload_leaves_no_object(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYPQ_STORAGE_PART_MIB", "5")
    shard = Shard(index=0, uri="/in/a.parquet", stem="a", size=1, modified="now")
    schema = pa.schema([pa.field("x", pa.binary())])

    def batches() -> Iterator[pa.RecordBatch]:
        content = np.random.default_rng(1).bytes(7 << 20)
        for _ in range(2):
            yield pa.RecordBatch.from_arrays([pa.array([content])], schema=schema)
        raise InputError("a.parquet", expected="more", found="none")

    monkeypatch.setattr(shard_writer, "ROW_GROUP", 1)
    with pytest.raises(InputError, match="expected more"):
        shard_writer.write_shard(
            f"{bucket}/store", shard, model="m", work="w", schema=schema, batches=batches(),
            options={"compression": "none"},
        )  # fmt: skip
    assert list_names(f"{bucket}/store/data") == []
    fs, path = filesystem(bucket)
    assert not fs.call_s3("list_multipart_uploads", Bucket=path).get("Uploads")


def test_a_taken_name_is_a_taken_name_whatever_the_server_says(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some servers do not name the failed condition; s3fs then raises EINVAL."""
    from botocore.exceptions import ClientError

    create(f"{bucket}/x", b"one")
    with pytest.raises(FileExistsError):
        create(f"{bucket}/x", b"two")
    for status, code in ((412, "PreconditionFailed"), (409, "ConditionalRequestConflict")):
        answer = {
            "Error": {"Code": code, "Message": "no"},
            "ResponseMetadata": {"HTTPStatusCode": status},
        }
        fs, _ = filesystem(bucket)

        async def refuse(*args: Any, answer: Any = answer, **kwargs: Any) -> None:
            from s3fs.errors import translate_boto_error

            raise translate_boto_error(ClientError(answer, "PutObject"))

        with monkeypatch.context() as patch:
            patch.setattr(fs, "_call_s3", refuse)
            with pytest.raises(FileExistsError):
                create(f"{bucket}/x", b"two")
    assert read_bytes(f"{bucket}/x") == b"one"


def test_throttling_is_waited_out_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    import botocore.retries.standard as standard

    waits: list[float] = []
    delay = standard.ExponentialBackoff.delay_amount

    def noted(self: Any, context: Any) -> float:
        waits.append(delay(self, context))
        return 0.0

    monkeypatch.setattr(standard.ExponentialBackoff, "delay_amount", noted)
    server = S3Server(seed=5)
    try:
        with reachable(server.environment()):
            fsspec.filesystem("s3").mkdir("busy")
            server.throttle = 0.3
            for i in range(20):
                write_bytes(f"s3://busy/{i}", b"x")
            assert server.asked["throttled"] >= 5
            assert len(set(waits)) > 3, "waits have jitter"
            server.throttle = 0.0
            assert len(list_names("s3://busy")) == 20
            server.throttle, before = 1.0, server.asked["throttled"]
            with pytest.raises(OSError, match="the server is overloaded"):
                write_bytes("s3://busy/never", b"x")
            asked = server.asked["throttled"] - before
            assert asked <= 2 * StorageSettings().attempts, "tries are bounded"
    finally:
        server.close()


def test_settings_come_from_the_environment(
    s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("RAYPQ_STORAGE_ENDPOINT_URL", s3.url)
    monkeypatch.setenv("RAYPQ_STORAGE_ATTEMPTS", "3")
    write_bytes(f"{bucket}/x", b"there")
    assert read_bytes(f"{bucket}/x") == b"there"
    options = StorageSettings.current().s3_options()
    assert options["config_kwargs"]["retries"]["total_max_attempts"] == 3
    monkeypatch.setenv("RAYPQ_STORAGE_ATTEMPTS", "often")
    with pytest.raises(ConfigError, match=r"RAYPQ_STORAGE_.*'attempts'.*found 'often'"):
        read_bytes(f"{bucket}/x")


@pytest.mark.parametrize(
    ("refusal", "what"),
    [((403, "AccessDenied"), PermissionError), ((500, "InternalError"), OSError)],
)
def test_an_error_of_the_server_is_never_taken_for_not_there(
    bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch, refusal: tuple[int, str], what: Any
) -> None:
    """Every look at a store or a source, where a part of it is refused."""
    monkeypatch.setenv("RAYPQ_STORAGE_ATTEMPTS", "1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    for day in (1, 2):
        write_bytes(f"{bucket}/f/day={day}/a.parquet", b"1234")
    write_bytes(f"{bucket}/codes/snapshots/{1:020d}.json", b"{}")
    assert (exists(f"{bucket}/none"), list_names(f"{bucket}/none")) == (False, [])
    with serving(s3, {"codes": refusal, "day=2": refusal}):
        looks: list[tuple[Callable[[str], Any], str]] = [
            (exists, "codes/snapshots"), (exists, "codes/model.json"), (list_names, "codes/data"),
            (list_folders, "codes/journal"), (read_bytes, "codes/x"), (snapshot.read, "codes"),
            (snapshot.versions, "codes"), (file_size, "codes/x"),
        ]  # fmt: skip
        for look, name in looks:
            with pytest.raises(what, match="codes"):
                look(f"{bucket}/{name}")
    with serving(s3, {"f/": refusal}):
        for uri in (f"{bucket}/f", f"{bucket}/f/*/*.parquet", f"{bucket}/f/day=2/a.parquet"):
            with pytest.raises((InputError, what), match=bucket) as caught:
                list_shards([uri])
            assert not isinstance(caught.value, EmptySourceError)


def test_rights_that_end_at_a_prefix_are_enough(bucket: str, s3: S3Server) -> None:
    """A look at the prefix's own name is refused, listing what is below it is not."""
    write_bytes(f"{bucket}/f/day=1/a.parquet", b"1234")
    with serving(s3, {"/f?": (403, "AccessDenied")}):
        assert len(list_shards([f"{bucket}/f"])) == 1


def test_a_bucket_that_does_not_exist_is_told(bucket: str) -> None:
    write_bytes(f"{bucket}/x.parquet", b"1234")
    with pytest.raises(EmptySourceError):
        list_shards([f"{bucket}/features"])
    looks = [lambda uri: list_shards([uri]), list_names, list_folders, snapshot.read]
    for uri in ("s3://no-such-bucket/f", "s3://no-such-bucket", "s3://no-such-bucket/*/a.parquet"):
        for look in looks[: 1 if "*" in uri else None]:
            with pytest.raises(InputError, match="no such bucket") as caught:
                look(uri)
            assert not isinstance(caught.value, EmptySourceError)


def test_objects_that_stand_for_folders_are_no_shards(bucket: str) -> None:
    for name in ("f/", "f/day=1/", "f/x.parquet/", "f/x.parquet_$folder$"):
        fsspec.filesystem("s3").pipe_file(f"{bucket}/{name}", b"")
    assert fsspec.filesystem("s3").exists(f"{bucket}/f")
    with pytest.raises(EmptySourceError):
        list_shards([f"{bucket}/f"])
    write_bytes(f"{bucket}/f/x.parquet/part-0.parquet", b"1234")
    write_bytes(f"{bucket}/f/empty.parquet", b"")
    found = [shard.uri for shard in list_shards([f"{bucket}/f"])]
    assert found == [f"{bucket}/f/empty.parquet", f"{bucket}/f/x.parquet/part-0.parquet"], (
        "an upload that is empty is damaged, not absent"
    )


@contextmanager
def serving(s3: S3Server, refused: dict[str, tuple[int, str]]) -> Iterator[None]:
    s3.refused = refused
    try:
        yield
    finally:
        s3.refused = {}


def test_a_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    server = S3Server()
    server.close()
    monkeypatch.setenv("RAYPQ_STORAGE_ATTEMPTS", "1")
    with reachable(server.environment()), pytest.raises(OSError, match=r"127\.0\.0\.1"):
        read_bytes("s3://none/x")


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://AKIA:{SECRET}@bucket/x",
        f"https://host/x?X-Amz-Signature={SECRET}&X-Amz-Credential={TOKEN}",
        f"memory://x?token={SECRET}",
    ],
)
def test_a_uri_with_credentials_is_refused_and_masked(uri: str) -> None:
    with pytest.raises(InputError, match=r"without credentials.*found credentials") as caught:
        list_shards([uri])
    assert SECRET not in str(caught.value)
    assert TOKEN not in str(caught.value)


def everything(bucket: str) -> dict[str, bytes]:
    fs = fsspec.filesystem("s3")
    return {name: fs.cat_file(name) for name in fs.find(bucket)}


def test_no_output_holds_a_credential(world: Any, bucket: str, tmp_path: Path) -> None:
    """A whole run with all that can be said of it, failures with tracebacks among it."""
    root = upload(world, bucket)
    good = ["--cluster", "none", "--debug", "--log-json"]
    classes = ["--classes", f"{root}/classes.parquet"]
    model, codes, made = f"{bucket}/m", f"{bucket}/codes", f"{bucket}/predictions"
    encode = ["encode", "--model", model, "--features", f"{root}/test", "--output", codes, *good]
    commands = [
        ["train", "pq", "--features", f"{root}/train", "--output", model, "--set", "M=4",
         "--set", "K=16", *good],
        encode,
        ["snapshots", "show", codes, "--debug"],
        ["classify", "--model", f"{bucket}/none", "--codes", codes, *classes, "--output", made,
         *good],
        [*encode, "--features", f"{bucket}/nothing"],
        [*encode, "--features", f"s3://key:{SECRET}@bucket/x"],
        ["snapshots", "list", "s3://no-such-bucket/x", "--debug"],
    ]  # fmt: skip
    script = (
        "import json, sys, logging\n"
        "from click.testing import CliRunner\n"
        "from raypq.cli import main\n"
        "from raypq.data.storage import StorageSettings, filesystem\n"
        "import traceback\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    result = CliRunner().invoke(main, command)\n"
        "    print(result.exit_code, result.output)\n"
        "    if result.exc_info: traceback.print_exception(*result.exc_info)\n"
        "print(repr(filesystem('s3://x/y')), StorageSettings.current())\n"
    )
    # What was typed is the user's; what comes out must not repeat it.
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(commands)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ},
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-2000:]
    assert said.count("Traceback") >= 4, "the failures were shown in full"
    assert '"version": 1' in said
    outputs = {name: data for name, data in everything(bucket).items() if "/world/" not in name}
    assert len(outputs) >= 5
    local = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for place, content in {"said": said.encode(), **outputs, **local}.items():
        for secret in (SECRET, TOKEN):
            assert secret.encode() not in content, f"a credential in {place}"


@pytest.mark.slow
@pytest.mark.ray
def test_ray_workers_reach_the_server_and_their_logs_hold_no_credential(
    world: Any, bucket: str
) -> None:
    root = upload(world, bucket)
    script = (
        "import sys\n"
        "from raypq import api\n"
        "from raypq.config import ClusterSettings, EncodeJob, TrainJob\n"
        "where = ClusterSettings(cluster='local', workers=2)\n"
        "root, made = sys.argv[1:]\n"
        "api.train(TrainJob(method='pq', features=[root + '/train'], output=made + '/m',\n"
        "    settings={'M': 4, 'K': 16, 'iterations': 1}, where=where))\n"
        "print(api.encode(EncodeJob(model=made + '/m', features=[root + '/test'],\n"
        "    output=made + '/codes', where=where)).rows)\n"
        "import ray\n"
    )
    session = Path("/tmp/ray")
    before = set(session.glob("session_2*"))
    done = subprocess.run(
        [sys.executable, "-c", script, root, f"{bucket}/made"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "120"
    said = done.stdout + done.stderr
    for folder in set(session.glob("session_2*")) - before:
        said += "".join(
            path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()
        )
    assert SECRET not in said
    assert TOKEN not in said


def test_shards_of_a_bucket_are_read_in_few_requests(
    bucket: str, s3: S3Server, tmp_path: Path
) -> None:
    """Columns are read in turn; blocks that were read once stay at hand."""

    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "id": np.arange(60_000),
            "feature": pa.FixedSizeListArray.from_arrays(
                pa.array(rng.standard_normal(60_000 * 64, np.float32)), 64
            ),
        }
    )
    pq.write_table(table, tmp_path / "x.parquet", compression="none", use_dictionary=False)
    size = (tmp_path / "x.parquet").stat().st_size
    write_bytes(f"{bucket}/x.parquet", (tmp_path / "x.parquet").read_bytes())
    before = s3.asked["GET"]
    with open_parquet(f"{bucket}/x.parquet") as file:
        rows = sum(len(batch) for batch in file.iter_batches(batch_size=2048))
    assert rows == 60_000
    assert s3.asked["GET"] - before <= size / (8 << 20) + 4
