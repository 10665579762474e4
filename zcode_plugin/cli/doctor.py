"""`zcode doctor`: what is installed, what is wrong, and the command that mends it."""

from __future__ import annotations

import argparse
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from zcode_plugin.console import count
from zcode_plugin.stock.jobs import available_cores

DESCRIPTION = "Show what is installed, what is wrong and the command that mends it."
EPILOG = """Exit code 0: all is well; 1: something is to be mended.

example:
  zcode doctor
"""

PYTHON = ((3, 10), (3, 14))
FAIRSEQ = "pip install --no-deps fairseq==0.12.2 fairscale==0.4.13"
REBUILD = f"{FAIRSEQ} --force-reinstall --no-cache-dir"
PAIR = "pip install 'hydra-core>=1.3,<1.4' 'omegaconf>=2.3,<2.4'"
# What each hydra asks for: from the first version, below the second.
OMEGACONF_OF_HYDRA: dict[tuple[int, ...], tuple[tuple[int, ...], tuple[int, ...]]] = {
    (1, 0): ((2, 0, 5), (2, 1)),
    (1, 1): ((2, 1), (2, 2)),
    (1, 2): ((2, 2), (2, 4)),
    (1, 3): ((2, 2), (2, 4)),
}
# Where a package is not called as what it is imported as.
PACKAGE_OF = {"antlr4": "antlr4-python3-runtime==4.9.3", "yaml": "PyYAML"}
# Of the packages below those without which fairseq's own fault would not show.
IMPORTED_BY_FAIRSEQ = ("torch", "numpy", "fairseq", "hydra-core", "omegaconf", "sacrebleu")
COMPAT = "pip install --no-deps --force-reinstall CHECKOUT (the folder of zcode_plugin's setup.cfg)"
COMPILER = "apt-get install build-essential python3-dev (or your system's C compiler and headers)"
PROBE_SECONDS = 120


@dataclass(frozen=True)
class Requirement:
    """A package: least version, first version that is too new, and how to install it."""

    package: str
    least: tuple[int, ...]
    below: tuple[int, ...] | None
    remedy: str


REQUIREMENTS = (
    Requirement("torch", (2, 6), None, "pip install torch==2.13.0"),
    Requirement("numpy", (1, 21), None, "pip install numpy"),
    Requirement("fairseq", (0, 12, 2), (0, 12, 3), FAIRSEQ),
    Requirement("fairscale", (0, 4, 13), (0, 4, 14), FAIRSEQ),
    Requirement("hydra-core", (1, 0, 7), (1, 4), "pip install 'hydra-core>=1.3,<1.4'"),
    Requirement("omegaconf", (2, 0, 6), (2, 4), "pip install 'omegaconf>=2.3,<2.4'"),
    Requirement("sentencepiece", (0, 1, 97), None, "pip install sentencepiece"),
    Requirement("sacrebleu", (2, 3), None, "pip install 'sacrebleu>=2.3'"),
)

# Run in processes of their own: a broken binary may end the process that imports it.
TORCH_PROBE = """
import torch
gpus = torch.cuda.device_count()
names = sorted({torch.cuda.get_device_name(index) for index in range(gpus)})
print(f"CUDA {torch.version.cuda}, {gpus} GPU ({', '.join(names)})" if gpus else "no GPU")
"""
FAIRSEQ_PROBE = """
import fairseq_cli.train
import fairseq.libbleu
import fairseq.data.data_utils_fast
import fairseq.data.token_block_utils_fast
print("with its compiled parts")
"""


@dataclass(frozen=True)
class Finding:
    """A line of the screen; a problem when it has a remedy, else good where that is known."""

    name: str
    value: str
    remedy: str | None = None
    is_known: bool = True

    @property
    def mark(self) -> str:
        """What its line begins with."""
        return "!!" if self.remedy else "ok" if self.is_known else "??"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments: there are none."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG


def run(args: argparse.Namespace) -> int:
    """Print all findings, then the problems; 1 if there are any."""
    problems = []
    for finding in findings():
        print(f"{finding.mark}  {finding.name:<16}{finding.value}", flush=True)
        if finding.remedy:
            problems.append(finding)
    if not problems:
        print("all is well")
        return 0
    print(f"\n{count(len(problems), 'problem')}:")
    for problem in problems:
        print(f"{problem.name}: {problem.value}\n    {problem.remedy}")
    return 1


