"""The device of tests that run on GPUs, too (``make gpu``); by default that of the rehearsal."""

from __future__ import annotations

import os

from raypq.kernels.device import REHEARSAL

DEVICE = os.environ.get("RAYPQ_TEST_DEVICE", REHEARSAL)
