"""Pictures and names in, predictions out: with one CLIP network, and with two networks and
labelled folders."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import warnings
from pathlib import Path

import pytest
import random_clip
import torch
from click.testing import CliRunner
from onnx_encoder import WORDS, onnx_folder

from raypq.cli import main
from raypq.data import drawings, holdout
from raypq.data.classes import ClassTable
from raypq.data.store import snapshot
from raypq.methods import registry

SEEN_WORDS = ["red", "green", "blue", "yellow", "black", "white", "circle", "square", "triangle",
              "pentagon"]  # fmt: skip


def run(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, [*words])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def networks(tmp_path: Path) -> list[str]:
    """A backbone of random weights in TorchScript, and an encoder of the words in ONNX."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 8, stride=8), torch.nn.Flatten())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript, which people have
        torch.jit.trace(network.eval(), torch.zeros(1, 3, 32, 32)).save(str(tmp_path / "net.pt"))
    encoder, _ = onnx_folder(tmp_path / "encoder", words=[*WORDS, *SEEN_WORDS])
    return ["--backbone", str(tmp_path / "net.pt"), "--image-size", "32", "--encoder", encoder]


def clip_networks(folder: Path) -> list[str]:
    """One CLIP model for pictures and names."""
    _, weights = random_clip.save(folder)
    name = f"open_clip:{random_clip.NAME}"
    return ["--backbone", name, "--encoder", name, "--weights", weights]


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, Path]:
    """A folder for each class, and a file of their names with two classes more."""
    names = drawings.draw(tmp_path / "pictures", each=6)
    (tmp_path / "names.txt").write_text("\n".join([*names, "tench", "tiger"]))
    return tmp_path / "pictures", tmp_path / "names.txt"


def test_labelled_folders_teach_a_model_of_two_networks(networks, pictures, tmp_path):
    """Each class has its pictures; names without pictures are candidates too."""
    images, names = pictures
    output = tmp_path / "out"
    words = ["quickstart", "--images", str(images), "--names", str(names), "--output", str(output)]
    said = run(*words, *networks)
    table = ClassTable.open(str(output / "classes.parquet"))
    assert table.seen is not None
    assert table.seen.tolist() == [True] * 24 + [False] * 2
    assert registry.load(str(output / "model")).method == "eszsl"
    version = snapshot.read(str(output / "predictions"), None)
    assert version.rows == 24 * 6
    learned = holdout.training_ids(str(output / "training"))
    assert len(learned) == 24 * 5, "one of the six of each class is held out"
    files = [str(output / "predictions" / item.path) for item in version.shards]
    others, of_training = holdout.hits(files, learned, {*table.ids.to_pylist()})
    assert (others.rows, of_training.rows) == (24, 24 * 5)
    assert of_training.share > 0.2, "colours are easy to distinguish"
    assert f"first for {others.share:.1%} of 24 held-out pictures" in said
    assert f"120 pictures that it learned from: {of_training.share:.1%}" in said
    shown = run("predictions", str(output / "predictions"), "--limit", "2")
    assert len(shown.splitlines()) == 2


def test_a_second_run_keeps_the_model_and_does_only_what_is_new(networks, pictures, tmp_path):
    images, names = pictures
    output = tmp_path / "out"
    words = ["quickstart", "--images", str(images), "--names", str(names), "--output", str(output)]
    run(*words, *networks)
    before = registry.load(str(output / "model")).fingerprint
    shutil.copy(images / "red circle" / "000.jpg", images / "red circle" / "new.jpg")
    said = run(*words, *networks)
    assert registry.load(str(output / "model")).fingerprint == before
    version = snapshot.read(str(output / "predictions"), None)
    assert (version.version, version.rows) == (2, 24 * 6 + 1)
    assert "of 25 held-out pictures" in said, "the model has not learned the new picture"
    learned = sorted(holdout.training_ids(str(output / "training")))
    shutil.copy(images / "blue square" / "000.jpg", images / learned[0])
    os.utime(images / learned[0], (1, 1))
    said = run(*words, *networks)
    assert "of 25 held-out pictures" in said
    assert "(1 pictures that it learned from have changed since; they do not count.)" in said
    shutil.rmtree(output / "training")
    said = run(*words, *networks)
    assert "The accuracy is not known" in said
    mark = json.loads((output / "quickstart.json").read_text())
    del mark["held_out"]  # a model of an earlier version, which learned from all pictures
    (output / "quickstart.json").write_text(json.dumps(mark))
    assert "145 pictures that the model learned from" in run(*words, *networks)


def test_drawn_pictures_where_there_are_none(networks, tmp_path):
    output = tmp_path / "out"
    said = run("quickstart", "--output", str(output), *networks)
    assert len([*(output / "pictures").glob("*/*.jpg")]) == 24 * 20
    assert f"raypq report {output} --output {output}/report.html --images {output}/pictures" in said
    report = said.splitlines()[-1].split()[1:]
    run(*report)
    assert (output / "report.html").exists()


