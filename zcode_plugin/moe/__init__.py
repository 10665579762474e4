"""Mixture of Experts: routing, gate, experts, layer, losses, load statistics.

Nothing in this package imports fairseq.

Shape suffixes, used throughout: T tokens of one call on one rank; E experts of the layer, over all
ranks; K experts chosen per token; A assignments, that is (token, choice) pairs; M model dimension;
F hidden dimension of an expert; L experts that live on this rank; P ranks of the expert group;
R rows that experts of this rank get from all ranks; I and O inputs and outputs of a linear map;
C places of an expert in fairscale's gates; S positions and B sentences of a batch. `load.py` counts
by Q parts of a batch and N positions.
"""

from zcode_plugin.moe.context import CallContext
from zcode_plugin.moe.experts import Experts
from zcode_plugin.moe.fixed_gates import HashGate, RandomGate
from zcode_plugin.moe.gate import Gate, GateOptions, TopKGate
from zcode_plugin.moe.gate_output import GateOutput
from zcode_plugin.moe.gating_dropout import GatingDropout
from zcode_plugin.moe.layer import MOELayer
from zcode_plugin.moe.load import LoadStatistics, labelled, load_statistics
from zcode_plugin.moe.quantised import QuantisedExperts
from zcode_plugin.moe.residual import ResidualExpert
from zcode_plugin.moe.routing import Routing, capacity, route
from zcode_plugin.moe.stats import LayerStats

__all__ = [
    "CallContext",
    "Experts",
    "Gate",
    "GateOptions",
    "GateOutput",
    "GatingDropout",
    "HashGate",
    "LayerStats",
    "LoadStatistics",
    "MOELayer",
    "QuantisedExperts",
    "RandomGate",
    "ResidualExpert",
    "Routing",
    "TopKGate",
    "capacity",
    "labelled",
    "load_statistics",
    "route",
]
