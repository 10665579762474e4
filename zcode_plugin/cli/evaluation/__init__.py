"""The parts of `zcode evaluate`: calls of fairseq-generate, and scores."""
