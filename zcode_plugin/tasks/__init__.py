"""fairseq tasks of this plugin."""

from zcode_plugin.tasks import multitask_multilingual  # noqa: F401
