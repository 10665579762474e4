"""fairseq models of this plugin."""

from zcode_plugin.models import architectures, moe_transformer  # noqa: F401
