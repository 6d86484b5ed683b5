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

ROOT = Path(raypq.__file__).parent
KEYS = {
    "feature-width": "width",
    "cache-gb": "cache_bytes",
    "label-column": "label",
    "debug": None,
    "set": None,
}
OPTION = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]*)")
COMMAND = re.compile(
    r"\b(ray|raypq) ([a-z-]+(?: [a-z0-9-]+)?)((?: [A-Z…]+| --[a-z0-9-]+(?: [A-Za-z_…]+)?)*)"
)


def options(command: click.Command) -> set[str]:
    if isinstance(command, click.Group):
        return set().union(*(options(one) for one in command.commands.values()))
    return {name.removeprefix("--") for one in command.params for name in one.opts}


def of_verb(words: list[str]) -> set[str]:
    command: click.Command = main
    for word in words:
        if isinstance(command, click.Group) and word in command.commands:
            command = command.commands[word]
    return options(command)


def docstrings(tree: ast.AST) -> set[int]:
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def texts(tree: ast.AST) -> Iterator[str]:
    skipped = docstrings(tree)
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
        assert option in options(main), f"no verb has --{option}"
        key = KEYS.get(option, option.replace("-", "_"))
        if key:
            assert re.search(rf"(?<![\w-]){key}\b", rest), f"--{option} without its key {key}"


def test_a_night_takes_what_its_warnings_advise() -> None:
    """``--on-bad-shard fail`` tries again what is left out."""
    assert "on-bad-shard" in of_verb(["reindex"])
