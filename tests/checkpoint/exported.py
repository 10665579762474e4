"""Checkpoints of models that were never trained, and what transformers makes of them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fairseq.data import Dictionary

from zcode_plugin.checkpoint.export import Written, huggingface_options, write_huggingface
from zcode_plugin.checkpoint.gather import gather_whole
from zcode_plugin.checkpoint.tokenisation import find_vocabulary
from zcode_plugin.data.languages import add_special_symbols
from zcode_plugin.models.architectures import TINY, fill
from zcode_plugin.models.moe_transformer import MoETransformer

LANGS = ["aa", "bb"]
SMALL = {
    "arch": "moe_transformer_tiny",
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 48,
    "moe_expert_count": "4",
    "max_source_positions": 40,
    "max_target_positions": 40,
}


def dictionary() -> Dictionary:
    """30 words, the languages' tokens and the mask."""
    words = Dictionary()
    for number in range(30):
        words.add_symbol(f"word{number}")
    add_special_symbols(words, LANGS)
    return words


def build(
    symbols: Dictionary | None = None, objectives: Sequence[str] = (), **options: Any
) -> tuple[MoETransformer, Namespace]:
    """A model of random weights, norms and biases included, and its options."""
    args = Namespace(**{**SMALL, **options})
    fill(args, TINY)
    symbols = symbols or dictionary()
    torch.manual_seed(3)
    task = Namespace(
        source_dictionary=symbols,
        target_dictionary=symbols,
        objectives=[Namespace(name=name) for name in objectives],
    )
    model = MoETransformer.build_model(Namespace(**vars(args)), task).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                weight += 0.2 * torch.randn_like(weight)
        for name, buffer in model.named_buffers():
            if name.endswith("selection_bias"):
                buffer.copy_(0.1 * torch.randn_like(buffer))
    return model, args


def checkpoint(model: MoETransformer, args: Namespace, **task: Any) -> dict[str, Any]:
    """What training saves."""
    return {
        "args": None,
        "cfg": {
            "model": args,
            "task": {"_name": "multitask_multilingual", "encoder_langtok": "tgt", **task},
            "distributed_training": {"distributed_world_size": 1, "distributed_rank": 0},
            "checkpoint": {"checkpoint_suffix": ""},
        },
        "model": model.state_dict(),
        "optimizer_history": [{"num_updates": 7}],
        "task_state": {"symbols": "\n".join(dictionary().symbols), "langs": LANGS},
    }


def export(state: dict[str, Any], folder: Path) -> Written:
    """Save the checkpoint beside `folder`, and export it there."""
    path = folder.with_suffix(".pt")
    torch.save(state, path)
    folder.mkdir()
    _, gathered = gather_whole(path)
    options = huggingface_options(gathered)
    vocabulary = find_vocabulary(gathered.state, path, None, options["vocab_size"])
    return write_huggingface(gathered, options, vocabulary, None, folder)


def load(folder: Path) -> tuple[Any, Any]:
    """The model and the tokenizer, as users load them."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
    return model.eval(), AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
