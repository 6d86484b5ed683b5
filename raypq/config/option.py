"""How fields of settings are written on the command line.

``raypq.cli.job_command`` makes an option of every field: ``--top-k`` of ``top_k``, with the field's
description as its help. A field with another option says so here, so that the key of a config file
and the option stand in one place.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Option:
    """The option of a field, as part of its annotation.

    Attributes:
        names: the options, where they are not the field's name.
        prefix: of a section: prefix of the options of its fields.
        argument: True for a positional argument (METHOD), which has no name.
        metavar: placeholder of the value in the help.
        unit: the field's value for 1 on the command line (bytes of a GiB, say).
        file_only: True for a field that has no option.
    """

    names: tuple[str, ...] = ()
    prefix: str = ""
    argument: bool = False
    metavar: str | None = None
    unit: float = 1
    file_only: bool = False
