"""Text encoders: ONNX with a tokenizer, sentence-transformers, transformers and open_clip."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raypq import kernels
from raypq.backbones.backbone import first_line
from raypq.backbones.library_networks import open_clip_network
from raypq.backbones.text_encoder import TextEncoder
from raypq.backbones.torch_network import weights_of
from raypq.config import NetworkSettings
from raypq.data.network_info import Logits
from raypq.data.storage import is_local, json_text, local_path
from raypq.errors import ConfigError
from raypq.methods.support.downloads import downloads
from raypq.optional_packages import require

_MAX_TOKENS = 512
_KINDS = "onnx:DIR, sentence-transformers:NAME, transformers:NAME or open_clip:NAME/PRETRAINED"


def load_text_encoder(name: str, *, weights: str | None, device: str) -> TextEncoder:
    """A text encoder by its kind and name.

    Args:
        weights: file of the weights of a CLIP model; None for the library's.

    Raises:
        ConfigError: an unknown kind, a missing package, or a network that cannot be loaded.
    """
    kind, _, place = name.partition(":")
    kinds: dict[str, Callable[[str, str], TextEncoder]] = {
        "onnx": OnnxText,
        "sentence-transformers": SentenceText,
        "transformers": TransformersText,
    }
    if (kind not in kinds and kind != "open_clip") or not place:
        raise ConfigError(f"encoder: expected {_KINDS}, found {name!r}")
    if weights is not None and kind != "open_clip":
        raise ConfigError(f"weights: for an encoder of open_clip; {name} has its own weights")
    local = kind == "onnx" or (is_local(place) and local_path(place).is_dir())
    with nullcontext() if local else downloads(name, key="encoder"), _errors(name):
        if kind == "open_clip":
            return OpenClipText(place, device, weights)
        return kinds[kind](place, device)


@contextmanager
def _errors(name: str) -> Iterator[None]:
    """Names the encoder in errors of the libraries, which raise many kinds."""
    try:
        yield
    except (ConfigError, OSError):
        raise
    except (RuntimeError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ConfigError(f"encoder: {name} cannot be loaded: {first_line(error)}") from None


class OnnxText(TextEncoder):
    """A folder with an ONNX file and ``tokenizer.json``, as exported from transformers.

    The vector of a text is the output if it is one vector, or the mean of its tokens' vectors (or
    the first one, if ``1_Pooling/config.json`` of sentence-transformers says so).
    """

    def __init__(self, folder: str, device: str) -> None:
        if not is_local(folder) or not local_path(folder).is_dir():
            raise ConfigError(f"encoder: expected a local folder, found {folder}")
        root = local_path(folder)
        runtime = require("onnxruntime", extra="encoders", purpose=f"encoder onnx:{folder}")
        tokenizers = require("tokenizers", extra="encoders", purpose=f"encoder onnx:{folder}")
        content = _only(root, "*.onnx", "onnx/*.onnx").read_bytes()
        rules = _only(root, "tokenizer.json").read_bytes()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = kernels.threads()
        options.log_severity_level = 3  # errors
        cuda = ["CUDAExecutionProvider"] if device == "cuda" else []
        try:
            self._session = runtime.InferenceSession(
                content, options, providers=[*cuda, "CPUExecutionProvider"]
            )
            self._tokenizer = tokenizers.Tokenizer.from_str(rules.decode())
        except Exception as error:  # classes of C++ and Rust code
            raise ConfigError(f"encoder: {folder} cannot be loaded: {first_line(error)}") from None
        self._tokenizer.enable_truncation(_MAX_TOKENS)
        self._tokenizer.enable_padding()
        self._inputs = {item.name for item in self._session.get_inputs()}
        self.pooling = "first" if _pools_first(root) else "mean"
        self.weights = hashlib.sha256(content + rules).hexdigest()

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See ``TextEncoder``."""
        tokens = self._tokenizer.encode_batch(list(texts))
        mask = np.array([item.attention_mask for item in tokens], np.int64)
        given = {
            "input_ids": np.array([item.ids for item in tokens], np.int64),
            "attention_mask": mask,
            "token_type_ids": np.array([item.type_ids for item in tokens], np.int64),
        }
        (V, *_) = self._session.run(None, {name: given[name] for name in self._inputs})
        return _pooled(np.asarray(V), mask, self.pooling)


