"""Vector quantization: one codebook for the whole vector (PQZSL eq. 2–3).

The baseline of product quantization in the paper's figure 3.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from raypq.methods.base import MethodSettings
from raypq.methods.pq import PQ, PQModel, PQSettings
from raypq.methods.support.linear_model import LinearModel


class VQSettings(PQSettings):
    """Settings of pq, with a single sub-codebook."""

    M: Literal[1] = 1


class VQModel(PQModel):
    method = "vq"


class VQ(PQ):
    """k-means on whole vectors."""

    name = "vq"
    settings_class: ClassVar[type[MethodSettings]] = VQSettings
    model_class: ClassVar[type[LinearModel]] = VQModel
