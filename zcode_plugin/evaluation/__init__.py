"""Translation with fairseq-generate, scores and paired tests, COMET, what experts do on data."""
