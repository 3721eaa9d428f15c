"""One built file under several torches: the extension built here is loaded and tested under each.

python -m bench.abi 2.10.0 2.14.1     makes an environment for each version in the cache and
                                      installs that torch there (a CUDA build is several GB), then
                                      runs the tests of the operators, the static and the dynamic
                                      Fisher in it against this very file
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

import mfac

ROOT = Path(__file__).parent.parent
CACHE = Path(os.environ.get("MFAC_CACHE", Path.home() / ".cache" / "mfac")) / "abi"
TESTS = [f"tests/test_{name}.py" for name in ("ops", "ops_registration", "fisher", "window", "optimizer")]


def python_with(version: str) -> Path:
    folder = CACHE / f"torch-{version}"
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        venv.create(folder, with_pip=True, clear=True)
        packages = [f"torch=={version}", "numpy", "scipy", "pytest>=8", "hypothesis"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        (folder / "installed").touch()
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="+")
    arguments = parser.parse_args()
    file = Path(sys.modules["mfac._C"].__file__ or "")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    print(f"{file.name}, sha256 {digest[:16]}, built for torch >= {mfac.build_info()['oldest_torch']}")
    for version in arguments.versions:
        # The package is found by the path of the checkout, so no second build can slip in.
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [str(python_with(version)), "-m", "pytest", *TESTS]
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        loaded = subprocess.run(
            [command[0], "-c", "import mfac, sys, torch; print(torch.__version__, sys.modules['mfac._C'].__file__)"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        print(f"torch {' '.join(loaded.stdout.split()[:1])}: {result.stdout.strip().splitlines()[-1]}")
        if result.returncode or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise SystemExit(result.stdout[-3000:] + result.stderr[-3000:])


if __name__ == "__main__":
    main()
