"""What the pages say holds: every command runs, code reads what it says, tables are up to date."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from raypq import api
from raypq.cli import main
from raypq.config import ClusterSettings
from raypq.data import synthetic
from raypq.data.store import manifest_tree, snapshot

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    *(
        DOCS / f"{name}.md"
        for name in ("concepts", "formats", "images", "benchmarks", "scale", "results")
    ),
    *sorted((DOCS / "methods").glob("*.md")),
]
ON_RAY = (
    "train", "extract", "encode", "classify", "evaluate", "split", "demo", "infer-semantics",
    "search", "duplicates", "deduplicate",
)  # fmt: skip
NEVER_ON_RAY = {"fewshot", "clusterability"}  # of `evaluate`: rows in memory
# Printed to be filled in, or too long for a test: FILE, CLASSES and rates.json are the reader's.
ELSEWHERE = {
    "raypq bench all --classes CLASSES --json FILE": "unit/sizing/test_sizing.py, by its parts",
    "raypq bench all --show FILE": "the generated block below it",
    "raypq bench search --peer-python peers/bin/python --json FILE": (
        "tests/unit/bench/test_peers.py, by its parts"
    ),
    "raypq bench rates --json rates.json": "tests/unit/sizing/test_sizing.py, by its function",
    "raypq plan --images 1000000 --rates rates.json": "the generated blocks below it",
    "raypq embed-classes": "tests/integration/preparation/test_embed_classes.py, by its function",
    # Two networks, step by step, as quickstart runs them:
    **dict.fromkeys(
        (
            "raypq extract --images shards",
            "raypq train eszsl --features image-features",
            "raypq encode --model model --features image-features",
            "raypq classify --codes codes",
            "raypq evaluate classification --predictions predictions",
            "raypq export predictions --classes classes.parquet",
        ),
        "tests/integration/cli/test_quickstart.py",
    ),
    "raypq quickstart": "tests/integration/cli/test_quickstart.py, with networks in files",
    "raypq report first": "tests/integration/cli/test_quickstart.py",
    "raypq ablation": "tests/integration/training/test_cifar10.py, by its function",
    **dict.fromkeys(
        (
            "raypq train opq --features features/train --output opq --set M=16",
            "raypq encode --model opq --features features/",
            "raypq train linear --codes train-codes --classes classes.parquet --output head",
            "raypq classify --codes test-codes --model head --classes classes.parquet",
            "raypq evaluate classification --predictions predictions --classes classes.parquet",
        ),
        "tests/integration/training/test_cifar10.py, by their functions",
    ),
}


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.M)


def _lines(block: str) -> list[str]:
    return [line for line in block.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder as the pages assume it: features/train, features/all, classes.parquet."""
    root = tmp_path_factory.mktemp("docs")
    rng = np.random.default_rng(5)
    world = synthetic.SyntheticClasses.create(classes=24, dx=32, da=16, rng=rng)
    synthetic.write_classes(root / "classes.parquet", world)
    for name, chosen in (("train", np.flatnonzero(world.seen)), ("all", np.arange(24))):
        synthetic.write_features(
            root / "features" / name, world, classes=chosen, images=600, shards=3, name=name,
            rng=rng,
        )  # fmt: skip
    texts = synthetic.SyntheticClasses.create(classes=24, dx=32, da=32, rng=rng)
    synthetic.write_classes(root / "texts.parquet", texts)
    _write_images(root)
    before = Path.cwd()
    os.chdir(root)
    yield root
    os.chdir(before)


def _write_images(root: Path) -> None:
    """images/ and network.pt."""
    for i in range(300):
        path = root / "images" / f"class{i % 3}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (40, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 8, stride=8), torch.nn.Flatten())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript, which people have
        torch.jit.trace(network.eval(), torch.zeros(1, 3, 32, 32)).save(str(root / "network.pt"))


def test_the_readme_runs(place: Path) -> None:
    _run(ROOT / "README.md")
    assert (place / "report.html").exists()
    told = json.loads((place / "results" / "codes.json").read_text())
    assert told["images"] == 600


def test_formats_are_as_the_page_says(place: Path) -> None:
    """The page's own code, with plain pyarrow, gives the answers that raypq gave."""
    if not (place / "predictions").exists():
        _run(ROOT / "README.md")
    told: dict[str, Any] = {}
    for block in _blocks(DOCS / "formats.md", "python"):
        exec(compile(block, "formats.md", "exec"), told)
    assert "raypq" not in " ".join(_blocks(DOCS / "formats.md", "python")).replace('b"raypq.', "")
    assert told["B"].shape == (200, 15)
    assert list(told["best"]) == told["first"]
    assert told["table"]["id"].equals(told["answers"]["id"])


def test_a_packed_code_reads_as_the_page_says(place: Path) -> None:
    """K = 16: two to a byte."""
    from raypq.config import EncodeJob, TrainJob
    from raypq.methods import registry

    alone = ClusterSettings(cluster="none", workers=1)
    features, settings = [str(place / "features" / "all")], {"M": 8, "K": 16}
    api.train(
        TrainJob(method="pq", features=features, output="packed", settings=settings, where=alone)
    )
    api.encode(EncodeJob(model="packed", features=features, output="packed-codes", where=alone))
    first = _blocks(DOCS / "formats.md", "python")[0]
    told: dict[str, Any] = {}
    exec(compile(first.replace('"codes"', '"packed-codes"'), "formats.md", "exec"), told)
    source = pq.read_table(place / "features" / "all" / "part-00000.parquet")
    X = np.stack(source["feature"].to_numpy())
    assert (registry.load("packed").encode(X) == told["B"]).all()


