"""Advice in messages: what it names is there, on the command line and in a config alike.

A message reaches people by the command line, by the config of a job, and from Python: an option
that it names stands beside its key, unless the verb that has the option is named with it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import raypq
from raypq.cli import main
from raypq.cli.job_command import JobCommand

ROOT = Path(raypq.__file__).parent
OPTION = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]*)")
COMMAND = re.compile(
    r"\b(ray|raypq) ([a-z-]+(?: [a-z0-9-]+)?)((?: [A-Z…]+| --[a-z0-9-]+(?: [A-Za-z_…]+)?)*)"
)


def commands(command: click.Command) -> Iterator[click.Command]:
    yield command
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            yield from commands(inner)


def options(command: click.Command) -> set[str]:
    return {
        name.removeprefix("--")
        for one in commands(command)
        for parameter in one.get_params(click.Context(one))
        for name in (*parameter.opts, *parameter.secondary_opts)
    }


OPTIONS = options(main)
KEYS = {  # of options that have one
    name.removeprefix("--"): field.path[-1]
    for command in commands(main)
    if isinstance(command, JobCommand)
    for field in command.fields
    for name in field.parameter.opts
    if not field.is_mapping
}


def of_verb(words: list[str]) -> set[str]:
    command: click.Command = main
    for word in words:
        if isinstance(command, click.Group) and word in command.commands:
            command = command.commands[word]
    return options(command)


def docstrings(tree: ast.AST) -> set[int]:
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def helps(tree: ast.AST) -> set[int]:
    """Texts of the fields of settings: their options, and descriptions that help shows."""
    return {
        id(text)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Field", "Option")
        for text in ast.walk(node)
        if isinstance(text, ast.Constant)
    }


def texts(tree: ast.AST) -> Iterator[str]:
    skipped = docstrings(tree) | helps(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
            yield "".join(str(getattr(part, "value", "…")) if isinstance(part, ast.Constant)
                          else "…" for part in node.values)  # fmt: skip
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from [] if id(node) in skipped else [node.value]


def messages() -> list[tuple[str, str]]:
    """Every text outside of the command line itself that names an option."""
    others = ("cli", "bench", "reporting")  # reporting: the variables of its page
    paths = [path for path in sorted(ROOT.rglob("*.py")) if path.parent.name not in others]
    found = [(path, text) for path in paths for text in texts(ast.parse(path.read_text()))]
    return [
        (f"{path.relative_to(ROOT)}: {text[:40]}", text)
        for path, text in found
        if OPTION.search(text) and path.name not in ("api.py", "__main__.py")
    ]


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in messages()])
def test_advice_names_options_that_are_there(text: str) -> None:
    for program, words, rest in COMMAND.findall(text):
        if program == "raypq":
            assert set(OPTION.findall(rest)) <= of_verb(words.split()), words
    rest = COMMAND.sub("", text)
    for option in OPTION.findall(rest):
        assert option in OPTIONS, f"no verb has --{option}"
        if key := KEYS.get(option):
            assert re.search(rf"(?<![\w-]){key}\b", rest), f"--{option} without its key {key}"


def test_a_night_takes_what_its_warnings_advise() -> None:
    """``--on-bad-shard fail`` tries again what is left out."""
    assert "on-bad-shard" in of_verb(["reindex"])
