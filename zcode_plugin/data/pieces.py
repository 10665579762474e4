"""How SentencePiece writes text."""

SPACE = "\u2581"  # in the place of a space, at the start of a piece
