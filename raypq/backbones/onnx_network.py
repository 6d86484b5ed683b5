"""Networks in ONNX files, run by onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypq import kernels
from raypq.backbones.backbone import Backbone, image_input
from raypq.data.network_info import BackboneInfo
from raypq.errors import ConfigError
from raypq.optional_packages import require

_BLOCK = 16
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


class OnnxSession:
    """An ONNX file with one input of images, [n, 3, S, S] or [n, S, S, 3].

    Attributes:
        size: S, if the file fixes it.
    """

    def __init__(self, content: bytes, name: str, device: str) -> None:
        runtime = require("onnxruntime", extra="backbones", purpose=f"backbone {name}")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = kernels.threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors
        cuda = ["CUDAExecutionProvider"] if device == "cuda" else []
        try:
            self._session = runtime.InferenceSession(
                content, options, providers=[*cuda, "CPUExecutionProvider"]
            )
        except Exception as error:  # classes of its C++ code
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(f"backbone: {name} is not an ONNX file: {reason}") from None
        if device == "cuda" and "CUDAExecutionProvider" not in self._session.get_providers():
            raise ConfigError(
                f"backbone: {name}: expected onnxruntime with CUDA (pip install onnxruntime-gpu), "
                "found one for CPUs"
            )
        inputs = self._session.get_inputs()
        shape = inputs[0].shape
        if len(inputs) != 1 or len(shape) != 4 or inputs[0].type not in _TYPES:
            found = ", ".join(f"{item.name} {item.type} {item.shape}" for item in inputs)
            raise ConfigError(
                f"backbone: {name}: expected one input of images [n, 3, S, S], found {found}"
            )
        self._input, self._type = inputs[0].name, _TYPES[inputs[0].type]
        self._last = shape[1] != 3 and shape[3] == 3  # channels are the last dimension
        side = shape[1] if self._last else shape[2]
        self.size = side if isinstance(side, int) else None
        self._fixed = isinstance(shape[0], int)
        self.block = int(shape[0]) if self._fixed else _BLOCK

    def __call__(self, images: NDArray[np.float32]) -> NDArray[Any]:
        """The first output for images [n, 3, S, S]."""
        if self._last:
            images = images.transpose(0, 2, 3, 1)
        values = np.ascontiguousarray(images, dtype=self._type)
        if self._fixed and len(values) < self.block:
            padding = np.zeros((self.block - len(values), *values.shape[1:]), values.dtype)
            values = np.concatenate([values, padding])
        return self._session.run(None, {self._input: values})[0][: len(images)]


class OnnxNetwork(Backbone):
    """A network in an ONNX file."""

    def __init__(self, session: OnnxSession, info: BackboneInfo) -> None:
        self.info, self._session, self.block = info, session, session.block
        self.image_format = image_input(info)
        self._mean = (255 * np.asarray(info.mean)).astype(np.float32).reshape(1, 3, 1, 1)
        self._scale = (1 / (255 * np.asarray(info.std))).astype(np.float32).reshape(1, 3, 1, 1)

    def _block(self, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        size = self.info.size
        images = rows.reshape(len(rows), 3, size, size).astype(np.float32)
        images -= self._mean
        images *= self._scale
        return self._session(images).reshape(len(rows), -1).astype(np.float32)
