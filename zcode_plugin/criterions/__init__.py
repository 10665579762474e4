"""fairseq criterions of this plugin."""

from zcode_plugin.criterions import multitask_summed_loss  # noqa: F401
