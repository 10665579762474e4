"""The parts of `zcode prepare`: finding files, reading text, subwords, binarising, the manifest."""
