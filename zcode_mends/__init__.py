"""The mends that let stock fairseq 0.12.2 run on current Python, PyTorch, numpy and hydra.

Each is named and explained where it is defined. ``zcode_compat`` imports this package when fairseq
or hydra is first imported; nothing else needs to.
"""

from zcode_mends.loading import MENDS, find_mended_spec
from zcode_mends.mend import Mend

__all__ = ["MENDS", "Mend", "find_mended_spec"]
