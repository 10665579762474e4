"""How a run is spread over ranks.

Process groups of expert, tensor and data parallelism, sharded states, gradients and their norm,
loss-free balancing, and what happens when a rank fails.
"""
