"""The help of LibreOffice in many languages, as Debian packages it: paragraphs by page and id.

A page has the same path in each language, and a paragraph the same id, which is what aligns them.
The packages are downloaded with `apt-get download` and read as archives; nothing is installed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from wheels import CorpusError

# Debian's name of a language where it is not the code itself.
PACKAGES = {"en": "en-us", "pt": "pt-br", "zh": "zh-cn"}
# Ids of variants in the middle of a sentence: of a system, or of a program, which a script of the
# page chooses from. The common one begins with "default".
_OTHER_SYSTEM = re.compile(r"MAC|WIN|UNIX")
_PROGRAM = re.compile(r"WRITER|CALC|IMPRESS|DRAW|CHART|MATH|BASIC|BASE")
_VOID = frozenset({"br", "hr", "img", "input", "link", "meta", "col", "source", "wbr"})


@dataclass
class Page:
    """One page in one language: its title, and paragraphs by id in the order of the page."""

    title: str = ""
    paragraphs: dict[str, str] = field(default_factory=dict)


def fetch_packages(languages: Sequence[str], cache: Path) -> dict[str, Path]:
    """The package of each language, downloading those that `cache` lacks.

    Raises:
        CorpusError: there is no apt-get, or it has no such package, or no network.
    """
    cache.mkdir(parents=True, exist_ok=True)
    return {
        language: _cached(language, cache) or _download(language, cache) for language in languages
    }


def _package(language: str) -> str:
    return f"libreoffice-help-{PACKAGES.get(language, language)}"


def _cached(language: str, cache: Path) -> Path | None:
    return min(cache.glob(f"{_package(language)}_*.deb"), default=None)


def _download(language: str, cache: Path) -> Path:
    name = _package(language)
    remedy = f"or put {name}_VERSION_all.deb of Debian into {cache}"
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise CorpusError(f"{name}: this machine has no apt-get and dpkg-deb: use Debian, {remedy}")
    print(f"downloading {name} ...", file=sys.stderr, flush=True)
    done = subprocess.run(
        ["apt-get", "download", name], cwd=cache, capture_output=True, text=True, check=False
    )
    found = _cached(language, cache)
    if done.returncode or found is None:
        reason = (done.stderr.strip().splitlines() or ["no such file came"])[-1]
        raise CorpusError(f"cannot download {name} ({reason}); try `apt-get update`, {remedy}")
    return found


def read_pages(package: Path) -> dict[str, Page]:
    """All pages of a package, by their path, such as ``shared/guide/doc_open``.

    Raises:
        CorpusError: it is no such package.
    """
    unpack = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with subprocess.Popen(unpack, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            pages = dict(_pages(process.stdout))
        except tarfile.TarError as error:
            raise CorpusError(f"{package}: cannot be read ({error}): delete it") from None
    if not pages:
        raise CorpusError(f"{package} has no help pages: delete it, it is downloaded anew")
    return pages


def _pages(stream: object) -> Iterator[tuple[str, Page]]:
    with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]
        for member in archive:
            _, _, path = member.name.partition("/text/")
            content = archive.extractfile(member) if path.endswith(".html") else None
            if content is not None:
                yield path.removesuffix(".html"), parse(content.read().decode("utf-8"))


def parse(html: str) -> Page:
    """Title and paragraphs of a page; texts have white space as in the source."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return reader.page


class _Reader(HTMLParser):
    """Collects the text of elements whose id begins with ``par_id`` or ``hd_id``.

    Paragraphs with a part for each program are left out: they are no sentence as they stand.
    """

    def __init__(self) -> None:
        super().__init__()
        self.page = Page()
        self._open: list[tuple[str, str | None, bool]] = []  # tag, paragraph's id, hidden
        self._spoilt: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _VOID:
            self.handle_data(" ")
            return
        found = dict(attrs)
        name = found.get("id") or ""
        is_paragraph = name.startswith(("par_id", "hd_id"))
        self._open.append((tag, name if is_paragraph else None, bool(_OTHER_SYSTEM.match(name))))
        inner = self._paragraph()
        if inner is not None and _PROGRAM.match(name):
            self._spoilt.add(inner)

    def close(self) -> None:
        super().close()
        for key in self._spoilt:
            self.page.paragraphs.pop(key, None)

    def _paragraph(self) -> str | None:
        return next((key for _, key, _ in reversed(self._open) if key), None)

    def handle_endtag(self, tag: str) -> None:
        while any(name == tag for name, _, _ in self._open):
            name, _, _ = self._open.pop()
            if name == tag:
                return

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1][0] == "title":
            self.page.title += data
        if any(hidden for _, _, hidden in self._open):
            return
        inner = self._paragraph()
        if inner is not None:
            self.page.paragraphs[inner] = self.page.paragraphs.get(inner, "") + data
