"""The temperature of codes of classes, chosen on held-out rows.

Scores of unseen classes are combinations of the probabilities of seen ones, and most of what they
need is in the smaller probabilities. How flat these must be depends on how confident the network
is, and that on the data.
"""

from __future__ import annotations

import numpy as np
import torch

from raypq import console
from raypq.methods.gradient import tensor_of
from raypq.methods.support.class_codes import ClassCodesNetwork
from raypq.stages.training.held_out_classes import best_gamma, competition
from raypq.stages.training.trainer import TrainingSpec

_VALUES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)


def choose_temperature(network: ClassCodesNetwork, spec: TrainingSpec) -> None:
    """Sets the temperature with the best calibrated H of training classes that are treated as
    unseen, unless the settings name one, or no other classes compete."""
    X, y = spec.held_out
    if network.temperature_is_set or not len(X) or not spec.dataset_info.compete:
        return
    info, seed = spec.dataset_info, spec.method.settings.seed
    network.eval()
    with torch.inference_mode():
        logits = network.class_logits(tensor_of(spec.normalised(X)))
    Ps = [(logits.double() / value).softmax(dim=1).numpy() for value in _VALUES]
    found = [best_gamma([trial])[1] for trial in competition(Ps, y, info, seed)]
    best = int(np.argmax(found))
    network.temperature.fill_(_VALUES[best])
    console.say(f"temperature {_VALUES[best]:g}: H {found[best]:.3f} on {len(X):,} rows held out")
