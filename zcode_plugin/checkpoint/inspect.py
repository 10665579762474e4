"""What is in a checkpoint: read mapped, so that a big one costs no memory.

Nothing is built and nothing asked of fairseq: entries are told apart by their names, so that files
of any model can be looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zcode_plugin.checkpoint import config, io, names
from zcode_plugin.checkpoint.gather import find_files, gather
from zcode_plugin.checkpoint.tensors import WEIGHTS_IN_EXTRA_STATE, identity, tied_entries
from zcode_plugin.checkpoint.vocabulary import directions_of, languages_of
from zcode_plugin.flags import comma_list

# A name in `--multitask`, where weights may have commas, too: `mt:1,dae:0@0,1@4000`.
_OBJECTIVE = re.compile(r"(?:^|,)\s*([A-Za-z_]\w*)")
PARTS = ("embeddings", "encoder", "decoder", "experts", "gates", "heads", "other")


@dataclass(frozen=True)
class Parameters:
    """Numbers of trained parameters; tied ones count once, quantised ones as what they stand for.

    Attributes:
        total: of the model. Not in it are buffers, scales of quantised weights, and the copies
            that stock encoder layers hold for an inference kernel.
        active: through which a token passes in translation: all but the heads of other objectives
            and the experts that it is not sent to.
        parts: by part, see `PARTS`; those that the model lacks are absent.
        dtypes: by the dtype in which they are stored.
    """

    total: int
    active: int
    parts: dict[str, int]
    dtypes: dict[str, int]


@dataclass(frozen=True)
class Optimizer:
    """The optimizer: its class in fairseq, whether its state is there, and the state's bytes."""

    name: str | None
    state: bool
    bytes: int


@dataclass(frozen=True)
class Contents:
    """What is in a checkpoint; None is what it does not say.

    Attributes:
        files: read, all ranks' where each has one; `bytes` is their size.
        vocabulary: symbols by side, `encoder` and `decoder`.
        experts: number of experts by MoE layer, `encoder.layers.1`.
        kept_experts: of a pruned model, their numbers before; by the same layers.
        ema: whether it holds averaged weights (--store-ema).
        ranks: of the run that saved it; `expert_parallel_size` of them share the experts.
    """

    files: list[str]
    bytes: int
    updates: int
    arch: str | None
    task: str | None
    objectives: list[str]
    languages: list[str]
    pairs: list[str]
    vocabulary: dict[str, int]
    experts: dict[str, int]
    kept_experts: dict[str, list[int]]
    top_k: int | None
    gate: str | None
    parameters: Parameters
    optimizer: Optimizer
    ema: bool
    ranks: int
    expert_parallel_size: int


def inspect(path: Path) -> Contents:
    """Look at a checkpoint: one file for all ranks, or any rank's file, or the name without a rank.

    Raises:
        UserError: there is none; and as `gather`.
    """
    files = find_files(path)
    gathered = gather(files)
    state, tensors = gathered.state, _tensors(gathered.state["model"])
    model, task = config.section(state, "model"), config.section(state, "task")
    top_k = _number(config.get(model, "moe_top_k", 1)) if gathered.experts else None
    langs = languages_of(state) or comma_list(config.get(task, "langs"))
    direction = _direction(task)
    return Contents(
        files=[str(file) for file in files],
        bytes=sum(file.stat().st_size for file in files),
        updates=config.num_updates(state),
        arch=_text(config.get(model, "arch") or config.get(model, "_name")),
        task=_text(config.task_name(task) or None),
        objectives=_OBJECTIVE.findall(str(config.get(task, "multitask", ""))),
        languages=langs or sorted(set(direction)),
        pairs=directions_of(state) or (["-".join(direction)] if direction else []),
        vocabulary=_vocabulary(tensors),
        experts={layer.removesuffix(".moe_layer"): n for layer, n in gathered.experts.items()},
        kept_experts={
            layer.removesuffix(".moe_layer"): list(numbers)
            for layer, numbers in (state.get("kept_experts") or {}).items()
        },
        top_k=top_k,
        gate=_text(config.get(model, "moe_gate", "learned")) if gathered.experts else None,
        parameters=_parameters(tensors, gathered.experts, top_k or 1),
        optimizer=_optimizer(state, files),
        ema=any((state.get("extra_state") or {}).get(name) for name in WEIGHTS_IN_EXTRA_STATE),
        ranks=config.world_size(state),
        expert_parallel_size=config.expert_parallel_size(state),
    )


