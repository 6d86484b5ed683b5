"""The command line is quick, shows how it is used, and says in a few lines what is wrong."""

from __future__ import annotations

import json
import logging
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from raypq import api, console, exits
from raypq.cli import main
from raypq.config import EncodeJob
from raypq.errors import InputError, JobError, ShardFailure
from raypq.kernels import native


def verbs(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*words, name)
        if isinstance(command, click.Group):
            yield from verbs(command, (*words, name))


VERBS = sorted(verbs(main))


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_every_help_has_an_example(words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, [*words, "--help"])
    assert result.exit_code == 0
    assert "Example:" in result.output
    assert result.output.isascii()  # click prints it as it is
    example = result.output.partition("Example:")[2].split("\n\n")[0]
    assert f"raypq {' '.join(words)}" in example


def test_help_is_quick() -> None:
    """Less than 0.3 s of CPU, the best of five: on a free machine the time that passes as well."""
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "raypq", "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if seconds[-1] < 0.3:
            return
    raise AssertionError(f"raypq --help takes {min(seconds):.2f} s")


MANY = [
    ShardFailure(shard=f"/in/{number:04d}.parquet", reason="expected x, found y")
    for number in range(1000)
]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("a.parquet", expected="x", found="y"), 1, "a.parquet: expected x, found y"),
        (JobError(MANY, 3), 1, "981 more lines"),
        (OSError(28, "No space left on device"), 1, "No space left"),
        (ZeroDivisionError("division by zero"), 1, "unexpected ZeroDivisionError"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_fit_on_the_screen(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    console.set_up()
    with pytest.raises(SystemExit) as ended, exits.handle_errors(debug=False):
        raise error
    assert ended.value.code == code
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told
    assert len(told.splitlines()) <= 22


def test_debug_lets_errors_through() -> None:
    with pytest.raises(InputError), exits.handle_errors(debug=True):
        raise InputError("a", expected="x", found="y")


def test_structured_lines_hold_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    console.set_up(as_json=True)
    console.say("hello", shards=3)
    with pytest.raises(SystemExit), exits.handle_errors(debug=False):
        raise InputError("a.parquet", expected="x", found="y")
    first, last = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (first["message"], first["shards"], first["level"]) == ("hello", 3, "INFO")
    assert (last["level"], last["kind"]) == ("ERROR", "InputError")
    assert "expected x, found y" in last["message"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "model: m\nfeatures: [f]\noutput: o\nmodle: m\n",
            "unknown key 'modle' of raypq encode; allowed: ",
        ),
        ("model: m\nfeatures: [f]\n", "key 'output' is required"),
        ("model: m\nfeatures: {f: g}\noutput: o\n", "key 'features': expected a list"),
        ("model: m\nfeatures: [f]\noutput: o\nprecision:\n", ", line 4: key 'precision'"),
        ("model: m\nfeatures: [f]\noutput: o\nprecision: fp8\n", "'fp32' or 'bf16'"),
        ("model: m\nfeatures: [f]\noutput: o\nwhere: {worker: 2}\n", "unknown key 'where.worker'"),
        ("model: m\nfeatures: [f]\noutput: o\nwhere: {workers: 0}\n", "key 'where.workers'"),
        ("model: [m\n", "not a valid config"),
        ("- model\n", "expected a mapping, found list"),
    ],
)
def test_a_config_that_is_wrong_names_the_key(
    tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        api.run_job(EncodeJob, api.encode, ["--config", str(path)])
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in told
    assert str(path) in told


def test_an_unknown_key_of_a_section_is_told_what_the_section_allows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("model: m\nfeatures: [f]\noutput: o\nwhere: {worker: 2}\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        api.run_job(EncodeJob, api.encode, ["--config", str(path)])
    allowed = capsys.readouterr().err.partition("allowed: ")[2]
    assert "workers" in allowed
    assert "features" not in allowed


class _Terminal:
    """A stderr that says it is a terminal."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True

    encoding = "utf-8"


def test_a_terminal_gets_a_bar_with_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal: Any = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    console.set_up()
    with console.progress(4, "encode") as progress:
        for _ in range(3):
            time.sleep(0.12)
            progress.done(1000)
        time.sleep(0.3)
    assert "encode" in terminal.text
    assert "3/4" in terminal.text
    assert "images/s" in terminal.text
    assert "0:00:0" in terminal.text


def test_elsewhere_it_is_plain_lines(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="raypq"), console.progress(2, "encode") as progress:
        progress.done(500)
        progress.done(500)
    (record,) = caplog.records
    assert "encode: 2/2 shards" in record.getMessage()
    assert record.__dict__["fields"]["images"] == 1000


def parameters() -> Iterator[tuple[tuple[str, ...], click.Command, click.Parameter]]:
    for words in VERBS:
        command: click.Command = main
        for word in words:
            assert isinstance(command, click.Group)
            command = command.commands[word]
        for parameter in command.get_params(click.Context(command)):
            yield words, command, parameter


PARAMETERS = list(parameters())


def refused(command: click.Command, parameter: click.Parameter, text: str) -> str | None:
    """What the command says of a value of an option, and of nothing else."""
    context = click.Context(command)
    try:
        parameter.type_cast_value(context, (text,) if parameter.multiple else text)
    except click.UsageError as error:
        return error.format_message()
    return None


@pytest.mark.parametrize(
    ("words", "command", "parameter"),
    [row for row in PARAMETERS if isinstance(row[2].type, click.types.FloatParamType)],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else getattr(value, "name", ""),
)
def test_no_number_is_nan(
    words: tuple[str, ...], command: click.Command, parameter: click.Parameter
) -> None:
    for text in ("nan", "inf", "-inf", "1e999", "one", ""):
        message = refused(command, parameter, text)
        assert message is not None
        assert parameter.opts[0] in message


def test_bounds_are_told_with_the_option() -> None:
    for words, command, parameter in PARAMETERS:
        if isinstance(parameter.type, click.IntRange) and parameter.type.min is not None:
            message = refused(command, parameter, str(parameter.type.min - 1))
            assert message is not None, words
            assert parameter.opts[-1].lower() in message.lower()


@pytest.mark.parametrize("text", ["", "  "])
def test_no_path_on_the_command_line_is_empty(text: str) -> None:
    """As ``--output "$OUTPUT"`` gives where the variable is not set."""
    for words, given in {
        ("train", "pq"): ["--features", text, "--output", "m"],
        ("train", "sae"): ["--features", "f", "--output", text],
        ("train", "opq"): ["--features", "f", "--output", "m", "--config", text],
        ("encode",): ["--model", text, "--features", "f", "--output", "c"],
        ("classify",): ["--codes", text, "--classes", "c", "--output", "p"],
        ("evaluate", "classification"): ["--predictions", "p", "--classes", "c", "--json", text],
        ("evaluate", "retrieval"): ["--codes", "c", "--queries", text],
        ("search",): ["--codes", "c", "--queries", "q", "--output", text],
        ("reindex",): ["--config", text],
        ("snapshots", "list"): [text],
        ("snapshots", "gc"): [text, "--delete"],
        ("report",): [text],
        ("bench", "pipeline"): ["--classes", text],
        ("bench", "all"): ["--show", text],
        ("plan",): ["--images", "9", "--rates", text],
        ("demo",): ["--output", text],
        ("import-faiss",): [text, "--output", "m"],
    }.items():
        result = CliRunner().invoke(main, [*words, *given])
        assert result.exit_code == 2, (words, result.output)
        assert "expected a path or URI, found" in result.output, words


def test_a_wrong_option_is_named_as_it_is_written() -> None:
    result = CliRunner().invoke(main, ["encode", "--model", "m", "--features", "", "--output", "o"])
    assert "command line: --features: expected a path or URI" in result.output
    result = CliRunner().invoke(
        main, ["classify", "--codes", "c", "--classes", "k", "--output", "o", "--calibration", "x"]
    )
    assert "command line: --calibration: expected a finite number or 'model'" in result.output
    result = CliRunner().invoke(
        main, ["encode", "--model", "m", "--features", "f", "--output", "o", "--id-column", ""]
    )
    assert "command line: --id-column: expected text that is not empty" in result.output


def test_with_json_lines_text_for_people_is_json_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every verb whose result is text, or has a table for people."""
    result = {"output": "o", "images": 1, "table": ["bird: sparrow"]}
    monkeypatch.setattr(api, "infer_semantics", lambda job: dict(result))
    monkeypatch.setattr(api, "report", lambda *_, **__: 3)
    monkeypatch.setattr("raypq.demo.run", lambda settings: "two\nlines")
    monkeypatch.setattr("raypq.bench.ablation.run", lambda job: ([], "two\nlines"))
    monkeypatch.setattr("raypq.bench.runner.markdown", lambda *_, **__: "two\nlines")
    infer = ["infer-semantics", "--model", "m", "--codes", "c", "--classes", "t", "--output", "o"]
    train = ["--train", "t", "--test", "t", "--classes", "c"]
    show = ["bench", "all", "--show", "r.json"]
    report = ["report", "r", "--output", "o.html"]
    for words in (infer, report, ["demo"], show, ["ablation", "gpq-bits", *train]):
        found = CliRunner().invoke(main, [*words, "--log-json"])
        assert found.exit_code == 0, found.output
        (line,) = found.stdout.splitlines()
        assert isinstance(json.loads(line), dict)
        assert all(isinstance(json.loads(text), dict) for text in found.stderr.splitlines())
    found = CliRunner().invoke(main, infer)
    assert found.stderr == "bird: sparrow\n"
    assert CliRunner().invoke(main, ["demo"]).stdout == "two\nlines\n"


def test_doctor_fails_without_native_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that an image without them is not built."""
    assert CliRunner().invoke(main, ["doctor"]).exit_code == 0
    monkeypatch.setattr(native, "_native", None)
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["kernels"] == "torch"
    assert "no native kernels" in done.stderr
