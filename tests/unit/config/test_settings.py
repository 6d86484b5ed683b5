"""Settings: what is wrong is named, with what is allowed; what is right cannot change."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from raypq.config import (
    ClassifyJob,
    ClusterSettings,
    TrainJob,
    parse_assignments,
    read_mapping,
)
from raypq.errors import ConfigError
from raypq.methods.pqzsl import PQZSLSettings


def test_an_unknown_key_lists_the_allowed_ones():
    with pytest.raises(ConfigError) as caught:
        PQZSLSettings.parse({"Gamma": 1.0}, origin="pqzsl settings")
    message = str(caught.value)
    assert message.startswith("pqzsl settings: unknown key 'Gamma'; allowed: ")
    assert set(PQZSLSettings.model_fields) == set(message.split("allowed: ")[1].split(", "))


def test_every_bad_key_is_told():
    values = {"M": 0, "K": "many", "x": 1, "metric": "l3", "alpha": -1}
    with pytest.raises(ConfigError) as caught:
        PQZSLSettings.parse(values)
    assert len(str(caught.value).splitlines()) == 5


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"M": 0}, "key 'M': .*greater than or equal to 1, found 0"),
        ({"M": 1.5}, "key 'M': .*found 1.5"),
        ({"M": None}, "key 'M': .*found None"),
        ({"M": [1]}, "key 'M'"),
        ({"K": 257}, "key 'K': .*less than or equal to 256"),
        ({"seed": -1}, "key 'seed'"),
        ({"alpha": "x"}, "key 'alpha': .*found 'x'"),
        ({"alpha": 0}, "key 'alpha': .*greater than 0"),
        ({"alpha": float("inf")}, "key 'alpha': .*finite"),
        ({"gamma": float("nan")}, "key 'gamma'"),
        ({"metric": "euclid"}, "key 'metric': .*'l2', 'cosine' or 'dot', found 'euclid'"),
        ({"normalise": "z"}, "key 'normalise'"),
        ({1: 2}, "settings: "),
    ],
)
def test_bad_values_name_key_and_value(values, says):
    with pytest.raises(ConfigError, match=says) as caught:
        PQZSLSettings.parse(values)
    assert caught.value.exit_code == 2


def test_a_required_key():
    with pytest.raises(ConfigError, match="key 'output' is required"):
        TrainJob.parse({"method": "pq", "features": []})


def test_nested_keys_are_named_in_full():
    values = {"method": "pq", "features": ["x"], "output": "y", "where": {"device": "tpu"}}
    with pytest.raises(ConfigError, match=r"key 'where\.device'"):
        TrainJob.parse(values)


def test_settings_are_frozen():
    settings = PQZSLSettings(M=4)
    with pytest.raises(ValidationError, match="frozen"):
        settings.M = 5
    assert settings.M == 4
    assert ClusterSettings().workers >= 1


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("K=16", 16),
        ("K=1e4", 1e4),
        ("K=2.5E-3", 2.5e-3),
        ("K=-1e4", -1e4),
        ("K=l2", "l2"),
        ("K=cosine", "cosine"),
        ("K=true", True),
        ("K=null", None),
        ("K=", None),
        ("K=none", "none"),
        ("K=a=b", "a=b"),
        ("K=[1, 2]", [1, 2]),
        ("K=[1", "[1"),
        (" K =1", 1),
    ],
)
def test_assignments(pair, value):
    found = parse_assignments([pair])
    assert found == {"K": value}
    assert type(found["K"]) is type(value)


@pytest.mark.parametrize("pair", ["K", "=1", " =1", ""])
def test_assignments_that_are_none(pair):
    with pytest.raises(ConfigError, match=r"--set .*expected key=value"):
        parse_assignments([pair])


def test_the_last_assignment_counts():
    assert parse_assignments(("M=1", "K=2", "M=3")) == {"M": 3, "K": 2}


@pytest.mark.parametrize(
    ("name", "text"),
    [("c.yaml", "M: 4\ngamma: 1e4\nmetric: l2\n"), ("c.json", '{"M":4,"gamma":1e4,"metric":"l2"}')],
)
def test_config_files(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    settings = PQZSLSettings.parse(read_mapping(tmp_path / name))
    assert (settings.M, settings.gamma, settings.metric) == (4, 10000.0, "l2")


def test_an_empty_config(tmp_path):
    (tmp_path / "c.yaml").write_text("# nothing\n")
    assert read_mapping(tmp_path / "c.yaml") == {}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("c.yaml", b"- 1\n- 2\n", "expected a mapping, found list"),
        ("c.yaml", b"M: [1\n", "not a valid config"),
        ("c.yaml", b"\xff\xfe\xfa", "not a valid config"),
        ("c.yaml", b"a: !!python/object:os.system x", "not a valid config"),
        ("c.json", b"{'M': 1}", "not a valid config"),
        ("c.json", b"3", "expected a mapping, found int"),
    ],
)
def test_bad_config_files(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=says) as caught:
        read_mapping(path)
    assert str(path) in str(caught.value)


def test_a_missing_config(tmp_path):
    with pytest.raises(ConfigError, match=r"c\.yaml: cannot read the config: No such file"):
        read_mapping(tmp_path / "c.yaml")


@pytest.mark.parametrize("threshold", [1.5, -0.1])
def test_a_threshold_that_no_probability_can_reach(threshold: float) -> None:
    job = {"codes": "c", "classes": "t.parquet", "output": "o", "threshold": threshold}
    assert ClassifyJob.parse(job).threshold == threshold, "of scores"
    with pytest.raises(ConfigError, match="threshold: expected a probability from 0 to 1"):
        ClassifyJob.parse({**job, "logit_scale": 100})
    assert ClassifyJob.parse({**job, "logit_scale": 100, "threshold": 1}).threshold == 1