def findings() -> Iterator[Finding]:
    """All checks, in the order of the screen."""
    yield _python()
    yield Finding("platform", f"{platform.platform()}, {count(available_cores(), 'core')}")
    problems: list[str] = []
    rebuilds = not _is_installed("fairseq")
    for requirement in REQUIREMENTS:
        found = _package(requirement)
        if requirement.package == "omegaconf" and found.remedy is None:
            found = _pairing(found)
        yield found
        if found.remedy is not None:
            problems.append(requirement.package)
    if _is_installed("fairseq"):
        found = _fairseq(problems)
        rebuilds = found.remedy == REBUILD
        yield found
    yield _compat()
    yield from _build_tools(rebuilds)


def _python() -> Finding:
    value = f"{platform.python_version()} ({sys.executable})"
    if PYTHON[0] <= sys.version_info[:2] < PYTHON[1]:
        return Finding("Python", value)
    return Finding("Python", f"{value} is not 3.10 to 3.13", "install one of these and use it")


def _package(requirement: Requirement) -> Finding:
    name = requirement.package
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding(name, "not installed", requirement.remedy)
    numbers = _numbers(name)
    if numbers < requirement.least or (requirement.below and numbers >= requirement.below):
        return Finding(name, f"{found} is not supported", requirement.remedy)
    if name == "torch":
        return _probe(name, f"{found}, ", TORCH_PROBE, requirement.remedy)
    return Finding(name, found)


def _pairing(omegaconf: Finding) -> Finding:
    """omegaconf beside the hydra that is there."""
    if not _is_installed("hydra-core"):
        return omegaconf
    wanted = OMEGACONF_OF_HYDRA.get(_numbers("hydra-core")[:2])
    if wanted is None or wanted[0] <= _numbers("omegaconf") < wanted[1]:
        return omegaconf
    value = f"{omegaconf.value} does not go with hydra-core {version('hydra-core')}"
    return Finding(omegaconf.name, value, PAIR)


def _fairseq(problems: Sequence[str]) -> Finding:
    """Whether fairseq and its compiled parts can be imported, and what is missing if not."""
    name = "fairseq imports"
    needed = [package for package in problems if package in IMPORTED_BY_FAIRSEQ]
    if needed:
        return Finding(name, f"not tried without {', '.join(needed)}", is_known=False)
    found = _probe(name, "", FAIRSEQ_PROBE, REBUILD)
    if found.remedy is None:
        return found
    if not _compat_is_active():
        return replace(found, remedy=COMPAT)
    missing = re.search(r"No module named '(\w+)", found.value)
    if missing and missing[1] not in ("fairseq", "fairseq_cli"):
        return replace(found, remedy=f"pip install {PACKAGE_OF.get(missing[1], missing[1])}")
    return found


def _numbers(package: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version(package))[:3])


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _probe(name: str, found: str, code: str, remedy: str) -> Finding:
    """Import a package in another process; shown is `found` and the last line that it prints."""
    try:
        probe = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=PROBE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return Finding(name, f"{found}import took over {PROBE_SECONDS} s", remedy)
    lines = (probe.stdout if probe.returncode == 0 else probe.stderr).strip().splitlines()
    last = lines[-1] if lines else f"exit code {probe.returncode}"
    if probe.returncode == 0:
        return Finding(name, f"{found}{last}")
    return Finding(name, f"{found}does not import: {last}", remedy)


def _compat_is_active() -> bool:
    return any(type(finder).__module__ == "zcode_compat" for finder in sys.meta_path)


def _compat() -> Finding:
    files = [Path(folder, "zcode_compat.pth") for folder in sys.path]
    there = [str(path) for path in files if path.is_file()]
    if _compat_is_active():
        return Finding("zcode_compat", f"active ({there[0] if there else 'imported by hand'})")
    return Finding("zcode_compat", "not active: stock fairseq needs it here", COMPAT)


def _build_tools(rebuilds: bool) -> Iterator[Finding]:
    """What building fairseq needs; a problem only where fairseq is still to be built."""
    remedy = COMPILER if rebuilds else None
    compilers = [str(sysconfig.get_config_var("CC") or "").split(" ")[0], "cc", "gcc", "clang"]
    compiler = next((path for name in compilers if name and (path := shutil.which(name))), None)
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    for name, value in (
        ("C compiler", compiler),
        ("Python headers", str(header.parent) if header.is_file() else None),
    ):
        missing = "none (only building fairseq needs it)"
        yield Finding(name, value or missing, None if value else remedy)