def _tensors(model: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in model.items() if torch.is_tensor(value)}


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _number(value: Any) -> int:
    return int(value) if isinstance(value, (int, float, str)) else 1


def _direction(task: Any) -> list[str]:
    """Source and target language of a task of one direction."""
    pair = [config.get(task, name) for name in ("source_lang", "target_lang")]
    return [str(lang) for lang in pair] if None not in pair else []


def _vocabulary(model: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Rows of each side's embeddings."""
    return {
        key.partition(".")[0]: len(value)
        for key, value in model.items()
        if key.endswith("embed_tokens.weight") and value.dim() == 2
    }


def part_of(key: str) -> str:
    """Where a parameter belongs, see `PARTS`."""
    words = key.split(".")
    if names.parse_expert_key(key) or names.parse_stack(key):
        return "experts"
    if "moe_layer" in words and "gate" in words:
        return "gates"
    if words[0] == "heads":
        return "heads"
    if any(word.startswith("embed_") or word == "output_projection" for word in words):
        return "embeddings"
    return words[0] if words[0] in ("encoder", "decoder") else "other"


def _parameters(
    model: Mapping[str, torch.Tensor], experts: Mapping[str, int], top_k: int
) -> Parameters:
    sizes = _sizes(model)
    parts = dict.fromkeys(PARTS, 0)
    dtypes: dict[str, int] = {}
    idle = 0
    of_layer = dict.fromkeys(experts, 0)
    for key, size in sizes.items():
        parts[part_of(key)] += size
        dtype = str(model[key].dtype).removeprefix("torch.")
        dtypes[dtype] = dtypes.get(dtype, 0) + size
        if parsed := names.parse_expert_key(key):
            of_layer[parsed.layer] += size
    for layer, count in experts.items():
        idle += of_layer[layer] * (count - min(top_k, count)) // count
    total = sum(sizes.values())
    return Parameters(
        total=total,
        active=total - parts["heads"] - idle,
        parts={part: number for part, number in parts.items() if number},
        dtypes=dtypes,
    )


def _sizes(model: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Elements of each parameter, by entry; of tied ones the first alone."""
    tied = tied_entries(model)
    return {
        key: _elements(model, key, value)
        for key, value in model.items()
        if not (key in tied or names.is_buffer(key) or names.is_fast_path_copy(key))
        and not (names.parse_expert_key(key) and key.endswith(".scale"))
    }


def _elements(model: Mapping[str, torch.Tensor], key: str, value: torch.Tensor) -> int:
    """Elements; of a quantised weight of an expert those before several were packed in a byte."""
    parsed = names.parse_expert_key(key)
    if parsed is None or value.is_floating_point() or value.dim() != 2:
        return value.numel()
    rows = [
        model.get(str(names.ExpertKey(parsed.layer, parsed.expert, f"{name}.weight")))
        for name in ("fc1", "fc2")
    ]
    # fc1 is [ffn, d] and fc2 [d, ffn]: each has as many columns as the other has rows.
    return value.numel() if None in rows else len(rows[0]) * len(rows[1])  # type: ignore[arg-type]


def _optimizer(state: Mapping[str, Any], files: Iterable[Path]) -> Optimizer:
    history = state.get("optimizer_history") or [{}]
    found: list[dict[tuple[Any, ...], int]] = []
    present = False
    for path in files:
        saved = io.load_options(path).get("last_optimizer_state")  # checksums were looked at
        present = present or bool(saved)
        found.append({identity(x): x.numel() * x.element_size() for x in _within(saved)})
    size = sum(sum(tensors.values()) for tensors in found)
    return Optimizer(_text(history[-1].get("optimizer_name")), present, size)


def _within(value: Any) -> Iterable[torch.Tensor]:
    """All tensors in containers."""
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _within(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _within(item)
