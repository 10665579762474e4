"""From raw text to data: finding files, reading them, subwords, binarising, the manifest."""
