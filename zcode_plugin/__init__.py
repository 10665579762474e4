"""Mixture-of-Experts training for multitask multilingual translation, as a fairseq plugin.

`fairseq-train DATA --user-dir zcode_plugin ...` imports this package, which registers the task
`multitask_multilingual`, the model `moe_transformer` and the criterion `multitask_summed_loss`.
A program that imports this package before fairseq calls `register()` itself; the `zcode` command
does so where it needs fairseq, and starts fast where it does not.
"""

import sys


def register() -> None:
    """Register criterions, models and tasks with fairseq; any number of times."""
    from zcode_plugin import criterions, models, tasks  # noqa: F401


if "fairseq" in sys.modules:
    register()
