"""Where rows of gradients are kept: a tensor, bfloat16, or a file that is read by column tiles."""

from __future__ import annotations

import os
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

TILE_ENTRIES = 1 << 23  # of a tile, m rows by so many columns: 32 MiB in float32


class GradientStore(ABC):
    """m rows of d gradients, written one after the other and read by column tiles.

    Args:
        rank: m.
        dim: d.
        dtype: Of the tiles that are read: float32 or float64.

    Attributes:
        rank: m.
        dim: d.
        dtype: Of the tiles.
        device: Of the tiles.
    """

    def __init__(self, rank: int, dim: int, dtype: torch.dtype) -> None:
        self.rank, self.dim, self.dtype = rank, dim, dtype
        self.device = torch.device("cpu")

    @abstractmethod
    def write_(self, first: int, rows: Tensor) -> None:
        """Stores rows `first` and on, [k, d]."""

    @abstractmethod
    def read(self, start: int, stop: int) -> Tensor:
        """Columns `start` to `stop` of all rows, [m, stop - start], as they are stored."""

    def cut_(self, rank: int) -> None:
        """Leaves out the rows from `rank` on."""
        self.rank = rank

    def tiles(self, live: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Goes over the columns once, tile by tile.

        Args:
            live: Which columns are wanted, [d] bool; None for all.

        Yields:
            Where the tile's columns stand among those that are wanted, and the tile, [m, w] in
            `dtype`; its storage may be overwritten by the next.
        """
        width = max(1, min(self.dim, TILE_ENTRIES // self.rank))
        begin = 0
        buffer: Tensor | None = None  # one for all, or what a pass takes would hang on how soon each is freed
        for start in range(0, self.dim, width):
            stop = min(start + width, self.dim)
            wanted = None if live is None else live[start:stop].nonzero()[:, 0]
            count = stop - start if wanted is None else wanted.numel()
            if not count:
                continue
            tile = self.read(start, stop)
            if wanted is not None and count < stop - start:
                tile = tile.index_select(1, wanted)
            if tile.dtype != self.dtype:
                if buffer is None:
                    buffer = tile.new_empty(self.rank * width, dtype=self.dtype)
                tile = buffer[: tile.numel()].view(tile.shape).copy_(tile)
            yield slice(begin, begin + count), tile
            begin += count


class TensorStore(GradientStore):
    """Rows as a tensor, in full precision.

    Args:
        rows: [m, d], to be written to.

    Attributes:
        rows: The rows that there are.
    """

    def __init__(self, rows: Tensor) -> None:
        super().__init__(rows.shape[0], rows.shape[1], rows.dtype)
        self.rows, self.device = rows, rows.device

    def write_(self, first: int, rows: Tensor) -> None:
        """Copies."""
        self.rows[first : first + rows.shape[0]] = rows

    def read(self, start: int, stop: int) -> Tensor:
        """A view."""
        return self.rows[:, start:stop]

    def cut_(self, rank: int) -> None:
        """Leaves out rows."""
        self.rank, self.rows = rank, self.rows[:rank]


class HalfStore(GradientStore):
    """Rows in bfloat16 in memory: half of what float32 takes, and no copy of the kept columns.

    Args:
        rank: m.
        dim: d.
        dtype: Of the tiles.
    """

    def __init__(self, rank: int, dim: int, dtype: torch.dtype) -> None:
        super().__init__(rank, dim, dtype)
        self._rows = torch.empty((rank, dim), dtype=torch.bfloat16)

    def write_(self, first: int, rows: Tensor) -> None:
        """Rounds and copies."""
        self._rows[first : first + rows.shape[0]] = rows

    def read(self, start: int, stop: int) -> Tensor:
        """A view."""
        return self._rows[: self.rank, start:stop]


class FileStore(GradientStore):
    """Rows in bfloat16 in a file, read by column tiles, which alone are in memory.

    The file is made when the store is, and removed when nothing refers to the store any more.

    Args:
        rank: m.
        dim: d.
        dtype: Of the tiles.
        folder: Where the file is; made if it is not there.

    Raises:
        OSError: If the folder cannot be written to, or has no room for 2 m d bytes.
    """

    def __init__(self, rank: int, dim: int, dtype: torch.dtype, folder: Path) -> None:
        super().__init__(rank, dim, dtype)
        folder.mkdir(parents=True, exist_ok=True)
        self._file, name = tempfile.mkstemp(prefix="mfac-gradients-", suffix=".bf16", dir=folder)
        os.unlink(name)  # the system frees the room when the file is closed, also if the process is killed
        self._close = weakref.finalize(self, os.close, self._file)
        self._row_bytes = 2 * dim
        os.posix_fallocate(self._file, 0, rank * self._row_bytes)

    def write_(self, first: int, rows: Tensor) -> None:
        """Rounds a piece at a time and writes it."""
        for number, row in enumerate(rows, start=first):
            offset = number * self._row_bytes
            for piece in row.split(TILE_ENTRIES):
                data = memoryview(piece.to(torch.bfloat16).view(torch.int16).numpy()).cast("B")
                while data:
                    done = os.pwrite(self._file, data, offset)
                    data, offset = data[done:], offset + done

    def read(self, start: int, stop: int) -> Tensor:
        """One read a row."""
        tile = torch.empty((self.rank, stop - start), dtype=torch.bfloat16)
        for number, row in enumerate(tile.view(torch.int16).numpy()):
            data, offset = memoryview(row).cast("B"), number * self._row_bytes + 2 * start
            while data:
                done = os.preadv(self._file, [data], offset)
                if done == 0:
                    raise OSError(f"The file of gradients ended at byte {offset}, before row {number} did.")
                data, offset = data[done:], offset + done
        return tile
