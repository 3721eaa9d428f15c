"""The environment of the peers: made once in the cache, and used to run the benchmark."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from demo.fetch import cache_dir

CHECKOUT = Path(__file__).resolve().parents[2]
TORCH = "torch==2.13.0"
COMMON = (TORCH, "numpy", "matplotlib")
PEERS: Mapping[str, tuple[str, ...]] = {
    "curvlinops-for-pytorch": (
        "curvlinops-for-pytorch==3.0.1",
        *("backpack-for-pytorch==1.7.1", "einops==0.8.2", "linear_operator==0.6.1", "scipy", "tqdm"),
        *("einconv==0.1.0", "unfoldNd==0.2.3"),
    ),
    "asdfghjkl": ("asdfghjkl==0.1a5",),
    "nngeometry": ("--no-deps", "nngeometry==0.4"),  # its torchvision is for examples
    "singd": ("singd==0.0.5", "einconv==0.1.0", "einops==0.8.2"),
    "heavyball": ("heavyball==3.2.1", "opt-einsum==3.4.0"),
}
"""What pip is given for each peer."""


def folder() -> Path:
    return cache_dir() / "peers"


def inside() -> bool:
    """Whether this process runs in the environment."""
    return Path(sys.prefix).resolve() == folder().resolve()


def failures() -> dict[str, str]:
    """Peers that could not be installed, with the reason in one line."""
    return json.loads(_stamp().read_text())["failures"]


def run_inside(module: str, arguments: Sequence[str]) -> int:
    """Run a module with the environment's Python, which imports this checkout's mfac and bench."""
    paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run([str(_python()), "-m", module, *arguments], env=variables, check=False).returncode


def make() -> None:
    """Make the environment, unless it is there with the same requirements.

    A peer that cannot be installed is noted, see `failures`.

    Raises:
        RuntimeError: If torch, numpy and matplotlib cannot be installed.
    """
    if _is_current():
        return
    print(f"Making an environment for the peers in {folder()}.", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder())], check=True)
    if reason := _install(*COMMON):
        raise RuntimeError(f"Could not install {', '.join(COMMON)} into {folder()}: {reason}")
    constraints = folder() / "constraints.txt"
    constraints.write_text(TORCH + "\n")
    found = {}
    for peer, requirements in PEERS.items():
        print(f"  {peer}", flush=True)
        if reason := _install("--constraint", str(constraints), *requirements):
            found[peer] = reason
    _stamp().write_text(json.dumps({"requirements": _digest(), "failures": found}))


def _install(*requirements: str) -> str:
    """Why pip failed, or nothing."""
    command = [str(_python()), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
    return lines[-1].strip() if lines else f"pip ended with status {done.returncode}"


def _python() -> Path:
    return folder() / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _stamp() -> Path:
    return folder() / "installed.json"


def _digest() -> str:
    return hashlib.sha256(json.dumps([sys.version, COMMON, PEERS]).encode()).hexdigest()


def _is_current() -> bool:
    return _stamp().is_file() and json.loads(_stamp().read_text())["requirements"] == _digest()
