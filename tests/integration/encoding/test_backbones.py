"""Images to codes in one pass; the identity of the network and of its preprocessing."""

from __future__ import annotations

import io
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torchvision_ops
from PIL import Image, ImageOps
from safetensors.torch import save_file

import raypq
from raypq import api
from raypq.backbones import Backbone, load_backbone
from raypq.backbones.library_networks import timm_preset
from raypq.config import (
    ClassifyJob,
    ClusterSettings,
    Columns,
    EncodeJob,
    ExtractJob,
    NetworkSettings,
    ReindexJob,
    RepackJob,
    TrainJob,
)
from raypq.data.codes import CodeFile
from raypq.data.images import ImageInput
from raypq.data.store import snapshot
from raypq.errors import ConfigError, InputError, JobError, ModelError

N, SIDE, DX = 80, 16, 24
ALONE = ClusterSettings(cluster="none", workers=1)


class Network(torch.nn.Module):
    """A small convolutional network with features of width DX."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = torch.nn.Conv2d(3, 8, 3, stride=2)
        self.last = torch.nn.Conv2d(8, DX, 3, stride=2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(images).relu()).mean((2, 3))


def save_script(network: torch.nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript, which people have
        torch.jit.trace(network.eval(), torch.zeros(1, 3, SIDE, SIDE)).save(str(path))


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A smooth random image."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for i in range(N):
        path = root / f"class{i % 4}" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(picture(i, (40 + i % 5, 30 + i % 3))))
    return root


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("network") / "network.pt"
    save_script(Network(), path)
    return str(path)


def extract(images: Path, backbone: str, output: Path, **more: Any) -> Any:
    more = {"columns": Columns(feature="image", image_size=SIDE), **more}
    return raypq.extract(
        ExtractJob(images=str(images), backbone=backbone, output=str(output), where=ALONE, **more)
    )


def encode(model: str, output: Path, **more: Any) -> Any:
    if "images" in more:
        more = {"columns": {"image_size": SIDE}, **more}
    return raypq.encode(EncodeJob(model=model, output=str(output), where=ALONE, **more))


def stored(store: Path, column: str = "code") -> dict[str, tuple[Any, Any]]:
    found = {}
    for receipt in snapshot.read(str(store)).shards:
        for row in pq.read_table(store / receipt.path).to_pylist():
            assert row["id"] not in found
            found[row["id"]] = (row[column], row.get("label"))
    return found


@pytest.fixture(scope="module")
def model(images: Path, script: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A model of extracted features, and the features."""
    root = tmp_path_factory.mktemp("model")
    extract(images, script, root / "features")
    job = TrainJob(
        method="opq",
        features=[str(root / "features")],
        output=str(root / "model"),
        settings={"M": 4, "K": 16, "iterations": 3},
        where=ALONE,
    )
    raypq.train(job)
    return job.output, root / "features"


def test_one_pass_gives_the_codes_of_two(images, script, model, tmp_path):
    encode(model[0], tmp_path / "one", images=[str(images)], backbone=script)
    encode(model[0], tmp_path / "two", features=[str(model[1])])
    one, two = stored(tmp_path / "one"), stored(tmp_path / "two")
    assert len(one) == N
    assert one == two
    assert one["class1/1.png"][1] == "class1"
    version = snapshot.read(str(tmp_path / "one"))
    assert version.summary["backbone"]["name"] == script
    assert encode(
        model[0], tmp_path / "one", images=[str(images)], backbone=script
    ).version == 1, "nothing has changed"  # fmt: skip


