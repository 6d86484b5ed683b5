"""A small text encoder in ONNX, which looks up a vector of each word."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WORDS = ["[UNK]", "[PAD]", "a", "photo", "drawing", "of", ".", "tench", "goldfish", "great",
         "white", "shark", "tiger", "crane", "fish"]  # fmt: skip
WIDTH = 8


def tokenizer(words: Sequence[str] = WORDS) -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: at for at, word in enumerate(words)}, "[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return made


def onnx_folder(
    folder: Path, *, seed: int = 0, sentence: bool = False, words: Sequence[str] = WORDS
) -> tuple[str, np.ndarray]:
    """An encoder in ONNX that looks up a vector of each word; and the vectors."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir(parents=True)
    W = np.random.default_rng(seed).standard_normal((len(words), WIDTH)).astype(np.float32)
    nodes = [helper.make_node("Gather", ["W", "input_ids"], ["tokens"])]
    output, shape = "tokens", ["n", "t", WIDTH]
    if sentence:
        nodes.append(helper.make_node("ReduceMax", ["tokens"], ["one"], axes=[1], keepdims=0))
        output, shape = "one", ["n", WIDTH]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", "t"])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(W, "W")],
    )
    saved = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(saved, str(folder / "model.onnx"))
    tokenizer(words).save(str(folder / "tokenizer.json"))
    return f"onnx:{folder}", W
