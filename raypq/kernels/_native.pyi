"""Types of the compiled module; shapes are those of the wrappers in ``native.py``."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

def isas() -> list[str]: ...
def choose(name: str) -> str: ...
def encode(
    U: NDArray[np.float32],
    C: NDArray[np.float32],
    norms: NDArray[np.float64],
    isa: str,
    threads: int,
    B: NDArray[np.uint8],
) -> None: ...
def accumulate(
    U: NDArray[np.float32],
    B: NDArray[np.uint8],
    C: NDArray[np.float32],
    threads: int,
    count: NDArray[np.float64],
    total: NDArray[np.float64],
    error: NDArray[np.float64],
) -> None: ...

class Tables:
    def __init__(self, *args: Any) -> None: ...
    def scan(
        self,
        B: NDArray[np.uint8],
        threads: int,
        scores: NDArray[np.float32],
        names: NDArray[np.int64],
    ) -> None: ...
    @property
    def bytes(self) -> int: ...