def _pools_first(root: Path) -> bool:
    path = root / "1_Pooling" / "config.json"
    if not path.exists():
        return False
    return bool(json_text.parse(path.read_bytes()).get("pooling_mode_cls_token"))


def _only(root: Path, *patterns: str) -> Path:
    """The one file in a folder that matches the first of the patterns that any matches."""
    for pattern in patterns:
        found = sorted(root.glob(pattern))
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise ConfigError(f"encoder: expected one {pattern} in {root}, found {names}")
        if found:
            return found[0]
    raise ConfigError(f"encoder: expected {patterns[0]} in {root}, found none")


def _pooled(V: NDArray[Any], mask: NDArray[np.int64], pooling: str) -> NDArray[np.float32]:
    """Vectors [n, d] of texts from those of tokens [n, t, d], if they are of tokens."""
    V = V.astype(np.float32)
    if V.ndim == 2:
        return V
    if pooling == "first":
        return np.ascontiguousarray(V[:, 0])
    weight = mask[:, :, None].astype(np.float32)
    pooled: NDArray[np.float32] = (V * weight).sum(axis=1) / np.maximum(weight.sum(axis=1), 1)
    return pooled


class SentenceText(TextEncoder):
    """A model of sentence-transformers, with its own pooling."""

    pooling = "of the model"

    def __init__(self, name: str, device: str) -> None:
        package = require("sentence_transformers", extra="encoders", purpose=f"encoder {name}")
        self._model = package.SentenceTransformer(name, device=device)
        self.weights = weights_of(self._model)

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See ``TextEncoder``."""
        found = self._model.encode(list(texts), convert_to_numpy=True, show_progress_bar=False)
        return np.asarray(found, np.float32)


class TransformersText(TextEncoder):
    """A model of transformers: the text features of CLIP and its kin, or the mean of the tokens'
    last vectors."""

    def __init__(self, name: str, device: str) -> None:
        package = require("transformers", extra="encoders", purpose=f"encoder {name}")
        self._tokenizer = package.AutoTokenizer.from_pretrained(name)
        self._model = package.AutoModel.from_pretrained(name).eval().to(device)
        self._device = device
        self._aligned = hasattr(self._model, "get_text_features")
        # SigLIP takes the vector of the last token, padding included, so all texts have one length.
        fixed = str(self._model.config.model_type).startswith("siglip")
        self._padding: bool | str = "max_length" if fixed else True
        self._most = min(int(self._tokenizer.model_max_length), _MAX_TOKENS)
        if fixed:
            self._most = int(self._model.config.text_config.max_position_embeddings)
        self.pooling = "text features" if self._aligned else "mean"
        self.weights = weights_of(self._model)
        self.logits = _logits(self._model)

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See ``TextEncoder``."""
        tokens = self._tokenizer(
            list(texts),
            padding=self._padding,
            truncation=True,
            max_length=self._most,
            return_tensors="pt",
        ).to(self._device)
        with torch.inference_mode():
            if self._aligned:
                found = self._model.get_text_features(**tokens)
                return _array(getattr(found, "pooler_output", found))
            V = self._model(**tokens).last_hidden_state
        return _pooled(_array(V), tokens["attention_mask"].cpu().numpy(), "mean")


class OpenClipText(TextEncoder):
    """The text tower of a CLIP model. Its weights are those of the whole model, so that class
    embeddings are known to fit the features of the image tower."""

    pooling = "text features"

    def __init__(self, name: str, device: str, weights: str | None) -> None:
        open_clip = require("open_clip", extra="encoders", purpose=f"encoder open_clip:{name}")
        module, _ = open_clip_network(f"open_clip:{name}", name, NetworkSettings(weights=weights))
        self._model, self._device = module.eval().to(device), device
        self._tokenizer = open_clip.get_tokenizer(name.partition("/")[0])
        self.weights = weights_of(module)
        self.logits = _logits(module)

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See ``TextEncoder``."""
        with torch.inference_mode():
            tokens = self._tokenizer(list(texts)).to(self._device)
            return _array(self._model.encode_text(tokens))


def _logits(module: torch.nn.Module) -> Logits | None:
    """The logit scale of a CLIP model, which is stored as a logarithm, and the bias of SigLIP."""
    scale, bias = getattr(module, "logit_scale", None), getattr(module, "logit_bias", None)
    if scale is None:
        return None
    return Logits(
        scale=float(scale.detach().exp()), bias=0.0 if bias is None else float(bias.detach())
    )


def _array(V: torch.Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(V.float().cpu().numpy())