def test_features_are_those_of_the_network_itself(images, script, model):
    network = Network().eval()
    mean, std = (
        torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    for name, (feature, label) in stored(model[1], "feature").items():
        pixels = Image.open(images / name).convert("RGB")
        width, height = pixels.size
        short = min(pixels.size)
        pixels = pixels.resize(
            (SIDE * width // short, SIDE * height // short), Image.Resampling.BILINEAR
        )
        left, top = (round((length - SIDE) / 2.0) for length in pixels.size)
        pixels = pixels.crop((left, top, left + SIDE, top + SIDE))
        x = torch.from_numpy(np.asarray(pixels).copy()).permute(2, 0, 1) / 255
        with torch.inference_mode():
            expected = network(((x - mean) / std)[None])[0].numpy()
        np.testing.assert_allclose(np.frombuffer(feature, np.float32), expected, atol=2e-6)
        assert label == name.split("/")[0]


def test_float16_features(images, script, model, tmp_path):
    version = extract(images, script, tmp_path / "half", dtype="float16")
    assert version.summary["dtype"] == "float16"
    whole, half = stored(model[1], "feature"), stored(tmp_path / "half", "feature")
    for name, (feature, _) in half.items():
        expected = np.frombuffer(whole[name][0], np.float32).astype(np.float16)
        np.testing.assert_array_equal(np.frombuffer(feature, np.float16), expected)
    encode(model[0], tmp_path / "codes", features=[str(tmp_path / "half")])
    assert snapshot.read(str(tmp_path / "codes")).rows == N


OTHERS: dict[str, dict[str, Any]] = {
    "resize": {"network": {"resize": 20}},
    "interpolation": {"network": {"interpolation": "bicubic"}},
    "mean": {"network": {"mean": [0.5, 0.5, 0.5]}},
    "precision": {"network": {"precision": "bf16"}},
    "size": {"columns": Columns(feature="image", image_size=20)},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_preprocessing_is_another_backbone(kind, images, script, model, tmp_path):
    with pytest.raises(ModelError, match=rf"the model was trained on.*{kind} .* instead of"):
        encode(model[0], tmp_path / "c", images=[str(images)], backbone=script, **OTHERS[kind])
    extract(images, script, tmp_path / "other", **OTHERS[kind])
    with pytest.raises(JobError, match=f"{kind} .* instead of"):
        encode(model[0], tmp_path / "c", features=[str(tmp_path / "other")])
    both = [str(model[1]), str(tmp_path / "other")]
    job = TrainJob(method="opq", features=both, output=str(tmp_path / "m"), where=ALONE,
                   settings={"M": 4, "K": 16})  # fmt: skip
    with pytest.raises(JobError, match="expected features of one backbone"):
        raypq.train(job)
    assert not snapshot.versions(str(tmp_path / "c"))


def test_other_weights_are_another_backbone(images, model, tmp_path):
    path = tmp_path / "network.pt"
    save_script(Network(seed=1), path)
    with pytest.raises(ModelError, match=r"found those of .*network\.pt .*: other weights"):
        encode(model[0], tmp_path / "codes", images=[str(images)], backbone=str(path))


def test_classify_search_and_evaluate_refuse_features_of_another_backbone(
    images, script, model, tmp_path
):
    extract(images, script, tmp_path / "other", network={"resize": 20})
    rows = pq.read_table(next((tmp_path / "other" / "data").glob("*.parquet"))).to_pylist()[:1]
    import pyarrow as pa

    table = pa.table({
        "class_id": [row["label"] for row in rows],
        "embedding": [np.frombuffer(row["feature"], np.float32) for row in rows],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "classes.parquet")
    job = ClassifyJob(
        model=model[0], features=[str(tmp_path / "other")], output=str(tmp_path / "answers"),
        classes=str(tmp_path / "classes.parquet"), where=ALONE,
    )  # fmt: skip
    with pytest.raises(JobError, match="resize 20 instead of 16"):
        raypq.classify(job)


def test_a_model_without_a_backbone_is_bound_to_the_one_it_encodes_with(
    images, script, model, tmp_path
):
    """Its codes are those of another model than of plain features, which name no backbone."""
    rows = stored(model[1], "feature")
    X = np.stack([np.frombuffer(feature, np.float32) for feature, _ in rows.values()])
    np.save(tmp_path / "x.npy", X)
    job = TrainJob(method="opq", features=str(tmp_path / "x.npy"), output=str(tmp_path / "model"),
                   settings={"M": 4, "K": 16}, where=ALONE)  # fmt: skip
    plain = raypq.train(job).model
    encode(job.output, tmp_path / "codes", images=[str(images)], backbone=script)
    (found,) = {item.model for item in snapshot.read(str(tmp_path / "codes")).shards}
    assert found != plain.fingerprint
    bound = raypq.load_model(str(tmp_path / "codes" / "models" / found))
    assert bound.backbone is not None
    assert bound.backbone.name == script
    with pytest.raises(ModelError, match="resize 20 instead of 16"):
        encode(
            str(tmp_path / "codes" / "models" / found), tmp_path / "c", images=[str(images)],
            backbone=script, network={"resize": 20},
        )  # fmt: skip


def test_features_are_extracted_again_only_where_images_changed(images, script, tmp_path):
    tree = tmp_path / "tree"
    shutil.copytree(images, tree)
    extract(tree, script, tmp_path / "features")
    (tree / "class0" / "0.png").write_bytes(encoded(picture(1000)))
    (tree / "class0" / "4.png").unlink()
    (tree / "class9").mkdir()
    (tree / "class9" / "new.png").write_bytes(encoded(picture(2000)))
    expected = extract(tree, script, tmp_path / "fresh")
    for path in tree.rglob("*.png"):
        if path.name not in ("0.png", "new.png"):
            status = path.stat()
            path.write_bytes(b"x" * status.st_size)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    version = extract(tree, script, tmp_path / "features")
    assert version.summary["images_unchanged"] == N - 2
    assert version.rows == expected.rows == N
    assert stored(tmp_path / "features", "feature") == stored(tmp_path / "fresh", "feature")
    assert extract(tree, script, tmp_path / "features").version == 2


def test_nights_from_images(images, script, model, tmp_path):
    tree = tmp_path / "tree"
    shutil.copytree(images, tree)

    def night() -> dict[str, Any]:
        return raypq.reindex(
            ReindexJob(model=model[0], images=[str(tree)], backbone=script, where=ALONE,
                       codes=str(tmp_path / "codes"), columns={"image_size": SIDE})
        )  # fmt: skip

    assert night()["codes"]["images"] == N
    assert night()["nothing_to_do"]
    (tree / "class0" / "0.png").write_bytes(encoded(picture(1000)))
    (tree / "class9").mkdir()
    (tree / "class9" / "new.png").write_bytes(encoded(picture(2000)))
    assert night()["codes"]["images"] == N + 1
    assert snapshot.read(str(tmp_path / "codes")).summary["images_unchanged"] == N - 1
    encode(model[0], tmp_path / "fresh", images=[str(tree)], backbone=script)
    assert stored(tmp_path / "codes") == stored(tmp_path / "fresh")


def test_codes_of_a_feature_store_follow_its_versions(images, script, model, tmp_path):
    """A feature file that is written again is a changed shard, not a new one beside an old one."""
    tree = tmp_path / "tree"
    shutil.copytree(images, tree)
    extract(tree, script, tmp_path / "features")

    def night() -> dict[str, Any]:
        return raypq.reindex(
            ReindexJob(model=model[0], features=str(tmp_path / "features"), where=ALONE,
                       codes=str(tmp_path / "codes"), max_removed=0)
        )  # fmt: skip

    night()
    (tree / "class0" / "0.png").write_bytes(encoded(picture(1000)))
    extract(tree, script, tmp_path / "features")
    assert night()["shards"] == {**dict.fromkeys(night()["shards"], 0), "changed": 1}
    encode(model[0], tmp_path / "fresh", features=[str(tmp_path / "features")])
    assert stored(tmp_path / "codes") == stored(tmp_path / "fresh")
    appended = encode(
        model[0], tmp_path / "codes", features=[str(tmp_path / "features")], append=True
    )
    assert appended.rows == N


def onnx_network(path: Path, *, last: bool = False, kind: str = "FLOAT", batch: Any = "n") -> str:
    """A network in ONNX: the mean of each channel in each quarter of the image, [n, 12]."""
    import onnx
    from onnx import TensorProto, helper

    value = getattr(TensorProto, kind)
    shape = [batch, SIDE, SIDE, 3] if last else [batch, 3, SIDE, SIDE]
    nodes = []
    source = "images"
    if last:
        nodes.append(helper.make_node("Transpose", [source], ["first"], perm=[0, 3, 1, 2]))
        source = "first"
    half = SIDE // 2
    nodes.append(
        helper.make_node("AveragePool", [source], ["pooled"], kernel_shape=[half, half],
                         strides=[half, half])
    )  # fmt: skip
    nodes.append(helper.make_node("Flatten", ["pooled"], ["features"]))
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("images", value, shape)],
        [helper.make_tensor_value_info("features", value, [batch, 12])],
    )
    saved = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(saved, str(path))
    return str(path)


@pytest.mark.parametrize(
    "more", [{}, {"last": True}, {"batch": 1}, {"batch": 3}, {"kind": "FLOAT16"}]
)
def test_onnx(more, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    backbone = load_backbone(
        onnx_network(tmp_path / "n.onnx", **more), NetworkSettings(mean=[0, 0, 0], std=[1, 1, 1]),
        size=None, device="cpu",
    )  # fmt: skip
    assert (backbone.info.size, backbone.info.resize) == (SIDE, SIDE)
    rows = np.random.default_rng(0).integers(0, 256, (7, 3 * SIDE * SIDE), dtype=np.uint8)
    quarters = rows.reshape(7, 3, 2, SIDE // 2, 2, SIDE // 2) / 255
    expected = quarters.mean(axis=(3, 5)).reshape(7, 12)
    tolerance = 1e-3 if more.get("kind") else 1e-6
    np.testing.assert_allclose(backbone.features(rows), expected, atol=tolerance)


def same_bits(backbone: Backbone) -> None:
    """The features of an image do not depend on the images beside it."""
    width = backbone.image_format.width
    rows = np.random.default_rng(0).integers(0, 256, (70, width), dtype=np.uint8)
    F = backbone.features(rows)
    order = np.random.default_rng(1).permutation(70)
    np.testing.assert_array_equal(backbone.features(rows[order]), F[order])
    for few in (1, 5, 17):
        np.testing.assert_array_equal(backbone.features(rows[:few]), F[:few])
    assert backbone.features(rows[:0]).shape == (0, F.shape[1])


def test_the_features_of_an_image_do_not_depend_on_the_others(script):
    same_bits(load_backbone(script, NetworkSettings(), size=SIDE, device="cpu"))


def expected_pixels(transform: Callable[[Image.Image], Any], image: Image.Image) -> np.ndarray:
    return (transform(image) * 255).round().numpy().astype(np.uint8).reshape(-1)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (300, 300), (240, 900), (224, 224)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest"])
@pytest.mark.parametrize("resize", [224, 256])
def test_pixels_are_those_of_torchvision(size, interpolation, resize):
    torchvision_ops.require()
    from torchvision import transforms

    transform = transforms.Compose([
        transforms.Resize(resize, transforms.InterpolationMode(interpolation)),
        transforms.CenterCrop(224), transforms.ToTensor(),
    ])  # fmt: skip
    image = picture(3, size)
    rows = ImageInput(size=224, resize=resize, interpolation=interpolation)
    found = rows.decode(encoded(image), 10**8)
    np.testing.assert_array_equal(found, expected_pixels(transform, image))


def test_a_large_jpeg_is_decoded_at_a_reduced_scale():
    rows = ImageInput(size=224, resize=256)
    for size in ((4000, 3000), (1300, 1100), (900, 700)):
        image = picture(5, size)
        exact = rows.decode(encoded(image), 10**8).astype(int)
        found = rows.decode(encoded(image, "JPEG"), 10**8).astype(int)
        assert np.abs(found - exact).mean() < 1.5


def test_timm_with_weights_of_a_file(images, tmp_path):
    torchvision_ops.require()
    timm = pytest.importorskip("timm")
    torch.manual_seed(3)
    network = timm.create_model("test_vit", pretrained=False)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    settings = NetworkSettings(weights=str(tmp_path / "weights.safetensors"))
    backbone = load_backbone("timm:test_vit", settings, size=None, device="cpu")
    assert (backbone.info.size, backbone.info.resize) == (160, 168)
    assert backbone.info.interpolation == "bicubic"
    assert backbone.info.mean == (0.5, 0.5, 0.5)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    network.eval().reset_classifier(0)
    paths = sorted(images.rglob("*.png"))[:5]
    rows = np.stack([backbone.image_format.decode(path.read_bytes(), 10**8) for path in paths])
    with torch.inference_mode():
        expected = network(torch.stack([transform(Image.open(path)) for path in paths])).numpy()
    np.testing.assert_allclose(backbone.features(rows), expected, atol=2e-4)
    same_bits(backbone)


def test_torchvision_with_weights_of_a_file(images, tmp_path):
    torchvision_ops.require()
    import torchvision

    torch.manual_seed(4)
    network = torchvision.models.shufflenet_v2_x0_5(weights=None)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    settings = NetworkSettings(weights=str(tmp_path / "weights.safetensors"))
    backbone = load_backbone("torchvision:shufflenet_v2_x0_5", settings, size=None, device="cpu")
    transform = torchvision.models.get_model_weights("shufflenet_v2_x0_5").DEFAULT.transforms()
    network.fc = torch.nn.Identity()
    network.eval()
    paths = sorted(images.rglob("*.png"))[:5]
    rows = np.stack([backbone.image_format.decode(path.read_bytes(), 10**8) for path in paths])
    with torch.inference_mode():
        expected = network(torch.stack([transform(Image.open(path)) for path in paths])).numpy()
    np.testing.assert_allclose(backbone.features(rows), expected, atol=2e-4)


def test_open_clip_with_weights_of_a_file(images, tmp_path):
    torchvision_ops.require()
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(5)
    name = "ViT-S-32-alt"
    network, _, transform = open_clip.create_model_and_transforms(name, load_weights=False)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    settings = NetworkSettings(weights=str(tmp_path / "weights.safetensors"))
    backbone = load_backbone(f"open_clip:{name}", settings, size=None, device="cpu")
    assert backbone.info.interpolation == "bicubic"
    paths = sorted(images.rglob("*.png"))[:3]
    rows = np.stack([backbone.image_format.decode(path.read_bytes(), 10**8) for path in paths])
    network.eval()
    with torch.inference_mode():
        expected = network.encode_image(
            torch.stack([transform(Image.open(path)) for path in paths])
        ).numpy()
    np.testing.assert_allclose(backbone.features(rows), expected, atol=2e-4)


BAD: list[tuple[str, dict[str, Any], int | None, str]] = [
    ("none.pt", {}, SIDE, "no such file"),
    ("{root}/text.pt", {}, SIDE, "is not a TorchScript file"),
    ("{root}/text.onnx", {}, SIDE, "is not an ONNX file"),
    ("{script}", {}, None, r"image size: .*network\.pt does not say.*--image-size"),
    ("{script}", {"resize": 8}, SIDE, "expected at least the image size 16, found 8"),
    ("{script}", {"weights": "{root}/text.pt"}, SIDE, "has its own weights"),
    ("{script}", {}, 4, r"cannot compute features of an image of 4 pixels"),
    ("timm:no_such_network", {}, None, "no_such_network"),
    (
        "timm:test_vit",
        {"weights": "{root}/text.pt"},
        None,
        "expected a state dict of timm:test_vit",
    ),
    ("timm:test_vit", {"weights": "{root}/other.safetensors"}, None, "found none named"),
    ("torchvision:no_such_network", {}, None, "no_such_network"),
    ("open_clip:no-such", {}, None, "open_clip has no model 'no-such'"),
    ("open_clip:ViT-B-32", {}, None, "expected open_clip:ViT-B-32/PRETRAINED"),
]


@pytest.mark.parametrize(("name", "network", "size", "text"), BAD)
def test_bad_backbones_are_named(name, network, size, text, script, tmp_path):
    if ":" in name:
        torchvision_ops.require()
        pytest.importorskip(name.split(":")[0])
    if name.endswith(".onnx"):
        pytest.importorskip("onnxruntime")
    for suffix in ("pt", "onnx"):
        (tmp_path / f"text.{suffix}").write_text("no network")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    places = {"root": tmp_path, "script": script}
    settings = {key: value.format(**places) if isinstance(value, str) else value
                for key, value in network.items()}  # fmt: skip
    with pytest.raises((ConfigError, InputError), match=text):
        load_backbone(name.format(**places), NetworkSettings(**settings), size=size, device="cpu")


def test_features_that_are_not_finite_are_named(images, tmp_path):
    class Broken(Network):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) / 0

    path = tmp_path / "network.pt"
    save_script(Broken(), path)
    with pytest.raises(JobError, match=r"features, row 0 \(id '.*png'\).*finite"):
        extract(images, str(path), tmp_path / "features")


def test_an_output_with_plain_files_is_refused(images, script, tmp_path):
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "old.parquet").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"1 Parquet file.*old\.parquet; name a new folder"):
        extract(images, script, tmp_path / "features")


def test_codes_of_images_can_be_read(images, script, model, tmp_path):
    encode(model[0], tmp_path / "codes", images=[str(images)], backbone=script)
    for receipt in snapshot.read(str(tmp_path / "codes")).shards:
        file = CodeFile.open(str(tmp_path / "codes" / receipt.path))
        assert sum(len(batch.ids) for batch in file.batches(50)) == receipt.rows


def test_stores_of_the_same_images_are_other_sources(images, script, model, tmp_path):
    tree = tmp_path / "inc"
    shutil.copytree(images / "class0", tree)
    extract(tree, script, tmp_path / "A")
    shutil.rmtree(tree)
    shutil.copytree(images / "class1", tree)
    extract(tree, script, tmp_path / "B")
    encode(model[0], tmp_path / "codes", features=[str(tmp_path / "A")])
    both = encode(model[0], tmp_path / "codes", features=[str(tmp_path / "B")], append=True)
    assert both.rows == N // 2
    api.repack(RepackJob(features=[str(tmp_path / "A"), str(tmp_path / "B")], where=ALONE,
                         output=str(tmp_path / "packed")))  # fmt: skip
    assert pq.read_table(tmp_path / "packed").num_rows == N // 2


@pytest.mark.parametrize("place", ["F/data", "F*", "F/data/*.parquet", "."])
def test_files_of_a_store_are_read_by_the_store_alone(place, images, script, model, tmp_path):
    shutil.copytree(model[1], tmp_path / "in" / "F")
    with pytest.raises(InputError, match=r"expected a store by its folder.*name .*/F"):
        encode(model[0], tmp_path / "codes", features=[str(tmp_path / "in" / place)])


def test_a_store_that_is_named_twice_is_read_once(model, tmp_path):
    (tmp_path / "link").symlink_to(model[1])
    places = [str(model[1]), f"{model[1]}/", str(tmp_path / "link")]
    assert encode(model[0], tmp_path / "codes", features=places).rows == N


def test_an_unbound_model_is_bound_to_the_features_that_name_a_backbone(
    images, script, model, tmp_path
):
    rows = stored(model[1], "feature")
    X = np.stack([np.frombuffer(feature, np.float32) for feature, _ in rows.values()])
    np.save(tmp_path / "x.npy", X)
    job = TrainJob(method="opq", features=str(tmp_path / "x.npy"), output=str(tmp_path / "model"),
                   settings={"M": 4, "K": 16}, where=ALONE)  # fmt: skip
    raypq.train(job)
    extract(images, script, tmp_path / "other", network={"resize": 20})
    both = [str(model[1]), str(tmp_path / "other")]
    with pytest.raises(JobError, match=r"resize .* instead of"):
        encode(job.output, tmp_path / "codes", features=both)
    encode(job.output, tmp_path / "codes", features=[str(model[1])])
    encode(job.output, tmp_path / "one", images=[str(images)], backbone=script)
    assert stored(tmp_path / "codes") == stored(tmp_path / "one")
    (first,), (second,) = (
        {item.model for item in snapshot.read(str(tmp_path / name)).shards}
        for name in ("codes", "one")
    )
    assert first == second


def test_extract_warns_of_shards_that_it_drops(images, script, tmp_path, caplog):
    both = [str(images / "class0"), str(images / "class1")]
    raypq.extract(
        ExtractJob(images=both, backbone=script, output=str(tmp_path / "f"), where=ALONE,
                   columns={"image_size": SIDE})
    )  # fmt: skip
    extract(images / "class0", script, tmp_path / "f")
    assert "1 of the 2 shards of version 1 are not among these images" in caplog.text


@pytest.mark.parametrize("size", [(400, 304), (400, 300), (399, 297), (1033, 777), (2049, 1793)])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_reduced_scale_does_not_shift_the_image(size, orientation):
    rows = ImageInput(size=16 if size[0] < 1000 else 64, resize=16 if size[0] < 1000 else 64)
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    image = picture(7, size)
    image.save(out, "JPEG", quality=97, exif=exif)
    found = rows.decode(out.getvalue(), 10**8).astype(int)
    turned = ImageOps.exif_transpose(Image.open(out))
    exact = rows.decode(encoded(turned), 10**8).astype(int)
    assert np.abs(found - exact).mean() < 1


def test_an_image_that_is_too_thin_is_no_bomb():
    rows = ImageInput(size=224, resize=224)
    with pytest.raises(ValueError, match="too thin"):
        rows.decode(encoded(Image.new("RGB", (1, 10_000))), 10**8)
    squashed = ImageInput(size=224, resize=224, scaling="squash")
    assert squashed.decode(encoded(Image.new("RGB", (1, 10_000))), 10**8).shape == (3 * 224 * 224,)


def test_squash_is_that_of_timm(tmp_path):
    torchvision_ops.require()
    timm = pytest.importorskip("timm")
    config = {"input_size": (3, 224, 224), "crop_pct": 1.0, "crop_mode": "squash",
              "interpolation": "bicubic", "mean": (0, 0, 0), "std": (1, 1, 1)}  # fmt: skip
    transform = timm.data.create_transform(**config)
    rows = ImageInput(size=224, resize=224, interpolation="bicubic", scaling="squash")
    image = picture(4, (300, 200))
    np.testing.assert_array_equal(
        rows.decode(encoded(image), 10**8), expected_pixels(transform, image)
    )
    network = timm.create_model("maxvit_tiny_tf_384", pretrained=False)
    assert timm_preset(network).scaling == "squash"
    network.pretrained_cfg = {**network.pretrained_cfg, "crop_mode": "border"}
    with pytest.raises(ConfigError, match="crop_mode 'border'"):
        timm_preset(network)


def test_preprocessing_of_open_clip_by_its_tag(tmp_path):
    torchvision_ops.require()
    open_clip = pytest.importorskip("open_clip")
    network = open_clip.create_model("ViT-B-32", load_weights=False)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    settings = NetworkSettings(weights=str(tmp_path / "w.safetensors"))
    backbone = load_backbone("open_clip:ViT-B-32/openai", settings, size=None, device="cpu")
    assert backbone.info.interpolation == "bicubic"
    assert backbone.info.mean[0] == pytest.approx(0.48145466)
    with pytest.raises(ConfigError, match="found no /PRETRAINED"):
        load_backbone("open_clip:ViT-B-32", settings, size=None, device="cpu")
    with pytest.raises(ConfigError, match=r"expected one of openai.*found 'no-such'"):
        load_backbone("open_clip:ViT-B-32/no-such", settings, size=None, device="cpu")
