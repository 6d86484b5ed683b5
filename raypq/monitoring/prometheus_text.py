"""The text format of Prometheus: families of gauges, written and read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


@dataclass(kw_only=True)
class Gauge:
    """A family of gauges.

    Attributes:
        samples: value by labels.
    """

    name: str
    help: str
    samples: dict[tuple[tuple[str, str], ...], float] = field(default_factory=dict)

    def set(self, value: float, **labels: str) -> None:
        """Sets the value of a sample."""
        self.samples[tuple(labels.items())] = value

    def lines(self, common: Mapping[str, str]) -> list[str]:
        """The lines of the family; ``common`` are labels of all samples."""
        head = [f"# HELP {self.name} {self.help}", f"# TYPE {self.name} gauge"]
        samples = [
            f"{self.name}{_labels({**common, **dict(labels)})} {_number(value)}"
            for labels, value in self.samples.items()
        ]
        return [*head, *samples]


def text_of(gauges: Iterable[Gauge], common: Mapping[str, str]) -> str:
    """The families as text; those without samples are left out."""
    lines = [line for gauge in gauges if gauge.samples for line in gauge.lines(common)]
    return "\n".join([*lines, ""])


def families(text: str) -> dict[str, str]:
    """The text of each family by its name, with its help and type."""
    found: dict[str, list[str]] = {}
    for line in text.split("\n"):  # labels may hold other ends of lines
        words = line.replace("{", " ").split()
        if words[:1] == ["#"]:
            words = words[2:]  # a comment without a name belongs to no family
        if words:
            found.setdefault(words[0], []).append(line)
    return {name: "\n".join([*lines, ""]) for name, lines in found.items()}


def _labels(labels: Mapping[str, str]) -> str:
    pairs = [f'{name}="{value.translate(_ESCAPES)}"' for name, value in labels.items()]
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("+Inf" if value > 0 else "-Inf")
    return f"{value:.0f}" if value == int(value) else repr(float(value))