def test_drawings_are_the_same_every_time(tmp_path):
    for name in ("a", "b"):
        drawings.draw(tmp_path / name, each=2)
    pairs = [(path, tmp_path / "b" / path.relative_to(tmp_path / "a"))
             for path in sorted((tmp_path / "a").rglob("*.jpg"))]  # fmt: skip
    assert len(pairs) == 48
    assert all(one.read_bytes() == other.read_bytes() for one, other in pairs)


def test_one_clip_network_needs_no_labels(tmp_path):
    clip = clip_networks(tmp_path)
    drawings.draw(tmp_path / "drawn", each=3)
    (tmp_path / "flat").mkdir()
    for number, path in enumerate(sorted((tmp_path / "drawn").rglob("*.jpg"))):
        shutil.copy(path, tmp_path / "flat" / f"{number}.jpg")
    (tmp_path / "names.txt").write_text("a cat\na dog\na red circle\n")
    output = tmp_path / "out"
    run("quickstart", "--images", str(tmp_path / "flat"), "--names", str(tmp_path / "names.txt"),
        "--output", str(output), *clip)  # fmt: skip
    model = registry.load(str(output / "model"))
    assert (model.method, model.metric, model.da) == ("opq", "dot", None)
    assert snapshot.read(str(output / "predictions"), None).rows == 72


def test_what_does_not_fit_is_refused(networks, pictures, tmp_path):
    images, names = pictures
    output = ["--output", str(tmp_path / "out")]
    said = run("quickstart", "--images", str(images), *output, *networks, code=2)
    assert "images, names: expected both" in said
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted(images.rglob("*.jpg"))[:20]):
        shutil.copy(path, flat / f"{number}.jpg")
    words = ["quickstart", "--images", str(flat), "--names", str(names), *output, *networks]
    said = run(*words, code=2)
    assert "different networks, and the pictures have no labels" in said
    words[2], words[6] = str(images), str(tmp_path / "loose")
    shutil.copy(flat / "0.jpg", images / "loose.jpg")
    assert "1 picture(s) without one" in run(*words, code=1)
    (images / "loose.jpg").unlink()
    names.write_text("tench\ntiger\n")
    words[6] = str(tmp_path / "other")
    said = run(*words, code=1)
    assert "none for 'black circle'" in said
    assert "FOLDER, tab, NAME" in said
    assert "{} once" in run(*words, "--template", "no place", code=2)


@pytest.mark.parametrize("taken", ["pictures", "classes.parquet", "model", "names.txt"])
def test_nothing_of_the_user_is_written_over(networks, tmp_path, taken):
    output = tmp_path / "out"
    (output / "pictures").mkdir(parents=True)
    place = output / taken / "mine.jpg" if "." not in taken else output / taken
    place.parent.mkdir(exist_ok=True)
    place.write_text("mine")
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    said = run("quickstart", "--output", str(output), *networks, code=2)
    assert f"holds pictures{'' if taken == 'pictures' else f', {taken}'}, which would" in said or (
        taken in said
    )
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


def test_a_folder_is_for_one_pair_of_networks(networks, pictures, tmp_path):
    images, names = pictures
    output = ["--output", str(tmp_path / "out")]
    words = ["quickstart", "--images", str(images), "--names", str(names), *output, *networks]
    run(*words)
    said = run(*words, "--template", "a drawing of {}", code=2)
    assert "template:" in said
    assert "name another folder" in said
    said = run("quickstart", *output, *networks, code=2)
    assert "images:" in said


def test_the_commands_that_it_says_are_those_that_it_runs(networks, pictures, tmp_path):
    """Run by hand, they give the same codes and predictions."""
    images, names = pictures
    output = str(tmp_path / "out")
    words = ["quickstart", "--images", str(images), "--names", str(names), "--output", output]
    said = run(*words, *networks, "--template", "a drawing of {}")
    commands = [shlex.split(line) for line in said.splitlines() if line.startswith("raypq ")]
    assert [line[1] for line in commands] == [
        "embed-classes", "extract", "train", "encode", "classify",
    ]  # fmt: skip
    again = str(tmp_path / "again")
    shutil.copytree(output, again)  # the table with the column that marks seen classes
    for name in ("features", "model", "codes", "predictions"):
        shutil.rmtree(f"{again}/{name}")
    for line in commands[1:]:
        run(*[word.replace(output, again) for word in line[1:]])
    pairs = [snapshot.read(f"{place}/predictions", None).shards for place in (output, again)]
    assert [item.sha256 for item in pairs[0]] == [item.sha256 for item in pairs[1]]


def test_folders_are_no_labels_for_one_network(tmp_path):
    clip = clip_networks(tmp_path)
    drawings.draw(tmp_path / "drawn" / "2024", each=1)
    (tmp_path / "names.txt").write_text("a red circle\n")
    output = tmp_path / "out"
    run("quickstart", "--images", str(tmp_path / "drawn"), "--names", str(tmp_path / "names.txt"),
        "--output", str(output), *clip)  # fmt: skip
    assert ClassTable.open(str(output / "classes.parquet")).seen is None
    assert snapshot.read(str(output / "predictions"), None).rows == 24
