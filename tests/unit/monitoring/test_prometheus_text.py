"""The text format of Prometheus."""

from __future__ import annotations

import math
import shutil
import subprocess

import pytest

from raypq.monitoring.prometheus_text import Gauge, families, text_of


def example() -> list[Gauge]:
    version = Gauge(name="raypq_store_version", help="Number of the latest version.")
    version.set(3, store='s3://bucket/a "quoted" \\ name\n')
    version.set(1.5, store="s3://bucket/b")
    empty = Gauge(name="raypq_empty", help="Without samples.")
    plain = Gauge(name="raypq_run_success", help="1 if it succeeded.")
    plain.set(math.inf)
    return [version, empty, plain]


def test_families_without_samples_are_left_out_and_labels_escaped() -> None:
    text = text_of(example(), {"verb": "reindex"})
    assert text == (
        "# HELP raypq_store_version Number of the latest version.\n"
        "# TYPE raypq_store_version gauge\n"
        'raypq_store_version{verb="reindex",store="s3://bucket/a \\"quoted\\" \\\\ name\\n"} 3\n'
        'raypq_store_version{verb="reindex",store="s3://bucket/b"} 1.5\n'
        "# HELP raypq_run_success 1 if it succeeded.\n"
        "# TYPE raypq_run_success gauge\n"
        'raypq_run_success{verb="reindex"} +Inf\n'
    )


def test_families_are_read_back() -> None:
    text = text_of(example(), {"verb": "reindex"})
    found = families(text)
    assert list(found) == ["raypq_store_version", "raypq_run_success"]
    assert "".join(found.values()) == text


@pytest.mark.parametrize("mark", ["\x0b", "\x1e", "\x85", "\u2028", "\r"])
def test_only_a_newline_ends_a_line(mark: str) -> None:
    gauge = Gauge(name="raypq_store_version", help="Number of the latest version.")
    gauge.set(3, store=f"a{mark}b")
    text = text_of([gauge], {})
    assert families(text) == {"raypq_store_version": text}


def test_comments_without_a_name_belong_to_no_family() -> None:
    assert families("#\n# note\nraypq_run_success 1\n") == {
        "raypq_run_success": "raypq_run_success 1\n"
    }


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_accepts_it() -> None:
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=text_of(example(), {"verb": "reindex"}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
