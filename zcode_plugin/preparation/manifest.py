"""`prepare.json`: what a data folder was made of, so that a second call knows that it is done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zcode_plugin.checkpoint.folders import check_not_here, check_own
from zcode_plugin.errors import UserError

NAME = "prepare.json"
FORMAT = 1


def digest(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        UserError: it cannot be read.
    """
    total = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    return total.hexdigest()


def describe(options: Mapping[str, Any], inputs: Mapping[str, Path]) -> dict[str, Any]:
    """What decides the result: options, and the digest of each input file."""
    return {
        "format": FORMAT,
        "options": dict(options),
        "inputs": {name: digest(path) for name, path in sorted(inputs.items())},
    }


def read(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder that `zcode prepare` made; None for any other folder."""
    try:
        manifest = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Names of options and inputs in which two descriptions differ."""
    if old.get("format") != new["format"]:
        return ["format"]
    return [
        name
        for part in ("options", "inputs")
        for name in sorted({*old.get(part, {}), *new[part]})
        if old.get(part, {}).get(name) != new[part].get(name)
    ]


def is_up_to_date(folder: Path, wanted: Mapping[str, Any], force: bool) -> bool:
    """Whether `folder` already holds what is wanted.

    Raises:
        UserError: something else is there, or there, too; `--force` replaces only what `zcode
            prepare` made.
    """
    check_not_here(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    manifest = read(folder) if folder.is_dir() else None
    if manifest is None:
        raise UserError(f"--out {folder} exists and is not made by zcode prepare: name another")
    if force:
        check_own(folder, {NAME, *manifest.get("files", [])}, "the data")
        return False
    changed = differences(manifest, wanted)
    missing = [name for name in manifest.get("files", []) if not (folder / name).is_file()]
    if not changed and not missing:
        return True
    what = f"lacks {missing[0]}" if missing else f"was made with other {', '.join(changed[:4])}"
    raise UserError(f"--out {folder} exists and {what}: --force replaces it")
