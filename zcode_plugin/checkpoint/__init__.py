"""fairseq checkpoints of Mixture-of-Experts models; the one owner of file names and keys."""
