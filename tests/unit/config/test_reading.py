"""Config files: every value is read as it looks, or refused with file, line and what to do."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

import click
import pytest

from raypq.cli.options import Number
from raypq.config import ClusterSettings, EncodeJob, ReindexJob, parse_assignments, read_mapping
from raypq.data.storage import StorageSettings
from raypq.errors import ConfigError
from raypq.methods import registry
from raypq.methods.pq import PQSettings


def read(tmp_path: Path, text: str | bytes, name: str = "c.yaml") -> dict[str, Any]:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else textwrap.dedent(text).encode())
    return dict(read_mapping(path))


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("M: 4\nK: 16\nM: 8\n", 3, "M"),
        ("M: 4\n'M': 4\n", 2, "M"),
        ("a:\n  b: 1\n  c: {d: 1, d: 1}\n", 3, "a.c.d"),
        ("a:\n- b: 1\n- b: 1\n  b: 2\n", 4, "a.1.b"),
        ("classify:\n  top_k: 1\nwhere: {}\nclassify:\n  top_k: 2\n", 4, "classify"),
        ("a: &x {b: 1}\nc: {<<: *x, <<: *x}\n", 2, "c.<<"),
        ("? M\n: 4\n? M\n: 5\n", 3, "M"),
    ],
)
def test_a_key_that_is_there_twice_is_refused(tmp_path: Path, text: str, line: int, key: str):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'c.yaml'}, line {line}: key '{key}' is there twice")
    assert "remove one" in message


@pytest.mark.parametrize(
    "text",
    ['{"M": 4, "K": 16, "M": 8}', '{"a": {"b": [{"c": 1, "c": 1}]}}', '{"M": 4, "\\u004d": 4}'],
)
def test_json_is_no_other(tmp_path: Path, text: str):
    with pytest.raises(ConfigError, match=r"c\.json.*is there twice"):
        read(tmp_path, text, "c.json")


AS_THEY_READ: list[tuple[str, Any]] = [
    ("no", "no"), ("on", "on"), ("y", "y"), ("Yes", "Yes"), ("OFF", "OFF"),
    ("true", True), ("False", False), ("null", None), ("~", None), ("", None), ("None", "None"),
    ("12:30:00", "12:30:00"), ("12:30", "12:30"), ("190:20", "190:20"),
    ("2026-01-02", "2026-01-02"), ("2026-01-02 10:00:00", "2026-01-02 10:00:00"),
    ("1e4", 1e4), ("1E4", 1e4), ("1.5e3", 1.5e3), ("1e-4", 1e-4), ("-2E+3", -2e3), (".5", 0.5),
    ("16", 16), ("+16", 16), ("-3", -3), ("0", 0), ("0x10", 16), ("0o17", 15), ("3.0", 3.0),
    ("1_000_000", 1_000_000), ("1_6", "1_6"), ("2019_01", "2019_01"), ("0b11", "0b11"),
    (".inf", float("inf")), ("inf", "inf"), ("nan", "nan"), ("=", "="), ("l2", "l2"),
    ("'010'", "010"), ('"no"', "no"), ("'~'", "~"), ("a#b", "a#b"), ("s3://b/x?y%20z", "s3://b/x?y%20z"),
    ("[no, 1e4, 12:30]", ["no", 1e4, "12:30"]), ("{no: on}", {"no": "on"}),
    ("1.10", 1.1), ("v1.10", "v1.10"), ("1.2.3", "1.2.3"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), AS_THEY_READ)
def test_scalars_are_read_as_they_look(tmp_path: Path, text: str, value: Any):
    for found in (read(tmp_path, f"k: {text}\n")["k"], parse_assignments([f"k={text}"])["k"]):
        assert found == value
        assert type(found) is type(value)


VANISHING = ["1e-400", "-1e-400", "+.5E-9999", "0.0001e-330", f"0.{'0' * 400}1"]


@pytest.mark.parametrize("text", VANISHING)
def test_a_number_that_would_become_0_is_refused(tmp_path: Path, text: str):
    json_text = text.replace("+.5", "0.5")
    with pytest.raises(ConfigError, match=r"c\.json, line 1: .*smaller than any number.*write 0"):
        read(tmp_path, f'{{"k": [{json_text}]}}', "c.json")
    with pytest.raises(ConfigError, match=r"--set k.*smaller than any number"):
        parse_assignments([f"k=[1, {text}]"])
    with pytest.raises(ConfigError, match="gpus_per_worker"):
        ClusterSettings(gpus_per_worker=text)
    with pytest.raises(click.BadParameter, match="smaller than any number"):
        Number(0).convert(text.lstrip("-"), None, None)


@pytest.mark.parametrize("text", ["0", "0.0", "-0.0", "0e-400", "0.000E9", "1e-320", "5e-324"])
def test_zero_and_the_smallest_numbers_are_read(tmp_path: Path, text: str):
    for found in (
        read(tmp_path, f"k: {text}\n")["k"],
        read(tmp_path, f'{{"k": {text}}}', "c.json")["k"],
    ):
        assert found == float(text)
    assert Number(0).convert(text, None, None) == float(text)


@pytest.mark.parametrize(
    "text", ["010", "-010", "+07", "0_1", "00", "1e999", "9" * 5000, *VANISHING]
)
def test_numbers_that_read_in_two_ways_are_refused(tmp_path: Path, text: str):
    with pytest.raises(ConfigError, match=r"c\.yaml, line 2: .*quotes"):
        read(tmp_path, f"a: 1\nk: {text}\n")
    with pytest.raises(ConfigError, match=r"--set k: .*quotes"):
        parse_assignments([f"k={text}"])


@pytest.mark.parametrize("pair", ["k=# y", "k=*x", "k=&x", "k=a: b", "k=- a", "k=%", "k=!x"])
def test_an_assignment_is_no_yaml_document(pair: str):
    assert parse_assignments([pair]) == {"k": pair[2:]}


REFUSED = [
    ("1: x", "expected text as a key, found 1"),
    ("true: x", "expected text as a key, found true"),
    ("? [a]\n: x", "expected text as a key, found a list"),
    (": x", "not a valid config"),
    ("~: x", "expected text as a key, found ~"),
    ("M:\t4", "indent with spaces"),
    ("a: 1\n---\nb: 2", "expected one document"),
    ("a:\n\tb: 1", "indent with spaces"),
    ("a: b: c", "quotes"),
    ("a: !!binary aGk=", "unknown tag"),
    ("a: !!set {x}", "unknown tag"),
    ("a: !!timestamp 2026-01-01", "unknown tag"),
    ("a: !ENV ${X}", "unknown tag"),
    ("a: !!python/name:os.system", "not a valid config"),
    ("a: !!int x", "is no int"),
    ("a: &x [*x]", "inside of what it stands for"),
    ("a: *nothing", "undefined alias"),
    ("a: {<<: 3}", "<<: expected a mapping"),
    ("- a", "expected a mapping, found list"),
    ("M:4", "expected a mapping, found str"),
    ("a: [" * 200, "not a valid config"),
    ("a: " + "[" * 3000, "nested too deeply"),
    ("a: " + "[" * 100 + "]" * 100, "nested too deeply"),
    (b"a: \x07", "not a valid config"),
    (b"\xff\xfea\x00", "expected UTF-8 text"),
]


@pytest.mark.parametrize(("text", "says"), REFUSED)
def test_what_has_no_plain_value_is_refused(tmp_path: Path, text: str | bytes, says: str):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert says in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "c.yaml"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": NaN}', "found NaN"),
        ('{"a": -Infinity}', "found -Infinity"),
        ('{"a": 1e400}', "larger than any number"),
        ('{"a": 1,}', "line 1, column"),
        ('{"a": 010}', "not a valid config"),
        ("[1]", "expected a mapping, found list"),
        ("", "not a valid config"),
        ('{"a":' * 3000, "nested too deeply"),
    ],
)
def test_what_json_does_not_have_is_refused(tmp_path: Path, text: str, says: str):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text, "c.json")
    assert says in str(caught.value)


def test_aliases_cannot_blow_up(tmp_path: Path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    with pytest.raises(ConfigError, match="aliases repeat too much"):
        read(tmp_path, "\n".join(lines))


def test_what_people_write_stays(tmp_path: Path):
    text = """\
    ---
    base: &base {cluster: none, workers: 1}
    a: {<<: *base, workers: 2}       # its own key counts
    b: [*base, *base]
    text: |
      two
      lines
    ...
    """
    base = {"cluster": "none", "workers": 1}
    expected = {
        "base": base, "a": base | {"workers": 2}, "b": [base, base], "text": "two\nlines\n"
    }  # fmt: skip
    assert read(tmp_path, text) == expected
    plain = textwrap.dedent(text)
    assert read(tmp_path, b"\xef\xbb\xbf" + plain.encode()) == expected
    assert read(tmp_path, plain.replace("\n", "\r\n").encode()) == expected
    assert read(tmp_path, b'\xef\xbb\xbf{"M": 4}', "c.json") == {"M": 4}
    assert read(tmp_path, "# nothing\n") == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("M: 4\nK: 16\n", None),
        ("M: '4'\nK: 16.0\n", None),
        ("M: 4\nK: 1e1\n", None),
        ("M: true\nK: 16\n", "'M': expected a whole number .*found True"),
        ("M: 1_6\nK: 16\n", "'M': expected a whole number .*found '1_6'"),
        ("M: 12:30\nK: 16\n", "'M': expected a whole number .*found '12:30'"),
        ("M: 4\nK: 16\nseed: ~\n", "'seed': expected a whole number .*found None"),
        ("M: 4\nK: 16\ntolerance: yes\n", "'tolerance': expected a finite number"),
        ("M: 4\nK: 16\ntolerance: .nan\n", "'tolerance': expected a finite number"),
        ("M: 4\nK: 16\nmetric: no\n", "'metric': expected 'l2', 'cosine' or 'dot', found 'no'"),
        ("M: [4]\nK: 16\n", "'M': expected a whole number"),
    ],
)
def test_settings_take_numbers_as_they_read(tmp_path: Path, text: str, says: str | None):
    values = read(tmp_path, text)
    if says is None:
        settings = PQSettings.parse(values)
        assert settings.M == 4
        assert float(values["K"]) == settings.K
    else:
        with pytest.raises(ConfigError, match=says):
            PQSettings.parse(values)


def test_errors_name_the_line(tmp_path: Path):
    path = tmp_path / "n.yaml"
    text = "model: m\nfeatures: [x]\ncodes: c\nclassify:\n- classes: c\n  output: p\n  topk: 3\n"
    path.write_text(text + "where:\n  workers: many\n  threads: true\n")
    with pytest.raises(ConfigError) as caught:
        ReindexJob.parse(read_mapping(path), origin=str(path))
    found = sorted(str(caught.value).splitlines())
    expected = [
        f"{path}, line 10: key 'where.threads': expected a whole number",
        f"{path}, line 7: unknown key 'classify.0.topk' of raypq reindex; allowed: ",
        f"{path}, line 9: key 'where.workers': expected a whole number",
    ]
    assert len(found) == len(expected)
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start)


def test_errors_of_a_method_name_the_line_too(tmp_path: Path):
    path = tmp_path / "s.yaml"
    path.write_text("K: 16\nM: many\nseed: -1\n")
    settings = read_mapping(path).with_options({("seed",): 1.5, ("alpha",): 1}, "pq settings")
    with pytest.raises(ConfigError) as caught:
        registry.create("pq", settings)
    first, second, third = str(caught.value).splitlines()
    assert first.startswith(f"{path}, line 2: key 'M': expected a whole number")
    assert second.startswith("pq settings: key 'seed': expected a whole number")
    assert third.startswith("pq settings: unknown key 'alpha'; allowed: K, M")


def test_switches_read_as_people_write_them():
    base = {"model": "m", "features": "x", "codes": "c"}
    for word in ("yes", "On", "y", "TRUE", True, 1):
        assert ReindexJob.parse({**base, "dry_run": word}).dry_run is True
    for word in ("no", "off", False, 0):
        assert ReindexJob.parse({**base, "dry_run": word}).dry_run is False
    for word in ("", "t", "1", 2, None, [True]):
        with pytest.raises(ConfigError, match="'dry_run': expected true or false"):
            ReindexJob.parse({**base, "dry_run": word})


def test_an_empty_section_is_refused():
    base = {"model": "m", "features": ["x"], "codes": "c"}
    for key in ("classify", "where", "drift", "columns"):
        with pytest.raises(ConfigError, match=f"'{key}': .*found None; give it a value"):
            ReindexJob.parse({**base, key: None})


def test_a_later_assignment_is_told():
    told: list[tuple[str, Any, Any]] = []
    values = parse_assignments(
        ["M=1", "K=2", "M=3", "K=2"], replaced=lambda *about: told.append(about)
    )
    assert values == {"M": 3, "K": 2}
    assert told == [("M", 3, 1)]


@pytest.mark.parametrize("name", ["ATEMPTS", "attempts", "PART", "ENDPOINT", "SERVICE", "PORTS"])
def test_a_misspelt_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv(f"RAYPQ_STORAGE_{name}", "3")
    with pytest.raises(ConfigError, match=rf"RAYPQ_STORAGE_{name}; allowed: .*_ATTEMPTS"):
        StorageSettings.current()


def test_variables_of_a_service_are_none_of_ours(monkeypatch: pytest.MonkeyPatch):
    for name in ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_S3", "PORT", "PORT_80_TCP_ADDR"):
        monkeypatch.setenv(f"RAYPQ_STORAGE_{name}", "10.0.0.1")
    monkeypatch.setenv("RAYPQ_STORAGE_ENDPOINT_URL", "")
    monkeypatch.setenv("RAYPQ_STORAGE_ATTEMPTS", "3")
    assert StorageSettings.current().attempts == 3


@pytest.mark.parametrize("value", ["true", "3.5", "many", "0", "1_0"])
def test_a_variable_of_another_kind_is_named(monkeypatch: pytest.MonkeyPatch, value: str):
    monkeypatch.setenv("RAYPQ_STORAGE_ATTEMPTS", value)
    with pytest.raises(ConfigError, match=r"RAYPQ_STORAGE_ATTEMPTS .*expected a whole number"):
        StorageSettings.current()


def test_one_path_is_a_list_of_one():
    for given in ("x", Path("x"), ["x"], (Path("x"),), iter([Path("x")])):
        assert EncodeJob(model=Path("m"), features=given, output="o").features == ["x"]
    assert os.fspath(Path("m")) == EncodeJob(model=Path("m"), features="x", output="o").model


def test_a_tilde_is_read_as_a_shell_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("M: 4\n")
    (tmp_path / "~nobody-here").mkdir()
    (tmp_path / "~nobody-here" / "c.yaml").write_text("M: 5\n")
    assert read_mapping("~/c.yaml") == {"M": 4}
    assert read_mapping("~nobody-here/c.yaml") == {"M": 5}
