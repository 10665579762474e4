"""Exported models compute what fairseq's do."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint.exported import build, checkpoint, dictionary, export, load
from fairseq.sequence_generator import SequenceGenerator
from safetensors import safe_open
from torch import Tensor

from zcode_plugin.errors import UserError

OPTION_SETS: dict[str, dict[str, Any]] = {
    "pre-norm": {},
    "name of the paper's": {"arch": "zcode_m3_10b"},
    "post-norm": {"encoder_normalize_before": False, "decoder_normalize_before": False},
    "learned positions": {"encoder_learned_pos": True, "decoder_learned_pos": True},
    "top-2 of different counts": {"moe_top_k": 2, "moe_expert_count": "4,2", "moe_freq": 2},
    "not normalised": {"moe_top_k": 2, "moe_normalize_gate_prob": "false"},
    "normalised top-1": {"moe_normalize_gate_prob": "true"},
    "residual": {"moe_residual": True, "activation_fn": "gelu"},
    "bias": {"moe_balance": "bias", "moe_top_k": 2},
    "hash": {"moe_gate": "hash", "moe_top_k": 2},
    "random": {"moe_gate": "random"},
    "gate that sees the token": {"moe_gate_sees_token": True, "moe_top_k": 2},
    "dense": {"moe_freq": 0, "activation_fn": "gelu_fast"},
    "experts everywhere": {"moe_freq": 1, "activation_fn": "tanh", "no_decoder_final_norm": True},
    "no shared embeddings": {"share_all_embeddings": False, "layernorm_embedding": True},
    "two widths": {
        "share_all_embeddings": False,
        "share_decoder_input_output_embed": True,
        "decoder_embed_dim": 20,
        "decoder_ffn_embed_dim": 36,
        "no_scale_embedding": True,
    },
    "no positions": {"no_token_positional_embeddings": True, "activation_fn": "relu_squared"},
}


def batch() -> tuple[Tensor, Tensor]:
    """Sources padded on the left, as fairseq does it, and targets padded on the right."""
    draw = torch.Generator().manual_seed(5)
    source = torch.randint(4, 36, (3, 9), generator=draw)
    target = torch.randint(4, 36, (3, 7), generator=draw)
    source[:, -1], target[:, 0] = 2, 2
    source[1, :4], target[1, 4:] = 1, 1
    source[2, :1], target[2, 6:] = 1, 1
    return source, target


@pytest.mark.parametrize("options", OPTION_SETS.values(), ids=OPTION_SETS)
@torch.no_grad()
def test_logits_are_those_of_fairseq(options: dict[str, Any], tmp_path: Path) -> None:
    model, args = build(**options)
    export(checkpoint(model, args), tmp_path / "exported")
    exported, _ = load(tmp_path / "exported")
    source, target = batch()
    is_token = target != 1
    lengths = (source != 1).sum(1)
    wanted = model(source, lengths, target)[0][is_token]
    found = exported(input_ids=source, decoder_input_ids=target).logits[is_token]
    assert wanted.std() > 0.3  # a difference would show
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    # Padding on the other side, told by a mask.
    right = torch.stack([row.roll(-int((row == 1).sum())) for row in source])
    found = exported(right, right != 1, target, use_cache=False).logits[is_token]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "name",
    [
        "top-2 of different counts",
        "learned positions",
        "hash",
        "gate that sees the token",
    ],
)
@torch.no_grad()
def test_a_step_with_a_cache_is_that_of_the_whole(name: str, tmp_path: Path) -> None:
    model, args = build(**OPTION_SETS[name])
    export(checkpoint(model, args), tmp_path / "exported")
    exported, _ = load(tmp_path / "exported")
    source, target = batch()
    target = target[:1]
    source = source[:1]
    whole = exported(source, decoder_input_ids=target, use_cache=False).logits
    field = "cache" if "cache" in exported(source, decoder_input_ids=target) else "past_key_values"
    cache, steps = None, []
    for token in target.split([3, 1, 1, 1, 1], dim=1):
        output = exported(source, decoder_input_ids=token, past_key_values=cache)
        cache = output[field]
        steps.append(output.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-5, rtol=0)


SEARCHES = {
    "beam": ({"beam_size": 5}, {}),
    "greedy": ({"beam_size": 1}, {"num_beams": 1}),
    "penalty": ({"beam_size": 4, "len_penalty": 0.5}, {"num_beams": 4, "length_penalty": 0.5}),
    "up to the end": ({"beam_size": 3, "max_len_b": 6}, {"num_beams": 3, "max_new_tokens": 7}),
    "total length": ({"beam_size": 3, "max_len_b": 6}, {"num_beams": 3, "max_length": 8}),
}  # fmt: skip


@pytest.mark.parametrize("first", [None, 35], ids=["free", "language token"])
@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_searches_find_what_those_of_fairseq_find(
    search: tuple[dict[str, Any], dict[str, Any]], first: int | None, tmp_path: Path
) -> None:
    model, args = build(moe_top_k=2, moe_expert_count="4,3", share_all_embeddings=False)
    with torch.no_grad():  # sharp distributions, and sentences of different lengths
        table = model.decoder.output_projection.weight
        table *= 3
        table[2] += 3 * model.decoder.layer_norm.bias
    export(checkpoint(model, args), tmp_path / "exported")
    exported, _ = load(tmp_path / "exported")
    source = torch.randint(4, 36, (12, 6), generator=torch.Generator().manual_seed(1))
    source[:, -1], source[3, :2] = 2, 1
    ours, theirs = search
    generator = SequenceGenerator([model], dictionary(), **{"max_len_b": 30, **ours})
    prefix = None if first is None else source.new_full((12, 1), first)
    batch = {"net_input": {"src_tokens": source, "src_lengths": (source != 1).sum(1)}}
    wanted = [found[0] for found in generator.generate([model], batch, prefix_tokens=prefix)]
    if "max_length" not in theirs:
        theirs = {"max_new_tokens": 31, **theirs}
    found = exported.generate(
        source,
        forced_bos_token_id=first,
        output_scores=True,
        return_dict_in_generate=True,
        **theirs,
    )
    for row, hypothesis in zip(found.sequences, wanted, strict=True):
        assert row[row != 1].tolist() == [2, *hypothesis["tokens"].tolist()]
    if ours["beam_size"] > 1:
        scores = torch.stack([hypothesis["score"] for hypothesis in wanted])
        torch.testing.assert_close(found.sequences_scores, scores, atol=1e-5, rtol=0)
    assert len({len(hypothesis["tokens"]) for hypothesis in wanted}) > 1


def test_a_language_token_for_each_sentence(tmp_path: Path) -> None:
    model, args = build()
    export(checkpoint(model, args), tmp_path / "exported")
    exported, tokenizer = load(tmp_path / "exported")
    tokens = [tokenizer.get_lang_id(lang) for lang in ("bb", "aa")]
    source, _ = batch()
    found = exported.generate(source[:2], forced_bos_token_id=tokens, max_new_tokens=3)
    assert found[:, 1].tolist() == tokens


def test_learns_from_labels(tmp_path: Path) -> None:
    model, args = build(dropout=0.1)
    export(checkpoint(model, args), tmp_path / "exported")
    exported, tokenizer = load(tmp_path / "exported")
    pairs = tokenizer(
        ["word1 word2", "word3"], text_target=["word2 word1", "word4"], tgt_lang="bb", padding=True,
        return_tensors="pt",
    )  # fmt: skip
    optimizer = torch.optim.Adam(exported.train().parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        loss = exported(**pairs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.1 * losses[0]


def test_half_precision_keeps_the_selection_bias(tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM

    model, args = build(moe_balance="bias")
    export(checkpoint(model, args), tmp_path / "exported")
    half = AutoModelForSeq2SeqLM.from_pretrained(
        tmp_path / "exported", trust_remote_code=True, dtype=torch.bfloat16
    )
    gate = half.encoder.layers[1].moe_layer.gate
    assert torch.equal(gate.selection_bias, model.encoder.layers[1].moe_layer.gate.selection_bias)
    assert gate.wg.weight.dtype == torch.bfloat16
    source, target = batch()
    assert half(source, decoder_input_ids=target).logits.isfinite().all()
    exported, _ = load(tmp_path / "exported")
    with torch.autocast("cpu", torch.bfloat16):
        assert exported(source, decoder_input_ids=target).logits.isfinite().all()


def test_a_saved_copy_is_the_same(tmp_path: Path) -> None:
    model, args = build()
    export(checkpoint(model, args), tmp_path / "exported")
    exported, tokenizer = load(tmp_path / "exported")
    exported.save_pretrained(tmp_path / "copy")
    tokenizer.save_pretrained(tmp_path / "copy")
    copy, copied = load(tmp_path / "copy")
    source, target = batch()
    same = [one(source, decoder_input_ids=target).logits for one in (exported, copy)]
    assert torch.equal(*same)
    text = "word1 </s> __bb__ nothing"
    assert copied(text, tgt_lang="aa").input_ids == [34, 5, 2, 35, 3, 2]
    assert tokenizer(text, tgt_lang="aa").input_ids == [34, 5, 2, 35, 3, 2]


def test_heads_are_left_out_and_said(tmp_path: Path) -> None:
    model, args = build(objectives=["mt", "mlm", "electra"])
    written = export(checkpoint(model, args), tmp_path / "exported")
    assert {name.split(".")[1] for name in written.left_out} == {"mlm", "electra"}
    assert written.tied == dict.fromkeys(
        ["decoder.embed_tokens.weight", "decoder.output_projection.weight"],
        "encoder.embed_tokens.weight",
    )
    with safe_open(tmp_path / "exported" / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "heads" in name]  # noqa: SIM118


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"moe_eval_capacity_factor": 1.5}, "--moe-eval-capacity-factor 1.5 has no counterpart"),
        ({"adaptive_softmax_cutoff": "8,16"}, "--adaptive-softmax-cutoff 8,16 has no"),
        ({"adaptive_input": True}, "--adaptive-input has no counterpart in the exported model"),
        ({"alignment_heads": 1}, "--alignment-heads 1 has no"),
        ({"quant_noise_pq": 0.1}, "--quant-noise-pq 0.1 has no"),
        ({"cross_self_attention": True}, "--cross-self-attention has no"),
        ({"no_cross_attention": True}, "--no-cross-attention has no"),
        ({"encoder_layers_to_keep": "0"}, "--encoder-layers-to-keep 0 has no"),
        ({"activation_fn": "swish"}, "--activation-fn swish is none of relu, "),
        ({"decoder_output_dim": 8}, "--decoder-output-dim 8 is not --decoder-embed-dim 32"),
        ({"arch": "transformer"}, "--arch transformer is no moe_transformer"),
    ],
)
def test_what_cannot_be_exported_is_named(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model, args = build()
    state = checkpoint(model, Namespace(**{**vars(args), **options}))
    with pytest.raises(UserError, match=f"^{re.escape(message)}") as error:
        export(state, tmp_path / "exported")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "exported").iterdir())


def test_a_weight_without_a_place_is_named(tmp_path: Path) -> None:
    model, args = build()
    state = checkpoint(model, args)
    state["model"]["encoder.layers.0.scale"] = torch.ones(1)
    with pytest.raises(UserError, match=r"the weight encoder.layers.0.scale has no place"):
        export(state, tmp_path / "one")
    del state["model"]["encoder.layers.0.scale"], state["model"]["decoder.layers.0.fc1.bias"]
    with pytest.raises(UserError, match=r"has no decoder.layers.0.fc1.bias, which"):
        export(state, tmp_path / "two")
