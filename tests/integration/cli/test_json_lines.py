"""``--log-json``: nothing but JSON, whoever prints."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from raypq import api, json_lines
from raypq.cli import main
from raypq.config import EncodeJob

SCRIPT = """
import os, subprocess, sys
from raypq import console, json_lines
with json_lines.wrapped(active=True) as streams:
    console.set_up(as_json=True, streams=streams)
    os.write(1, b"by descriptor\\n")
    print("by print")
    subprocess.run(["echo", "by a child"])
    sys.stderr.write('{"already": "JSON"}\\n')
    os.write(2, "no UTF-8: \\udcff, and no end of line".encode(errors="surrogateescape"))
    console.say("by the log", shards=3)
    console.emit('{"the": "result"}')
    END
"""


def run(end: str) -> tuple[int, str, list[dict[str, Any]]]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("END", end)], capture_output=True, check=False,
        timeout=150,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stderr.decode().splitlines()]
    return done.returncode, done.stdout.decode(), lines


@pytest.mark.parametrize(("end", "code"), [("pass", 0), ("sys.exit(3)", 3), ("os.abort()", -6)])
def test_every_line_is_an_object(end: str, code: int) -> None:
    returned, out, lines = run(end)
    assert returned == code
    assert out == '{"the": "result"}\n'
    messages = [line["message"] for line in lines if "message" in line]
    assert messages.count("by the log") == 1
    others = ["by descriptor", "by a child", "no UTF-8: \ufffd, and no end of line"]
    others += ["by print"] if end != "os.abort()" else []  # which the crash kept in its buffer
    assert set(others) <= set(messages)
    assert {"already": "JSON"} in lines
    assert all({"time", "level"} <= set(line) for line in lines if "message" in line)


def test_a_failing_command_waits_for_nobody() -> None:
    code, _, _ = run("json_lines._END = 300.0; sys.exit(3)")  # what it once waited, but 2 s
    assert code == 3


def test_long_lines_are_written_whole() -> None:
    """A socket of records shows each write: between parts, lines of others could come."""
    sizes = [4096, 8100, 8192, 8200, 16_384, 30_000, 100_000]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end = f"for size in {sizes}: console.say('long', text='x' * size)"
    command = [sys.executable, "-c", SCRIPT.replace("END", end)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs.fileno()) as process:
        theirs.close()
        writes = [*iter(lambda: ours.recv(1 << 20), b"")]
        ours.close()
    assert process.returncode == 0
    assert all(write.endswith(b"\n") for write in writes)
    assert [len(json.loads(write)["text"]) for write in writes if b'"long"' in write] == sizes


@pytest.mark.parametrize(
    "words",
    [
        ["encode", "--no-such-option"],
        ["encode", "--workers", "many"],
        ["no-such-command"],
        ["snapshots", "no-such-command"],
        ["snapshots"],
    ],
)
def test_usage_errors_are_objects(words: list[str]) -> None:
    done = CliRunner().invoke(main, [*words, "--log-json"])
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert json.loads(line)["level"] == "ERROR"
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert done.stderr.startswith("Usage: ")


def test_usage_errors_of_entry_points_are_objects(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--log-json"], ["--log-json", "--config", "x.yaml", "--unknown"]):
        with pytest.raises(SystemExit) as ended:
            api.run_job(EncodeJob, api.encode, words)
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert json.loads(line)["kind"] == "UsageError"


def test_lines_that_are_json_stay_as_they_are() -> None:
    assert json_lines.as_json(b'{"a": 1}') == b'{"a": 1}'
    for line in (b"3", b'"text"', b"[1]", b"{", b"plain"):
        assert json.loads(json_lines.as_json(line))["message"] == line.decode()


def raypq(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "raypq", *words, "--log-json"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def checked(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """All lines of stderr; those of stdout are objects, too."""
    assert all(isinstance(json.loads(line), dict) for line in done.stdout.splitlines())
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_errors_are_objects_with_the_failed_shards(home: Any) -> None:
    shard = sorted((home.root / "features").glob("*.parquet"))[2]
    shard.write_bytes(b"no parquet, and long enough to be looked at")
    encode = ("encode", "--model", home("old"), "--features", home("features"), "--cluster", "none")
    *_, last = checked(done := raypq(*encode, "--output", home("codes")))
    assert done.returncode == 1
    assert (last["level"], last["kind"]) == ("ERROR", "JobError")
    (failed,) = last["failed"]
    assert failed["shard"] == str(shard)
    assert "Parquet" in failed["reason"]
    *_, last = checked(done := raypq(*encode, "--output", home("codes"), "--debug"))
    assert done.returncode == 1
    assert "Traceback" in last["traceback"]
    (last,) = checked(done := raypq("encode", "--model", home("old"), "--output", home("codes")))
    assert done.returncode == 2
    assert last["kind"] == "ConfigError"


@pytest.mark.ray
def test_a_run_on_ray_prints_nothing_but_json(home: Any) -> None:
    done = raypq(
        "encode", "--model", home("old"), "--features", home("features"), "--workers", "1",
        "--output", home("codes"),
    )  # fmt: skip
    lines = checked(done)
    assert done.returncode == 0, lines
    assert json.loads(done.stdout)["shards"] == home.shards
    assert Path(home("codes"), "snapshots").exists()
