"""Symbols of vocabularies that stand for more than text; imports nothing."""

SPACE = "\u2581"  # SentencePiece's, in the place of a space at the start of a piece
GLUED = "@@"  # subword-nmt's, at the end of a piece that the next belongs to
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # fairseq's own, in the order of their numbers
MASK = "<mask>"


def language_token(lang: str) -> str:
    """`__de__`, as stock fairseq's multilingual tasks write it."""
    return f"__{lang}__"


def objective_token(objective: str) -> str:
    """`<objective_mt>`; no language token, that of Maltese is `__mt__`."""
    return f"<objective_{objective}>"
