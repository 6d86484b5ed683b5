"""No job writes among what it reads: every job class, every field, however a path is spelt."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click
import pytest
from click.testing import CliRunner

from raypq import api, config
from raypq.bench import ablation
from raypq.checks import Finding
from raypq.cli import main
from raypq.config import Job, ReindexJob, Settings, UserSettings, places
from raypq.config.images import ImageSource
from raypq.config.places import NoPlace, Place, Reads, Writes
from raypq.data.model_files import ModelFiles
from raypq.data.store import overlap, snapshot
from raypq.errors import ConfigError, RaypqError

JOBS: dict[str, type[UserSettings]] = {
    name: value
    for name, value in vars(config).items()
    if name.endswith("Job") and name not in ("Job", "CpuJob", "MonitoredJob", "ProbeJob")
}


LATE = {"Finding": Finding}  # types that raypq.api imports for type checkers only


def verbs() -> dict[str, Callable[..., Any]]:
    """The functions that take a job, by the name of its class."""
    found: dict[str, Callable[..., Any]] = {}
    for name, value in vars(api).items():
        if inspect.isfunction(value) and value.__module__ == api.__name__ and name[0] != "_":
            first = next(iter(inspect.signature(value).parameters), "")
            kind = get_type_hints(value, localns=LATE).get(first) if first == "job" else None
            # A verb of any job, ``check``, runs none.
            if isinstance(kind, type) and issubclass(kind, Settings) and kind is not Job:
                found[kind.__name__] = value
    return {**found, "AblationJob": ablation.run}


VERBS = verbs()


def texts(annotation: Any) -> bool:
    if annotation is str:
        return True
    if getattr(annotation, "__origin__", None) is dict:
        return False
    return any(texts(part) for part in get_args(annotation) if not isinstance(part, str))


def test_every_job_has_a_verb_that_checks_it() -> None:
    assert set(VERBS) == set(JOBS)
    for name, verb in VERBS.items():
        guarded = hasattr(verb, "__wrapped__") or "overlap.refuse(" in inspect.getsource(verb)
        assert guarded, f"the verb of {name} does not refuse overlapping places"


@pytest.mark.parametrize("name", [*JOBS, "ClassificationTarget"])
def test_every_text_of_a_job_says_what_it_names(name: str) -> None:
    for field, about in getattr(config, name).model_fields.items():
        if texts(about.annotation):
            notes = list(places.notes(about.annotation, about.metadata))
            assert len(notes) == 1, f"{name}.{field}: give it a type of raypq.config.places"


def value_of(note: Reads | Writes, root: Path, field: str) -> str:
    """A place of the kind that a note tells, each on its own."""
    at = root / field
    if note.kind in ("store", "model", "shards", "parts", "xlsa17", "parquet"):
        if isinstance(note, Reads):
            at.mkdir()
            for name in ("part-0.parquet", "model.json", "res101.mat"):
                (at / name).touch()
            (at / "data").mkdir()
    elif isinstance(note, Reads):
        at.touch()
    return str(at)


def example(name: str, root: Path, **changes: Any) -> Any:
    """A job of a class with every place of its own."""
    cls, values = JOBS[name], {}
    for field, about in cls.model_fields.items():
        notes = list(places.notes(about.annotation, about.metadata))
        if notes and not isinstance(notes[0], NoPlace):
            values[field] = value_of(notes[0], root, field)
    values |= {"method": "pq"} if name == "TrainJob" else {}
    values |= {"name": "dpq-bits"} if name == "AblationJob" else {}
    values |= {"protocol": 1} if name == "SplitJob" else {}
    values |= {"threshold": 1.0} if name in ("DuplicatesJob", "DeduplicateJob") else {}
    values |= {"k": 2} if name == "ClusterJob" else {}
    values |= {"encoder": "onnx:x"} if name == "EmbedClassesJob" else {}
    if name == "ReindexJob":
        (root / "classes").touch()
        values["classify"] = {"classes": str(root / "classes"), "output": str(root / "answers")}
    values |= changes
    if issubclass(cls, ImageSource):  # features, or images and a backbone
        for other in ("features",) if changes.get("images") else ("images", "backbone"):
            values.pop(other, None)
    if name == "EmbedClassesJob":  # names or synsets
        values.pop("names" if changes.get("synsets") else "synsets", None)
    return cls.parse(values)


def used(job: UserSettings, use: type) -> list[Place]:
    return [place for place in places.places(job) if isinstance(place.use, use)]


WRITERS = [name for name in JOBS if any(
    isinstance(note, Writes)
    for about in JOBS[name].model_fields.values()
    for note in places.notes(about.annotation, about.metadata)
)]  # fmt: skip


def refused(name: str, job: UserSettings) -> str:
    """What the verb says; it has done nothing before."""
    with pytest.raises(ConfigError) as caught:
        VERBS[name](job)
    return str(caught.value)


def tree(root: Path) -> list[Path]:
    return sorted(root.rglob("*"))


@pytest.mark.parametrize("name", WRITERS)
def test_disjoint_places_are_no_trouble(name: str, tmp_path: Path) -> None:
    overlap.refuse(example(name, tmp_path))


@pytest.mark.parametrize("name", WRITERS)
def test_an_output_that_is_an_input_is_refused(name: str, tmp_path: Path) -> None:
    job = example(name, tmp_path)
    before = tree(tmp_path)
    for output in used(job, Writes):
        for given in used(job, Reads):
            if name == "ImportXlsa17Job":  # its files have names of their own
                continue
            if given.uri == "all" or given.use.in_place:  # a split's name; read whole before
                continue
            if "." in output.field:
                answers = [{**job.classify[0].model_dump(), "output": given.uri}]
                wrong = job.model_copy(update={"classify": ReindexJob.parse(
                    {"model": "m", "features": "f", "codes": "c", "classify": answers}
                ).classify})  # fmt: skip
            else:
                wrong = job.model_copy(update={output.field: given.uri})
            message = refused(name, wrong)
            assert given.uri in message
            assert output.field in message
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", WRITERS)
def test_an_output_below_features_is_refused(name: str, tmp_path: Path) -> None:
    job = example(name, tmp_path)
    for given in used(job, Reads):
        if given.use.kind != "parquet":
            continue
        for output in used(job, Writes):
            if "." in output.field:
                continue
            harmful = ["x", "x/y", "x.parquet"] if output.use.kind != "file" else ["x.parquet"]
            for below in harmful:
                wrong = job.model_copy(update={output.field: f"{given.uri}/{below}"})
                assert "input" in refused(name, wrong)
            for hidden in ("_x", ".x", "_x/y", ".x/y.parquet"):
                fine = job.model_copy(update={output.field: f"{given.uri}/{hidden}"})
                overlap.refuse(fine)


def spellings(root: Path) -> Iterator[tuple[str, str]]:
    """Ways to name root/features, and root/features/out."""
    (root / "link").symlink_to(root / "features")
    (root / "features" / "sub").mkdir()
    (root / "into").symlink_to(root / "features" / "sub")
    home = os.path.relpath(root, Path.home())
    yield str(root / "features"), str(root / "features" / "out")
    yield str(root / "features") + "/", str(root) + "//features/./out/"
    yield f"file://{root}/features", str(root / "features" / "out")
    yield str(root / "features"), f"file://{root}/features/out/"
    yield str(root / "features"), f"local://{root}/features/out"
    yield "features", str(root / "features" / "out")
    yield str(root / "features"), "features/../features/out"
    yield str(root / "link"), str(root / "features" / "out")
    yield str(root / "features"), str(root / "link" / "not" / "yet" / "there")
    yield str(root / "features"), str(root / "into")
    yield str(root / "features"), str(root / "into" / "out")
    yield str(root / "features"), f"~/{home}/features/out"
    yield str(root / "features/*"), str(root / "features" / "out")
    yield "feat*", "features/out"
    yield "f[e]atures/**", "features/out"
    yield "./*/part-*.parquet", "features"
    yield "*.parquet", "."


def test_no_spelling_hides_an_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "part-0.parquet").touch()
    (tmp_path / "part.parquet").touch()
    monkeypatch.chdir(tmp_path)
    for given, output in spellings(tmp_path):
        job = config.RepackJob(features=[given], output=output)
        with pytest.raises(ConfigError, match="features"):
            overlap.refuse(job)
        assert job.features[0] in refused("RepackJob", job)


REMOTE = [
    ("s3://b/x", "s3://b/x", True), ("s3://b/x/", "s3://b/x", True),
    ("s3://b/x", "s3a://b/x/y", True), ("S3://b/x", "s3://b//x/y", True),
    ("s3://b/x/*", "s3://b/x/y", True), ("gs://b", "gcs://b/x", True),
    ("memory://x", "memory:///x/y", True), ("simplecache::s3://b/x", "s3://b/x/y", True),
    ("s3://b/x.parquet", "s3://b", True),
    ("s3://b/feat", "s3://b/features", False), ("s3://b/features", "s3://b/feat", False),
    ("s3://b/x", "s3://c/x", False), ("s3://b/x", "gs://b/x/y", False),
    ("s3://b/x", "/b/x/y", False), ("s3://b/x/y", "s3://b/x", False),
    ("s3://b/x", "s3://b/x/_y", False), ("s3://b/X", "s3://b/x", False),
    ("s3://b/x/part-*", "s3://b/x/fast", False), ("s3://b/x/*/a.parquet", "s3://b/x", False),
]  # fmt: skip


@pytest.mark.parametrize(("given", "output", "harmful"), REMOTE)
def test_places_on_object_stores(given: str, output: str, harmful: bool) -> None:
    job = config.RepackJob(features=[given], output=output)
    if harmful:
        assert job.features[0] in refused("RepackJob", job)
    else:
        overlap.refuse(job)


@pytest.mark.parametrize("linked", ["folder", "file"])
def test_what_links_in_the_features_lead_to_counts(tmp_path: Path, linked: str) -> None:
    (tmp_path / "features" / "deep").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.parquet").touch()
    target = tmp_path / "other" if linked == "folder" else tmp_path / "other" / "x.parquet"
    (tmp_path / "features" / "deep" / "link.parquet").symlink_to(target)
    (tmp_path / "features" / "loop").symlink_to(tmp_path / "features")
    job = config.RepackJob(features=tmp_path / "features", output=tmp_path / "other")
    assert "features" in refused("RepackJob", job)


HARMLESS = [
    ("EncodeJob", {"features": "a/b", "output": "a"}),
    ("EncodeJob", {"features": "a/part-*.parquet", "output": "a"}),
    ("EncodeJob", {"features": "a/part-0.parquet", "output": "a"}),
    ("EncodeJob", {"features": "a/b", "model": "a/models/m", "output": "a"}),
    ("RepackJob", {"features": "a/b", "output": "a"}),
    ("RepackJob", {"features": "a/**/x.parquet", "output": "a/_b"}),
    ("RepackJob", {"features": "a/*/*.parquet", "output": "a/_b"}),
    ("RepackJob", {"features": "a/*", "output": "a/b/_c"}),
    ("TrainJob", {"features": "a/part-0.parquet", "classes": "a/classes.parquet", "output": "a"}),
    ("ClassifyJob", {"codes": "a", "classes": "a/c.parquet", "output": "a/found"}),
    ("SearchJob", {"codes": "a", "queries": "q", "output": "a/found"}),
    ("ReindexJob", {"codes": "a", "model": "a/models/m", "features": "b", "classify": {
        "classes": "a/classes.parquet", "output": "a/predictions"}}),
    ("ReindexJob", {"codes": "b/_codes", "model": "b/model", "features": "b"}),
    ("ImportXlsa17Job", {"source": "a", "output": "a"}),
    ("AddClassesJob", {"model": "a", "output": "./a/"}),
    ("InferSemanticsJob", {"classes": "a/classes.parquet", "output": "a"}),
]  # fmt: skip
HARMFUL = [
    ("EncodeJob", {"features": "a/data", "output": "a"}),
    ("EncodeJob", {"features": "a/data/x", "output": "a"}),
    ("EncodeJob", {"features": ["b", "a"], "output": "a/codes"}),
    ("RepackJob", {"features": "a/part-0.parquet", "output": "a"}),
    ("RepackJob", {"features": "a/*.parquet", "output": "a"}),
    ("RepackJob", {"features": "a/**/part-*.parquet", "output": "a/b/c"}),
    ("RepackJob", {"features": "a/**", "output": "a/b"}),
    ("RepackJob", {"features": "a/_*/*.parquet", "output": "a/_b"}),
    ("RepackJob", {"features": "a/*/_b/x*", "output": "a/c/_b"}),
    ("RepackJob", {"features": "a", "output": "a/_day=3/x"}),
    ("SplitJob", {"features": "a/labelled", "output": "a"}),
    ("SplitJob", {"features": "b", "test": "a", "output": "a/parts"}),
    ("ClassifyJob", {"codes": "a", "output": "a/data"}),
    ("ClassifyJob", {"codes": "a", "output": "a/journal/x"}),
    ("ClassifyJob", {"classes": "a/data/c.parquet", "output": "a"}),
    ("TrainJob", {"features": "a", "output": "a/model"}),
    ("TrainJob", {"unlabelled": "a", "output": "a/model"}),
    ("TrainJob", {"method": "linear", "codes": "a", "output": "a/data/x"}),
    ("TrainJob", {"method": "linear", "model": "a", "output": "a"}),
    ("TrainJob", {"method": "linear", "labels": "a/x.parquet", "output": "a/x.parquet"}),
    ("ExportFaissJob", {"codes": "a", "output": "a/data/x.faiss"}),
    ("ExportFaissJob", {"model": "a", "output": "a/model.json"}),
    ("AblationJob", {"classes": "a.parquet", "json_file": "./a.parquet"}),
    ("AblationJob", {"test": "a", "json_file": "a/part-0.parquet"}),
    ("ReindexJob", {"codes": "a", "classify": {"classes": "c", "output": "./a/"}}),
    ("ReindexJob", {"codes": "a", "classify": {"classes": "c", "output": "a/data"}}),
    ("ReindexJob", {"classify": [
        {"classes": "c", "output": "p"}, {"classes": "c", "output": "file://{root}/p"}]}),
    ("ReindexJob", {"model": "m", "classify": {"classes": "c", "output": "m"}}),
    ("ReindexJob", {"features": "f", "classify": {"classes": "c", "output": "f/p"}}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes"), HARMLESS)
def test_what_does_no_harm_stays(
    name: str, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    overlap.refuse(example(name, tmp_path, **changes))


@pytest.mark.parametrize(("name", "changes"), HARMFUL)
def test_what_harms_is_refused(
    name: str, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if isinstance(changes.get("classify"), list):
        sections = [
            {**one, "output": one["output"].format(root=tmp_path)} for one in changes["classify"]
        ]
        changes = {**changes, "classify": sections}
    refused(name, example(name, tmp_path, **changes))


def test_a_file_of_two_names_is_one(tmp_path: Path) -> None:
    (tmp_path / "classes.parquet").touch()
    os.link(tmp_path / "classes.parquet", tmp_path / "figures.json")
    job = example("EvaluateJob", tmp_path, classes=tmp_path / "classes.parquet")
    with pytest.raises(ConfigError, match="same place"):
        overlap.refuse(job, json=overlap.written_file("--json", str(tmp_path / "figures.json")))


def test_a_folder_is_no_file_and_a_file_no_folder(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "y").touch()
    job = example("EvaluateJob", tmp_path)
    with pytest.raises(ConfigError, match="is a folder; name a file"):
        overlap.refuse(job, json=overlap.written_file("--json", str(tmp_path / "x")))
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        overlap.refuse(config.RepackJob(features="f", output=tmp_path / "y"))


def options_that_write() -> Iterator[tuple[tuple[str, ...], str]]:
    """Every command with ``--json`` or ``--output``."""

    def walk(group: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        for name, command in group.commands.items():
            yield (*words, name), command
            if hasattr(command, "commands"):
                yield from walk(command, (*words, name))

    for words, command in walk(main, ()):
        for parameter in command.get_params(click.Context(command)):
            for option in {"--json", "--output"} & set(parameter.opts):
                yield words, option


COMMANDS = {
    ("train", "--output"): "pq --features F --output F/m",
    ("encode", "--output"): "--model M --features F --output F/c",
    ("repack", "--output"): "--features F --output F/c",
    ("extract", "--output"): "--images F --backbone torchvision:resnet18 --output F/c",
    ("embed-classes", "--output"): "--names C --encoder onnx:x --output C",
    ("split", "--output"): "--protocol 1 --features F --output F/c",
    ("ablation", "--json"): "gpq-bits --train F --classes C --json F/part-0.parquet",
    ("classify", "--output"): "--codes S --classes C --output S",
    ("search", "--output"): "--codes S --queries F --output F/c",
    ("duplicates", "--output"): "--codes S --threshold -0.5 --output S/data/x",
    ("neighbors", "--output"): "--codes S --output S/data/x",
    ("cluster", "--output"): "--codes S --k 2 --output S/data/x",
    ("deduplicate", "--output"): "--codes S --threshold 1 --output S/data/x",
    ("export", "--output"): "S --output S/data",
    ("export-faiss", "--output"): "--codes S --output S/snapshots/x",
    ("import-faiss", "--output"): "M/model.json --output M",
    ("add-classes", "--output"): "--model M --classes M/model.json --output M --overwrite",
    ("infer-semantics", "--output"): "--model M --codes S --classes C --output S/data",
    ("import-xlsa17", "--output"): "F --output C",
    ("report", "--output"): "C --output C",
    ("bench", "--json"): "pipeline --classes C --json C",
    ("demo", "--output"): "--output C",
    ("quickstart", "--output"): "--images F --names C --output F/c",
    ("evaluate classification", "--json"): "--predictions S --classes C --json C",
    ("evaluate retrieval", "--json"): "--codes S --queries F --json F/part-0.parquet",
    ("evaluate fewshot", "--json"): "--features F --json F/part-0.parquet",
    ("evaluate clusterability", "--json"): "--features F --classes C --json C",
}


def test_every_command_that_writes_is_tried_below() -> None:
    assert {(" ".join(words), option) for words, option in options_that_write()} == set(COMMANDS)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_refuse_before_any_work(words: tuple[str, str], tmp_path: Path) -> None:
    for folder in ("F", "S/data", "M"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("F/part-0.parquet", "C", "M/model.json"):
        (tmp_path / file).write_text("{}")
    before = {path: path.stat().st_mtime_ns for path in tree(tmp_path)}
    given = [
        str(tmp_path / part) if part[0] in "FSMC" and part[1:2] in ("", "/") else part
        for part in COMMANDS[words].split()
    ]
    result = CliRunner().invoke(main, [*words[0].split(), *given])
    assert result.exit_code == 2, result.output
    assert "raypq: " in result.output
    assert str(tmp_path) in result.output
    assert {path: path.stat().st_mtime_ns for path in tree(tmp_path)} == before


@pytest.mark.parametrize(
    "text", ["", "  ", "x\n", "\nx", "a\0b", "s3://b/${DAY}/x", "s3:/b/x", "b\udcff"]
)
@pytest.mark.parametrize("name", JOBS)
def test_no_path_is_empty(name: str, text: str, tmp_path: Path) -> None:
    job = example(name, tmp_path)
    for place in places.places(job):
        if "." not in place.field:
            with pytest.raises(RaypqError, match=f"'{place.field}.*expected a path or URI"):
                type(job).parse({**dict(job), place.field: text})


def test_a_demo_writes_over_no_data(tmp_path: Path) -> None:
    """Refused at once where a folder has things of its names; not where a demo made them."""
    from raypq import demo

    for name in ("features", "model", "classes.parquet"):
        root = tmp_path / f"of-{name}"
        (root / name).mkdir(parents=True)
        result = CliRunner().invoke(main, ["demo", "--output", str(root)])
        assert result.exit_code == 2
        assert f"holds {name}, which the demo would write over" in result.output
        assert [path.name for path in root.iterdir()] == [name]
    demo.claim(tmp_path / "new")
    (tmp_path / "new" / "features").mkdir()
    demo.claim(tmp_path / "new")


def test_every_function_takes_a_path(tmp_path: Path) -> None:
    """And says the same of a path as of a text; a URI that pathlib cut is named."""
    import raypq
    from raypq.stages.stores import garbage, versions

    calls: list[Callable[[Any], Any]] = [
        raypq.load_model, raypq.open, versions.listing, versions.show, versions.verify,
        lambda at: versions.restore(at, 1), lambda at: versions.diff(at, 1), garbage.collect,
        lambda at: raypq.report(at, tmp_path / "r.html"), lambda at: raypq.report([at], "r.html"),
    ]  # fmt: skip
    for call in calls:
        said = []
        for given in (str(tmp_path / "none"), tmp_path / "none"):
            try:
                said.append(str(call(given)))
            except RaypqError as error:
                said.append(str(error))
        assert said[0] == said[1]
        for wrong in (Path("s3://b/x"), "", 3):
            with pytest.raises((ConfigError, TypeError)):
                call(wrong)


OWN = [
    "snapshots",
    "data",
    "manifests",
    "journal",
    "runs",
    "lease",
    "sidecars",
    "models",
    "data/deep",
]


def store_at(root: str) -> None:
    snapshot.commit(root, kind="codes", run_id="r", expected=[], receipts=[])


@pytest.mark.parametrize("folder", OWN)
@pytest.mark.parametrize("scheme", ["", "file://", "memory://"])
def test_the_folders_of_a_store_are_its_own(tmp_path: Path, scheme: str, folder: str) -> None:
    root = f"{scheme}{tmp_path}/codes"
    store_at(root)
    for use, uri in (("file", f"{root}/{folder}/x.json"), ("shards", f"{root}/{folder}"),
                     ("model", f"{root}/{folder}/m"), ("store", f"{root}/{folder}/s"),
                     ("index", f"{root}/{folder}/x.faiss")):  # fmt: skip
        with pytest.raises(ConfigError, match="which is for the store's own files") as caught:
            overlap.refuse_places([Place(field="output", uri=uri, use=Writes(use))])
        assert uri in str(caught.value)
    for uri in (f"{root}/figures.json", f"{root}/predictions", f"{tmp_path}/data/x.json"):
        overlap.refuse_places([Place(field="output", uri=uri, use=Writes("file"))])


def test_a_link_does_not_hide_a_store(tmp_path: Path) -> None:
    store_at(str(tmp_path / "codes"))
    (tmp_path / "link").symlink_to(tmp_path / "codes" / "snapshots")
    with pytest.raises(ConfigError, match="store's own files"):
        overlap.refuse_places([overlap.written_file("output", f"{tmp_path}/link/1.json")])


@pytest.mark.parametrize("scheme", ["", "file://", "memory://"])
@pytest.mark.parametrize("name", ["model.json", "model.safetensors", "classes.json"])
def test_a_file_is_not_written_over_a_models(tmp_path: Path, scheme: str, name: str) -> None:
    root = f"{scheme}{tmp_path}/m"
    place = overlap.written_file("--json", f"{root}/{name}")
    overlap.refuse_places([place])
    ModelFiles(content={}, tensors={}, record={}).save(root)
    with pytest.raises(ConfigError, match="would write over a file of the model"):
        overlap.refuse_places([place])
    overlap.refuse_places([overlap.written_file("--json", f"{root}/figures.json")])


@pytest.mark.parametrize("way", ["command", "job"])
def test_a_config_is_an_input(tmp_path: Path, way: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "md").mkdir()
    place = tmp_path / "md" / "model.json"
    common = {"features": [f"{tmp_path}/f"], "output": f"{tmp_path}/md", "overwrite": True}
    text = json.dumps({"M": 2} if way == "command" else {"method": "pq", **common})
    place.write_text(text)
    if way == "command":
        words = ["train", "pq", "--features", f"{tmp_path}/f", "--output", f"{tmp_path}/md",
                 "--overwrite", "--config", str(place)]  # fmt: skip
        result = CliRunner().invoke(main, words)
        code, told = result.exit_code, result.output
    else:
        with pytest.raises(SystemExit) as caught:
            api.run_job(config.TrainJob, api.train, ["--config", str(place)])
        code, told = caught.value.code, capsys.readouterr().err
    assert code == 2
    assert f"the input config: {place}" in told or "--config" in told
    assert "would write over" in told
    assert place.read_text() == text


def test_every_path_of_a_job_can_be_changed() -> None:
    job = ReindexJob.model_validate(
        {
            "model": "m", "features": ["a", "b"], "codes": "c",
            "classify": [{"classes": "t", "output": "p", "candidates": "seen"}],
        }
    )  # fmt: skip
    moved = places.with_places(job, lambda uri, use: f"/x/{uri}")
    before, after = (
        {place.field: place.uri for place in places.places(one)} for one in (job, moved)
    )
    assert after.keys() == before.keys()
    assert [place.uri for place in places.places(moved)] == [
        f"/x/{place.uri}" for place in places.places(job)
    ]
