"""Fetch the pinned wheels whose translation catalogs make the corpus."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class CorpusError(Exception):
    """A mistake or a failure that the user can mend; the text is one line."""


@dataclass(frozen=True)
class Package:
    """One package at the version whose catalogs are read; all three are BSD-licensed."""

    name: str
    version: str

    @property
    def requirement(self) -> str:
        """The requirement as pip takes it, such as ``Django==5.2.19``."""
        return f"{self.name}=={self.version}"

    @property
    def wheel_name(self) -> str:
        """File name of the wheel; all three packages are pure Python."""
        return f"{self.name.lower()}-{self.version}-py3-none-any.whl"


PACKAGES = (
    Package("Django", "5.2.19"),
    Package("Wagtail", "8.0.1"),
    Package("Sphinx", "9.0.4"),
)


def fetch_wheels(cache: Path, packages: Sequence[Package] = PACKAGES) -> list[Path]:
    """Return the wheels of `packages`, downloading with pip those that `cache` lacks.

    Raises:
        CorpusError: pip is missing, failed (no network, no such version) or brought another file.
    """
    missing = [package for package in packages if not (cache / package.wheel_name).is_file()]
    if missing:
        cache.mkdir(parents=True, exist_ok=True)
    for package in missing:
        _download(package, cache)
    return [cache / package.wheel_name for package in packages]


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of the file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _download(package: Package, cache: Path) -> None:
    print(f"downloading {package.requirement} ...", file=sys.stderr, flush=True)
    # Only catalogs are read, so it does not matter which Python the package itself supports.
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    what = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", package.requirement]
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as scratch:
        done = subprocess.run(
            [*pip, *what, "--dest", scratch], capture_output=True, text=True, check=False
        )
        fetched = Path(scratch) / package.wheel_name
        if done.returncode != 0 or not fetched.is_file():
            raise CorpusError(_download_failure(package, cache, done.stderr))
        os.replace(fetched, cache / package.wheel_name)


def _download_failure(package: Package, cache: Path, log: str) -> str:
    errors = [line for line in log.splitlines() if line.startswith("ERROR:") or "No module" in line]
    reason = errors[-1].removeprefix("ERROR:").strip() if errors else "pip brought no such wheel"
    return (
        f"cannot download {package.requirement} ({reason}); check the network and pip's index, "
        f"or put {package.wheel_name} into {cache}"
    )
