# The compiled module; shapes and dtypes are in raypq.kernels.native, its only user.
import numpy as np
from numpy.typing import NDArray

def isas() -> list[str]: ...
def choose(name: str, /) -> str: ...
def encode(
    U: NDArray[np.float32],
    C: NDArray[np.float32],
    norms: NDArray[np.float64],
    isa: str,
    threads: int,
    B: NDArray[np.uint8],
    /,
) -> None: ...
def widen(half: NDArray[np.uint16], isa: str, out: NDArray[np.float32], /) -> bool: ...
def accumulate(
    U: NDArray[np.float32],
    B: NDArray[np.uint8],
    C: NDArray[np.float32],
    threads: int,
    count: NDArray[np.float64],
    total: NDArray[np.float64],
    error: NDArray[np.float64],
    /,
) -> None: ...
def add_rows(
    X: NDArray[np.float64],
    group: NDArray[np.int64],
    threads: int,
    total: NDArray[np.float64],
    /,
) -> None: ...
def spread(
    U: NDArray[np.float32],
    first: NDArray[np.int64],
    draws: NDArray[np.float64],
    threads: int,
    C: NDArray[np.float32],
    /,
) -> None: ...
def count_pairs(
    A: NDArray[np.uint8],
    B: NDArray[np.uint8] | None,
    T: NDArray[np.float32],
    first: NDArray[np.int64],
    group_limit: NDArray[np.float32],
    limit: float,
    group: int,
    once: bool,
    most_steps: int,
    threads: int,
    /,
) -> tuple[int, int, int, bool]: ...
def forest(
    n: int, edges: NDArray[np.uint32], weight: NDArray[np.float32], /
) -> NDArray[np.uint32]: ...
def reach(
    n: int, edges: NDArray[np.uint32], roots: NDArray[np.uint32], /
) -> NDArray[np.uint32]: ...
def leaf_pairs(
    C: NDArray[np.float32],
    centre: NDArray[np.float32],
    bias: NDArray[np.float64],
    radius: NDArray[np.float64],
    norms: NDArray[np.float64],
    metric: str,
    B: NDArray[np.uint8],
    squared: NDArray[np.float64],
    floor: NDArray[np.float32],
    weight: float,
    largest_bias: float,
    isa: str,
    threads: int,
    /,
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]: ...
def scan_leaves(
    C: NDArray[np.float32],
    W: NDArray[np.float32],
    bias: NDArray[np.float64],
    norms: NDArray[np.float64],
    metric: str,
    first: NDArray[np.uint32],
    number: NDArray[np.int64],
    begin: NDArray[np.uint32],
    rows: NDArray[np.uint32],
    B: NDArray[np.uint8],
    squared: NDArray[np.float64],
    floor: NDArray[np.float32],
    isa: str,
    threads: int,
    scores: NDArray[np.float32],
    best: NDArray[np.int64],
    /,
) -> int: ...

class Pairs:
    def __init__(
        self,
        A: NDArray[np.uint8],
        B: NDArray[np.uint8] | None,
        T: NDArray[np.float32],
        first: NDArray[np.int64],
        group_limit: NDArray[np.float32],
        limit: float,
        group: int,
        once: bool,
        threads: int,
        /,
    ) -> None: ...
    def next(self) -> NDArray[np.uint32]: ...

class NeighborIndex:
    def __init__(
        self,
        B: NDArray[np.uint8],
        C: NDArray[np.float32],
        norms: NDArray[np.float64],
        T: NDArray[np.float32],
        isa: str,
        threads: int,
        /,
    ) -> None: ...
    @property
    def searched(self) -> float: ...
    def search_all(self, k: int, threads: int, /) -> tuple[int, int, int]: ...
    def find(
        self,
        rows: NDArray[np.uint32],
        threads: int,
        scores: NDArray[np.float32],
        found: NDArray[np.int64],
        /,
    ) -> tuple[int, int, int]: ...
    @property
    def size(self) -> int: ...
    @property
    def tiles(self) -> int: ...

class Tables:
    def __init__(
        self,
        C: NDArray[np.float32],
        W: NDArray[np.float32],
        bias: NDArray[np.float64],
        norms: NDArray[np.float64],
        metric: str,
        across_rows: bool,
        isa: str,
        threads: int,
        /,
    ) -> None: ...
    def scan(
        self,
        B: NDArray[np.uint8],
        threads: int,
        scores: NDArray[np.float32],
        index: NDArray[np.int64],
        /,
    ) -> None: ...
    def scores(
        self, B: NDArray[np.uint8], threads: int, scores: NDArray[np.float32], /
    ) -> None: ...
    def within(
        self, B: NDArray[np.uint8], threshold: float, upper_triangle: bool, threads: int, /
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]: ...
    @property
    def rescans(self) -> int: ...
    @property
    def candidates(self) -> int: ...
    @property
    def exact_scores(self) -> int: ...
    @property
    def bytes(self) -> int: ...
