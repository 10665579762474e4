"""Read aligned strings from the compiled gettext catalogs (.mo) inside a wheel.

The compiled form is read, not the .po source: msgfmt has already left out fuzzy, obsolete and
untranslated entries there, and the standard library decodes it (charset, plural rule, contexts).
"""

from __future__ import annotations

import gettext
import io
import re
import struct
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from wheels import CorpusError

_CATALOG_PATH = re.compile(r"/locale/(?P<locale>[^/]+)/LC_MESSAGES/[^/]+\.mo$")
# The count whose form stands for "many". 100 takes the general plural of every language here:
# 2 to 4 are a special form in Slavic languages, 5 to 19 in Romanian and Arabic.
_MANY = 100

Occurrences = dict[str, list[tuple[str, str]]]


def read_wheels(wheels: list[Path]) -> Occurrences:
    """Collect every translated string of every locale, in a fixed order.

    Returns:
        locale (as the packages spell it, such as ``pt_BR``) -> list of (English, translation),
        with repetitions where several catalogs hold the same English string.

    Raises:
        CorpusError: a wheel is not a zip archive, or a catalog in it is damaged.
    """
    found: Occurrences = defaultdict(list)
    for wheel in wheels:
        try:
            with zipfile.ZipFile(wheel) as archive:
                for member in sorted(archive.namelist()):
                    path = _CATALOG_PATH.search(member)
                    if path:
                        entries = _read_member(archive, member, wheel)
                        found[path["locale"]].extend(entries)
        except zipfile.BadZipFile as error:
            raise CorpusError(f"{wheel}: not a wheel ({error}); delete it and run again") from error
    return dict(found)


def read_catalog(data: bytes) -> list[tuple[str, str]]:
    """Return the (English, translation) strings of one .mo file, untreated.

    A message with a plural gives up to two: the singular msgid with the form for 1, and
    msgid_plural with the form for 100, both chosen by the catalog's own plural rule. A language
    with one form only (ja, ko, zh, ...) gives the plural alone: that form holds the number.

    Raises:
        ValueError, OSError, struct.error: `data` is not a sound .mo file.
    """
    translations = gettext.GNUTranslations(io.BytesIO(data))
    forms = translations.info().get("plural-forms", "").replace(" ", "")
    counts = (_MANY,) if forms.startswith("nplurals=1;") else (1, _MANY)
    strings = []
    for key in _keys(data):
        context, separator, message = key.rpartition("\x04")
        singular, *plural = message.split("\x00")
        if not message:
            continue  # the catalog's header
        if not plural:
            found = (
                translations.pgettext(context, message)
                if separator
                else (translations.gettext(message))
            )
            strings.append((singular, found))
        for count in counts if plural else ():
            source = singular if count == 1 else plural[0]
            if separator:
                form = translations.npgettext(context, singular, plural[0], count)
            else:
                form = translations.ngettext(singular, plural[0], count)
            strings.append((source, form))
    return strings


def _keys(data: bytes) -> Iterator[str]:
    """Yield the raw keys of a .mo file, ``context EOT singular NUL plural``.

    The standard library's reader forgets msgid_plural, so the key table is walked here:
    header of five 32-bit words after the magic number, then (length, offset) for each key.
    """
    order = "<" if data[:4] == b"\xde\x12\x04\x95" else ">"
    count, table = struct.unpack_from(f"{order}2I", data, 8)
    for entry in range(count):
        length, offset = struct.unpack_from(f"{order}2I", data, table + 8 * entry)
        yield data[offset : offset + length].decode("utf-8")


def _read_member(archive: zipfile.ZipFile, member: str, wheel: Path) -> list[tuple[str, str]]:
    try:
        return read_catalog(archive.read(member))
    except (ValueError, OSError, struct.error) as error:
        raise CorpusError(
            f"{wheel}: damaged catalog {member} ({error}); delete the wheel and run again"
        ) from error
