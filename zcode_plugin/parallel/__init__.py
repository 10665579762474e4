"""Process groups of expert parallelism, and what gradients need because of them."""
