"""Options of the command line are the fields of settings, and a config file sets the same."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner

import raypq
from raypq import api, config
from raypq.cli import main
from raypq.cli.job_command import JobCommand
from raypq.config import Job, read_mapping
from raypq.config.command_line import command_line
from raypq.errors import ConfigError

ROOT = Path(raypq.__file__).parent
CONFIGS = ROOT.parent / "jobs" / "configs"
NO_SETTINGS = {"doctor"}
GIVEN: dict[str, Any] = {  # of required settings
    "model": "m", "features": ["f"], "output": "o", "classes": "c", "codes": "s", "method": "pq",
    "predictions": "p", "queries": ["q"], "images": ["i"], "backbone": "b", "protocol": 1,
    "name": "gpq-bits", "train": ["t"], "threshold": 1.0, "index": "x", "source": "y", "k": 2,
    "encoder": "onnx:x", "store": "s", "old": 1, "version": 1, "places": ["r"],
}  # fmt: skip


def commands(
    group: click.Group, words: tuple[str, ...] = ()
) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        else:
            yield " ".join((*words, name)), command


VERBS: dict[str, JobCommand] = {
    words: command for words, command in commands(main) if isinstance(command, JobCommand)
}


def required(verb: str) -> dict[str, Any]:
    values = {**GIVEN, "name": "all"} if verb == "bench" else GIVEN
    values = {**values, "images": 9} if verb == "plan" else values
    fields = VERBS[verb].settings.model_fields
    needed = {name: values[name] for name, field in fields.items() if field.is_required()}
    # Features, or images and a backbone: neither is required by itself.
    needed |= {"features": values["features"]} if verb in ("encode", "reindex", "train") else {}
    return needed | ({"names": "n"} if verb == "embed-classes" else {})


def job_of(verb: str, *arguments: str) -> Job:
    """The job that a command makes of its arguments; it is not run."""
    command = VERBS[verb]
    context = command.make_context(verb, list(arguments))
    with context:
        values = {
            name: value
            for name, value in context.params.items()
            if name not in ("quiet", "log_json", "debug")
        }
        return command.job_of(values)


@pytest.fixture
def written(tmp_path: Path) -> Any:
    def write(values: dict[str, Any]) -> str:
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(values))
        return str(path)

    return write


def test_every_command_is_made_of_its_settings_and_takes_a_config() -> None:
    assert {words for words, _ in commands(main)} - set(VERBS) == NO_SETTINGS
    for verb, command in VERBS.items():
        parameters = command.get_params(click.Context(command))
        assert "--config" in {name for one in parameters for name in one.opts}
        assert command.settings.verb == f"raypq {verb}"
        assert f"``raypq {verb}``" in (command.settings.__doc__ or "")


@pytest.mark.parametrize("verb", VERBS)
def test_every_field_has_an_option(verb: str) -> None:
    """But lists of sections, which only a file can hold."""

    def leaves(cls: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        for name, field in cls.model_fields.items():
            if hasattr(field.annotation, "model_fields"):
                yield from leaves(field.annotation, (*path, name))
            else:
                yield (*path, name)

    optional = {field.path for field in VERBS[verb].fields}
    assert set(leaves(VERBS[verb].settings)) - optional == (
        {("classify",), ("deduplicate",)} if verb == "reindex" else set()
    )


@pytest.mark.parametrize("verb", VERBS)
def test_defaults_are_those_of_the_settings(verb: str, written: Any) -> None:
    """No option changes a default: a file with what is required gives the same job."""
    job = job_of(verb, "--config", written(required(verb)))
    assert job == VERBS[verb].settings.parse(required(verb))


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_missing_is_named_by_option_and_key(verb: str, written: Any) -> None:
    fields = VERBS[verb].settings.model_fields
    needed = {name: value for name, value in required(verb).items() if fields[name].is_required()}
    if not needed:
        return
    with pytest.raises(ConfigError) as caught:
        job_of(verb)
    labels = {field.path[0]: field.label for field in VERBS[verb].fields}
    for name in needed:
        assert f"command line: {labels[name]} is required" in str(caught.value)
    if len(needed) > 1:
        name, *rest = needed
        path = written({key: needed[key] for key in rest})
        with pytest.raises(ConfigError) as caught:
            job_of(verb, "--config", path)
        assert str(caught.value) == f"{path}: key '{name}' ({labels[name]}) is required"


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_setting_is_refused(verb: str, written: Any) -> None:
    command = VERBS[verb]
    path = written({**required(verb), "no_such": 1})
    with pytest.raises(ConfigError) as caught:
        job_of(verb, "--config", path)
    known = ", ".join(sorted(command.settings.model_fields))
    message = str(caught.value)
    assert f"unknown key 'no_such' of raypq {verb}; allowed: {known}" in message
    assert message.startswith(path)
    done = CliRunner().invoke(main, [*verb.split(), "--no-such", "1"], prog_name="raypq")
    assert done.exit_code == 2
    assert f"unknown option --no-such of raypq {verb}; allowed: --" in done.output


@pytest.mark.parametrize(
    ("verb", "key", "value"),
    [
        ("split", "on_bad_shard", "quarantine"),
        ("evaluate classification", "on_bad_shard", "quarantine"),
        ("evaluate fewshot", "where", {"workers": 2}),
        ("evaluate clusterability", "where", {"workers": 2}),
        ("add-classes", "where", {"cluster": "none"}),
        ("ablation", "on_bad_shard", "fail"),
        ("export-faiss", "where", {}),
        ("neighbors", "columns", {}),
        ("repack", "where.device", "cuda"),
        ("split", "where.device", "cpu"),
        ("evaluate classification", "where.gpus_per_worker", 1),
        ("infer-semantics", "where.device", "cuda"),
    ],
)
def test_a_setting_that_a_job_does_not_use_is_refused(
    verb: str, key: str, value: Any, written: Any
) -> None:
    section, _, inner = key.partition(".")
    path = written({**required(verb), section: {inner: value} if inner else value})
    with pytest.raises(ConfigError, match=f"unknown key '{re.escape(key)}' of raypq {verb};"):
        job_of(verb, "--config", path)
    option = f"--{(inner or section).replace('_', '-')}"
    done = CliRunner().invoke(main, [*verb.split(), option, "x"], prog_name="raypq")
    assert done.exit_code == 2
    assert f"unknown option {option} of raypq {verb}" in done.output


def test_devices_of_another_job_are_refused() -> None:
    """In Python, workers of one job may be handed to another."""
    with pytest.raises(ConfigError, match=r"raypq split does not use, found device 'cuda'"):
        config.SplitJob(
            protocol=1, features="f", output="o", where=config.ClusterSettings(device="cuda")
        )
    job = config.SplitJob(
        protocol=1, features="f", output="o", where=config.ClusterSettings(workers=3)
    )
    assert job.where.workers == 3


def test_options_count_over_the_file(written: Any) -> None:
    path = written(
        {
            "method": "pq", "features": ["a"], "output": "o", "overwrite": True,
            "settings": {"M": 4, "K": 16}, "where": {"cluster": "none", "workers": 3},
            "columns": {"id": "name", "width": 8}, "cache_bytes": 5,
        }
    )  # fmt: skip
    job: Any = job_of(
        "train", "opq", "--config", path, "--features", "b", "--features", "c", "--no-overwrite",
        "--set", "M=8", "--workers", "2", "--id-column", "key", "--cache-gb", "0.5",
    )  # fmt: skip
    assert (job.method, job.features, job.overwrite) == ("opq", ["b", "c"], False)
    assert job.settings == {"M": 8, "K": 16}
    assert (job.where.cluster, job.where.workers) == ("none", 2)
    assert (job.columns.id, job.columns.width) == ("key", 8)
    assert job.cache_bytes == 2**29


def test_errors_name_where_a_value_comes_from(written: Any) -> None:
    path = written({"model": "m", "features": "f", "output": "o", "where": {"workers": 0}})
    with pytest.raises(ConfigError) as caught:
        job_of("encode", "--config", path, "--id-column", "")
    bounds = "greater than or equal to 1 and less than or equal to 1000000"
    expected = f"expected a whole number {bounds}, found 0"
    assert sorted(str(caught.value).splitlines()) == [
        f"{path}, line 5: key 'where.workers': {expected}",
        "command line: --id-column: expected text that is not empty, found ''",
    ]


def test_method_settings_alone_may_be_the_config_of_train(written: Any) -> None:
    arguments = ("pq", "--features", "f", "--output", "o")
    path = written({"M": 4, "K": 16})
    job: Any = job_of("train", *arguments, "--config", path, "--set", "K=32")
    assert job.settings == {"M": 4, "K": 32}
    path = written({"M": 4, "weight": 1})
    with pytest.raises(ConfigError, match=r"line 2: unknown key 'weight'; allowed: K, M"):
        job_of("train", *arguments, "--config", path)
    path = written({"settings": {"M": 4, "weight": 1}})
    with pytest.raises(ConfigError, match=r"line 3: unknown key 'weight'; allowed: K, M"):
        job_of("train", *arguments, "--config", path)


def test_the_column_of_images_has_its_own_default(written: Any) -> None:
    values = {**required("extract"), "columns": {"image_size": 32}}
    job: Any = job_of("extract", "--config", written(values))
    assert job.columns == config.Columns(feature="image", image_size=32)
    job = job_of("extract", "--config", written(values), "--feature-column", "feature")
    assert job.columns.feature == "feature"
    assert job_of("extract", "--config", written(required("extract"))).columns.feature == "image"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_example_configs_are_those_of_commands(path: Path) -> None:
    VERBS[path.stem].settings.parse(read_mapping(path), origin=str(path))


MODULES = {  # that read the settings of a job
    "train": ("stages/training",),
    "encode": ("stages/encoding", "backbones/loading.py", "config/images.py"),
    "classify": (
        "stages/classification/classify.py",
        "stages/classification/scorers.py",
        "stages/classification/calibration.py",
        "stages/classification/decisions.py",
    ),
    "evaluate classification": ("stages/classification/evaluate.py",),
    "evaluate retrieval": ("stages/retrieval/evaluate.py",),
    "evaluate fewshot": ("stages/representation",),
    "evaluate clusterability": ("stages/representation",),
    "search": ("stages/retrieval/search.py",),
    "duplicates": ("stages/retrieval/duplicates",),
    "neighbors": ("stages/retrieval/neighbors.py", "stages/retrieval/one_model.py"),
    "deduplicate": ("stages/retrieval/duplicates",),
    "cluster": ("stages/retrieval/cluster.py", "stages/retrieval/one_model.py"),
    "export": ("stages/results/export.py",),
    "predictions": ("stages/results/shown_predictions.py",),
    "export-faiss": ("stages/retrieval/faiss_exchange.py",),
    "import-faiss": ("stages/retrieval/faiss_exchange.py",),
    "reindex": ("stages/nightly", "stages/encoding", "backbones/loading.py"),
    "extract": ("stages/preparation/extract.py", "backbones/loading.py"),
    "embed-classes": ("stages/preparation/embed_classes.py",),
    "repack": ("stages/preparation/repack.py",),
    "split": ("stages/preparation/split.py",),
    "import-xlsa17": ("stages/preparation/import_xlsa17.py",),
    "add-classes": ("stages/classification/add_classes.py",),
    "infer-semantics": ("stages/classification/infer_semantics.py",),
    "ablation": ("bench/ablation.py",),
    "demo": ("demo.py",),
    "quickstart": ("quickstart.py",),
    "report": ("cli/report.py",),
    "plan": ("cli/plan.py", "sizing"),
    "bench": ("cli/bench.py",),
    **dict.fromkeys(
        (verb for verb in VERBS if verb.startswith("snapshots")), ("cli/snapshots.py",)
    ),
}
NAMES = {"job", "_job", "settings", "work", "self"}  # of variables that hold settings
API = {"evaluate classification": "evaluate", "evaluate fewshot": "fewshot",
       "evaluate clusterability": "clusterability"}  # fmt: skip
DEVICE_READ_BY = {  # a job of another class that the device is handed to
    "reindex": "EncodeJob and ClassifyJob",
    "ablation": "TrainJob",
    "demo": "TrainJob, EncodeJob and ClassifyJob",
    "quickstart": "ExtractJob, TrainJob, EncodeJob and ClassifyJob",
}


def attributes(source: str) -> set[str]:
    """Attributes that code reads of settings, such as ``top_k`` and ``where.device``."""
    chains = set()
    for node in ast.walk(ast.parse(source)):
        parts: list[str] = []
        inner: ast.AST = node
        while isinstance(inner, ast.Attribute):
            parts.insert(0, inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name):
            chain = [inner.id, *parts]
            while chain and chain[0] in NAMES:
                chain.pop(0)
                chains |= {".".join(chain[:length]) for length in range(1, len(chain) + 1)}
    return chains


def read_by(verb: str) -> set[str]:
    """What the modules of a command read of its settings, and its function in ``raypq.api``."""
    files = [
        file
        for path in MODULES[verb]
        for file in ([ROOT / path] if path.endswith(".py") else sorted((ROOT / path).rglob("*.py")))
    ]
    sources = [file.read_text("utf-8") for file in files]
    name = API.get(verb, re.sub("[ -]", "_", verb))
    if function := vars(api).get(name):
        sources += [inspect.getsource(function), inspect.getsource(api._checked)]
    return set().union(*map(attributes, sources))


@pytest.mark.parametrize("verb", VERBS)
def test_every_setting_is_read_by_its_job(verb: str) -> None:
    """A setting that nobody reads would be accepted and ignored."""
    read = read_by(verb)
    fields = VERBS[verb].settings.model_fields
    unread = set(fields) - read
    assert not unread, f"raypq {verb} does not read {sorted(unread)}"
    if "where" in fields and fields["where"].annotation is config.ClusterSettings:
        assert "where.device" in read or verb in DEVICE_READ_BY, f"raypq {verb} uses no device"


ALONE = config.ClusterSettings(cluster="none", workers=1)
RUN_AGAIN: list[Any] = [
    config.ExtractJob(
        images=["a b", "it's"], backbone="net.pt", output="out", where=ALONE,
        network={"mean": [0.1, 0.2, 0.3], "precision": "bf16", "resize": 40},
        columns={"image_size": 32},
    ),
    config.EmbedClassesJob(
        names="n.txt", encoder="onnx:x", output="c", template=["a {}", "the {}"], overwrite=True
    ),
    config.TrainJob(
        method="opq", features=["f"], classes="c", output="m", settings={"M": 4, "metric": "dot"},
        cache_bytes=2 << 30,
    ),
    config.ClassifyJob(
        codes="s", classes="c", output="p", top_k=3, logit_scale=20.0, threshold=0.5,
        calibration=-0.5,
    ),
]  # fmt: skip


@pytest.mark.parametrize("job", RUN_AGAIN, ids=lambda job: job.verb)
def test_the_command_gives_the_job(job: Any) -> None:
    words = shlex.split(command_line(job))
    assert words[:2] == job.verb.split()
    assert job_of(words[1], *words[2:]) == job


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_help_of_every_option_is_a_sentence_for_it(verb: str) -> None:
    """Texts that are generated from settings: no bounds that do not exist, no values or names with
    another case, and something beside the default."""
    command = VERBS[verb]
    context = click.Context(command)
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is None:
            continue
        option, text = record
        assert not re.search(r"\bNone\b|x<=$|\d\.0\]", text), (option, text)
        sentence = text.partition("  [")[0]
        assert re.search(r"\w.*\.$", sentence), f"{option} has no text: {text!r}"
        first = sentence.split(" ")[0]
        assert not re.match(r"[A-Z]\w*:\S", first), f"{option}: another case of a name in {text!r}"
        choices = getattr(parameter.type, "choices", ())
        assert not first.endswith((":", ",")) or first[:-1].lower() not in choices, (option, text)


def test_metric_of_pairs_of_images_speaks_of_no_class() -> None:
    for verb in ("duplicates", "search", "evaluate retrieval", "export-faiss"):
        [metric] = [field for field in VERBS[verb].fields if field.path == ("metric",)]
        text = metric.parameter.help if isinstance(metric.parameter, click.Option) else ""
        assert text
        assert "class" not in text
