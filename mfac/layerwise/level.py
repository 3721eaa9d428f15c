"""Levels of a database: sparsity, pattern and grid of a layer, and their keys."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mfac.core.checks.numbers import check_number
from mfac.gradients.naming import check_all_match, first_match
from mfac.layerwise.grid import Grid
from mfac.masks.patterns import Pattern, resolve_pattern

LevelKey = float | str
"""What a level is called: its sparsity, or words such as "2:4 4bit"."""

DEFAULT_LEVELS: tuple[float, ...] = tuple(round(1 - 0.9**step, 4) for step in range(44))
"""Dense, and densities that fall by a tenth each down to 1 %."""

_GRID = re.compile(r"([1-8])bit(?:/([1-9][0-9]*|row))?")
_GROUP = Grid().group_size


@dataclass(frozen=True)
class Level:
    """One way in which a layer is compressed.

    Its key is its sparsity, `0.5`, where that is all there is to it. Otherwise it is words:
    "2:4", "0.5 16x1", "4bit", "2:4 4bit/64 symmetric searched"; after the slash stands the group
    size, or "row", unless it is 128. `Level.of` reads keys.

    Args:
        sparsity: Share of zeros in [0, 1); left out where the pattern fixes it.
        pattern: As for `prune_layerwise`; None for the pattern of the build. Without a pattern of
            its own, a level of sparsity 0 drops nothing.
        grid: Steps that kept weights are rounded to; None for those of the build.

    Raises:
        TypeError: If the grid or the pattern is none.
        ValueError: If the sparsity is out of range, or given with a pattern that fixes it.

    Example:
        >>> import mfac
        >>> mfac.Level(pattern="2:4", grid=mfac.Grid(bits=4)).key
        '2:4 4bit'
        >>> mfac.Level.of("0.75 8bit") == mfac.Level(0.75, grid=mfac.Grid(bits=8))
        True
    """

    sparsity: float = 0.0
    pattern: str | Pattern | None = None
    grid: Grid | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", check_number("sparsity", self.sparsity, least=0, below=1))
        if self.grid is not None and not isinstance(self.grid, Grid):
            raise TypeError(f"Parameter `grid` should be a mfac.Grid or None. Found {type(self.grid).__name__}.")
        if self.pattern is not None:
            fixed = resolve_pattern(self.pattern).sparsity
            if fixed is not None and self.sparsity not in {0.0, fixed}:
                raise ValueError(
                    f"Parameter `sparsity` should be left out with the pattern {str(self.pattern)!r}, which has its "
                    f"own. Found {self.sparsity:g}."
                )

    @property
    def key(self) -> LevelKey:
        """What the level is called."""
        words = []
        fixed = None if self.pattern is None else resolve_pattern(self.pattern).sparsity
        if self.sparsity and fixed is None:
            words.append(f"{self.sparsity:g}")
        if self.pattern is not None:
            words.append(str(self.pattern))
        if self.grid is None:
            return self.sparsity if self.pattern is None else " ".join(words)
        size = self.grid.group_size
        words.append(f"{self.grid.bits}bit" + ("" if size == _GROUP else f"/{'row' if size is None else size}"))
        words += ["symmetric"] * self.grid.symmetric + ["searched"] * self.grid.search
        return " ".join(words)

    @property
    def is_dense(self) -> bool:
        """Whether the layer stays as it is."""
        return self.sparsity == 0 and self.pattern is None and self.grid is None

    @classmethod
    def of(cls, value: float | str | Level) -> Level:
        """The level that a number or words stand for, or the level itself.

        Args:
            value: A sparsity; words as in a key, "dense" for no zeros; or a level.

        Returns:
            The level.

        Raises:
            TypeError: If it is none of them.
            ValueError: If a word or a number means nothing.
        """
        if isinstance(value, Level):
            return value
        if not isinstance(value, str):
            return cls(check_number("levels", value, least=0, below=1))
        level, grid = cls(), None
        for word in value.split():
            if found := _GRID.fullmatch(word):
                size = _GROUP if found[2] is None else None if found[2] == "row" else int(found[2])
                grid = Grid(int(found[1]), size)
            elif word in {"symmetric", "searched"} and grid is not None:
                grid = replace(grid, **{"search" if word == "searched" else word: True})
            elif re.fullmatch(r"0?\.[0-9]+|0", word):
                level = replace(level, sparsity=float(word))
            elif word != "dense":
                if level.pattern is not None:
                    raise ValueError(f"Parameter `levels` should name one pattern a level. Found {value!r}.")
                level = replace(level, pattern=word)
        return replace(level, grid=grid)


Levels = Sequence[float | str | Level]


def levels_by_weight(
    levels: Levels | Mapping[str, Levels] | None, names: Sequence[str], grid: Grid | None
) -> dict[str, list[Level]]:
    """The levels of each weight, by the first name or pattern that matches it.

    Args:
        levels: For all weights, or by names; None for the default.
        names: Of the weights.
        grid: For levels that have none and are not dense.

    Returns:
        {weight: levels}.

    Raises:
        TypeError: If `levels` is of another type.
        ValueError: If a weight has none, a pattern matches none, or two levels have one key.
    """
    by_name = levels if isinstance(levels, Mapping) else {"*": DEFAULT_LEVELS if levels is None else levels}
    read = {key: _read(value, grid) for key, value in by_name.items()}
    found = {}
    for name in names:
        key = first_match(name, read)
        if key is None:
            raise ValueError(
                f"Parameter `levels` should give every weight some. Found none for {name!r}; '*' stands for all others."
            )
        found[name] = read[key]
    check_all_match("levels", read, names)
    return found


def _read(levels: Levels, grid: Grid | None) -> list[Level]:
    if isinstance(levels, str) or not isinstance(levels, Sequence):
        raise TypeError(f"Parameter `levels` should be a sequence of levels. Found {type(levels).__name__}.")
    read = [Level.of(level) for level in levels]
    read = [level if level.is_dense or level.grid is not None else replace(level, grid=grid) for level in read]
    keys = [level.key for level in read]
    if not read:
        raise ValueError("Parameter `levels` should have at least one level. Found none.")
    if twice := [key for number, key in enumerate(keys) if key in keys[:number]]:
        raise ValueError(f"Parameter `levels` should have every level once. Found {twice[0]!r} twice.")
    return read