def test_a_large_version_reads_as_the_page_says(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shards are in two manifests, of which the second replaces a shard and removes one."""
    if not (place / "codes").exists():
        _run(ROOT / "README.md")
    shutil.copytree(place / "codes", place / "large-codes")
    monkeypatch.setattr(snapshot, "MOST_INLINE", 0)
    monkeypatch.setattr(manifest_tree, "_SMALL", 0)
    monkeypatch.setattr(manifest_tree, "_SMALLER", 1)
    first, *others = snapshot.read("large-codes").shards
    extra = [first.model_copy(update={"shard": f"z{i}", "path": f"data/z{i}"}) for i in range(9)]
    for receipts in (
        [first, *others, *extra],
        [first.model_copy(update={"work": "again"}), *others, *extra[1:]],
    ):
        made = snapshot.commit(
            "large-codes", kind="codes", run_id="r",
            expected=[item.shard for item in receipts], receipts=receipts,
        )  # fmt: skip
    assert [item.removed for item in made.shards.manifests] == [0, 1]
    told: dict[str, Any] = {}
    block = _blocks(DOCS / "formats.md", "python")[0]
    exec(compile(block.replace('"codes"', '"large-codes"'), "formats.md", "exec"), told)
    rows = told["shards_of"](told["version"])
    for row, receipt in zip(rows, made.shards, strict=True):
        assert row["sha256"].hex() == receipt.sha256
        assert row["stats"] == (receipt.stats and receipt.stats.model_dump())
        plain = ("shard", "path", "bytes", "rows", "model", "work", "ids")
        assert all(row[name] == getattr(receipt, name) for name in plain)
    assert told["B"].shape == (200, 15)


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(page: Path, place: Path) -> None:
    _run(page)


def _run(page: Path) -> None:
    for block in _blocks(page, "sh"):
        for line in _lines(block):
            words = shlex.split(line)
            if words[0] == "make":
                shutil.which("make") or pytest.skip("no make here")
                subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, check=True)
                continue
            assert words[0] == "raypq", f"{page.name}: {line}"
            # Answers on Ray are equal (test_ray.py), and its start would take most of the time.
            rays = words[1] in ON_RAY and not NEVER_ON_RAY & {*words} and "--help" not in words
            alone = ["--cluster", "none"] if rays else []
            done = CliRunner().invoke(main, [*words[1:], *alone])
            assert done.exit_code == 0, f"{page.name}: {line}\n{done.output}"
    if page.name == "README.md":
        for block in _blocks(page, "python"):
            exec(compile(block, page.name, "exec"), {})


def test_every_command_is_run_somewhere() -> None:
    """A command in a block that is not run must be known here, with the test that does run it."""
    for page in PAGES:
        text = page.read_text("utf-8")
        if page.name == "README.md":  # this section runs in retrieval/test_evaluate_retrieval.py
            text = text.replace(text.split("## Similarity search")[1].split("\n## ")[0], "")
        for block in re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.M):
            for line in _lines(block):
                known = any(line.startswith(command) for command in ELSEWHERE)
                assert not line.startswith("raypq") or known, f"{page.name}: {line}"


EVERY_PAGE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", text).strip().lower().replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        target, _, anchor = link.partition("#")
        if target.startswith("http"):
            continue
        path = page.parent / target if target else page
        assert path.exists(), link
        assert not anchor or anchor in _anchors(path), link


def test_the_index_lists_every_page() -> None:
    text = (DOCS / "index.md").read_text("utf-8")
    linked = {(DOCS / target).resolve() for target in re.findall(r"\]\(([^)#]+)", text)}
    assert {*EVERY_PAGE, ROOT / "CHANGELOG.md"} - {DOCS / "index.md"} <= linked
    assert "(docs/index.md)" in (ROOT / "README.md").read_text("utf-8")


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", DOCS / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_tables_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a new result file or another formula: make docs."""
    monkeypatch.chdir(ROOT)
    generator = _generator()
    pages = generator.pages()
    assert {page.name for page in pages} >= {"benchmarks.md", "scale.md"}
    for page in pages:
        text = page.read_text("utf-8")
        assert generator.filled(text) == text, f"{page.name} is out of date: make docs"


def test_every_method_has_a_page() -> None:
    """Its settings with their defaults, and a citation."""
    from raypq.methods.registry import METHODS

    for name in ("pqzsl", "pq", "opq", "vq"):
        text = (DOCS / "methods" / f"{name}.md").read_text("utf-8")
        assert "## Citation" in text
        own = METHODS[name].settings_class.model_fields
        told = text + (DOCS / "methods" / "pq.md").read_text("utf-8")
        missing = [key for key in own if f"`{key}`" not in told]
        assert missing == []


def test_the_tests_that_pages_name_are_there() -> None:
    pattern = re.compile(r"((?:contract|faults|golden|gpu|integration|property|unit)/[\w/]*\.py)")
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]:
        for name in pattern.findall(page.read_text("utf-8")):
            assert (ROOT / "tests" / name).is_file(), f"{page.name}: no tests/{name}"
