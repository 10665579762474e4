"""Stock fairseq's commands, run as processes."""
