"""Draws how often a token is dropped, by its position in the batch, for each token priority.

    python docs/plots/rts_bias.py [PNG]      (default: rts_bias.png beside this file)

Tokens choose one of 8 experts at random, capacity factor 0.75. `position` drops the end of the
batch, whole sentences of it; random token selection drops alike everywhere. Needs matplotlib
(`pip install .[bench]`).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from matplotlib import pyplot
from torch import Tensor

from zcode_plugin.moe.routing import TokenPriority, capacity, route, token_priority

TOKENS, EXPERTS, FACTOR, DRAWS = 256, 8, 0.75, 2000
# Colours that stay apart for colour-blind readers.
KINDS: dict[TokenPriority, str] = {"position": "#d55e00", "rts": "#0072b2"}


def drop_rate_T(kind: TokenPriority) -> Tensor:
    """Share of the draws in which the token at each position was dropped, [T]."""
    torch.manual_seed(1)
    limit = capacity(TOKENS, EXPERTS, 1, FACTOR)
    dropped_T = torch.zeros(TOKENS)
    for _ in range(DRAWS):
        expert_KT = torch.randint(EXPERTS, (1, TOKENS))
        priority_T = token_priority(kind, torch.ones(TOKENS))
        dropped_T += 1
        dropped_T[route(expert_KT, EXPERTS, limit, priority_T=priority_T).token_A] -= 1
    return dropped_T / DRAWS


def main(path: Path) -> None:
    """Write the figure."""
    figure, axes = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    for kind, colour in KINDS.items():
        axes.plot(100 * drop_rate_T(kind), color=colour, label=f"--moe-token-priority {kind}")
    axes.set_xlabel("position of the token in the batch")
    axes.set_ylabel("dropped, % of batches")
    axes.set_xlim(0, TOKENS - 1)
    axes.set_ylim(0, 100)
    axes.set_title(
        f"{TOKENS} tokens, {EXPERTS} experts, capacity factor {FACTOR}, {DRAWS} batches",
        fontsize=10,
    )
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"))
