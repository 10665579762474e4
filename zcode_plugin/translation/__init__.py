"""Translation from Python: raw text in, raw text out. Imports torch and fairseq on loading alone.

from zcode_plugin.translation import Translator

translator = Translator.load("model.pt")
translator("Hallo Welt", source="de", target="en")
"""

from zcode_plugin.translation.options import Batching, Search
from zcode_plugin.translation.translator import Hypothesis, Translation, Translator

__all__ = ["Batching", "Hypothesis", "Search", "Translation", "Translator"]
