"""Types of the arguments that the public functions share."""

from __future__ import annotations

from typing import Literal, TypeAlias

Pair: TypeAlias = "int | tuple[int, int] | list[int]"
Padding: TypeAlias = "Pair | Literal['same', 'valid']"
