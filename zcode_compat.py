"""Stock fairseq 0.12.2 on current Python, PyTorch and numpy: the part that every Python start runs.

``zcode_compat.pth`` imports this module when Python starts. It puts one finder in front of
``sys.meta_path`` and does nothing else: the mends (package ``zcode_mends``, where each is named and
explained) are imported when ``fairseq``, ``fairseq_cli`` or ``hydra`` is first imported, and a
process that imports none of them never meets them.

Environment variables, for whoever imports one of those packages:

``ZCODE_COMPAT_DISABLE``
    Mends to leave out, by name and separated by commas; ``all`` leaves out every one of them. For
    finding out whether a mend is to blame for something.
``ZCODE_COMPAT_ALLOW``
    Classes (``package.module.Class``, separated by commas) that checkpoints may hold besides those
    that fairseq itself writes. A class named here is imported and its instances are rebuilt from
    the file: name only classes, and open only files, that you trust.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # the real typing module would cost every Python start milliseconds
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

__all__ = ["install"]

_MENDED_PACKAGES = frozenset({"fairseq", "fairseq_cli", "hydra"})


class _MendingFinder:
    """Finds modules as the finders behind it do, and has ``zcode_mends`` see those concerned."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] not in _MENDED_PACKAGES:
            return None
        import zcode_mends

        behind = [finder for finder in sys.meta_path if finder is not self]
        return zcode_mends.find_mended_spec(behind, name, path, target)


def install() -> None:
    """Put the finder in front of ``sys.meta_path``, once."""
    if not any(isinstance(finder, _MendingFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _MendingFinder())


install()
