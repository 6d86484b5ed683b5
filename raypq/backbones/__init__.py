"""Backbones: trained networks that make features of images.

``loading`` finds one by its name or file, with the preprocessing that it was trained with;
``torch_network``, ``onnx_network`` and ``model_network`` run one.
"""

from raypq.backbones.backbone import Backbone
from raypq.backbones.loading import backbone_of, load_backbone

__all__ = ["Backbone", "backbone_of", "load_backbone"]
