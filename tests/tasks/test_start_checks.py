"""Options that a training cannot honour are refused, each in one line."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed import run_ranks
from fairseq.optim.fp16_optimizer import FP16Optimizer
from optimizers import adam, half_sgd
from torch import nn

from zcode_plugin.errors import UserError
from zcode_plugin.moe import Experts, MOELayer, TopKGate
from zcode_plugin.parallel.faults import RankError
from zcode_plugin.parallel.gradients import patch_optimizer
from zcode_plugin.parallel.topology import ExpertTopology, expert_topology
from zcode_plugin.tasks.start_checks import check_model, check_options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sentence-avg"], "--sentence-avg: losses are means over targets: leave it out"),
        (["--combine-valid-subsets"], "--combine-valid-subsets: name the subsets"),
        (["--curriculum", "2"], "--curriculum 2: joint batches are in random order from the start"),
        (["--grouped-shuffling"], "--grouped-shuffling: joint batches are in random order: leave"),
        (
            ["--adaptive-softmax-cutoff", "5,10"],
            "--adaptive-softmax-cutoff 5,10: losses need the scores of all symbols: leave it out",
        ),
        (["-s", "aa", "-t", "bb"], "to train on it alone give --lang-pairs aa-bb"),
    ],
)
def test_options_that_would_do_nothing(
    configure: Callable[..., Any],
    reversal: Path,
    refusal: Callable[..., str],
    options: list[str],
    message: str,
) -> None:
    from fairseq import tasks

    cfg = configure(reversal, *options)
    task = tasks.setup_task(cfg.task)
    assert message in refusal(lambda: task.build_model(cfg.model))
    if options[0] == "-s":  # a model that is only applied may have a direction
        task.build_model(cfg.model, from_checkpoint=True)


def test_what_is_trained_need_not_be_there_where_a_model_is_applied(
    configure: Callable[..., Any], reversal: Path, refusal: Callable[..., str]
) -> None:
    """As with heads, which translation does without."""
    from fairseq import tasks

    cfg = configure(reversal, "--freeze-except", "heads")
    task = tasks.setup_task(cfg.task)
    told = refusal(lambda: task.build_model(cfg.model))
    assert "no parameter of the model has 'heads' in its name" in told
    task.build_model(cfg.model, from_checkpoint=True)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["mt_nll_loss"], ""),
        (["mt_nll_loss_bb-aa"], ""),
        (["moe_gate_loss"], ""),
        (["bleu", "--eval-bleu"], ""),
        (["mt_bleu_aa-bb", "--eval-bleu"], ""),
        (["dae_loss", "--multitask", "mt,dae"], ""),
        (["dae_loss"], "--best-checkpoint-metric dae_loss: training or {data}/valid has no dae: "),
        (["mt_nll_loss_aa-cc"], "choose one of mt_nll_loss, mt_nll_loss_aa-bb, mt_nll_loss_bb-aa"),
        (["bleu"], "mt_nll_loss_bb-aa, or give --eval-bleu"),
        (
            ["mt_bleu_bb-aa", "--eval-bleu", "--eval-bleu-pairs", "aa-bb"],
            "mt_nll_loss_bb-aa, bleu, mt_bleu_aa-bb",
        ),
        (["mt_nll_loss_aa-bb", "--lang-pairs", "aa-bb"], "valid: choose one of mt_nll_loss"),
    ],
)
def test_a_best_metric_that_validation_will_not_log(
    configure: Callable[..., Any],
    reversal: Path,
    refusal: Callable[..., str],
    options: list[str],
    told: str,
) -> None:
    """Stock would fail with a KeyError, after the first epoch."""
    from fairseq import tasks

    cfg = configure(reversal, "--best-checkpoint-metric", *options)
    task = tasks.setup_task(cfg.task)
    task.build_model(cfg.model)
    task.load_dataset("train")
    if told:
        assert told.format(data=reversal) in refusal(lambda: task.load_dataset("valid"))
    else:
        task.load_dataset("valid")


def test_models_of_stock_have_no_heads() -> None:
    options, model = Namespace(arch="transformer_tiny"), nn.Linear(2, 2)
    check_model(options, model, ["mt", "dae"])
    with pytest.raises(UserError, match="--arch transformer_tiny has no head for electra: take"):
        check_model(options, model, ["mt", "electra"])


def _told(rank: int, options: Namespace, objectives: list[str]) -> str:
    try:
        check_options(options, objectives, None)
    except UserError as error:
        return str(error)
    return ""


def test_experts_for_more_ranks_than_there_are() -> None:
    """Under a launcher, too, which makes a process group of one rank."""
    options = Namespace(expert_parallel_size=2, moe_expert_count="4", model_parallel_size=1)
    refused = "--expert-parallel-size 2 must divide the world size 1 and"
    [one] = run_ranks(_told, 1, options, ["mt"])
    assert one.startswith(refused)
    assert _told(0, options, ["mt"]).startswith(refused)
    assert run_ranks(_told, 2, options, ["mt"]) == ["", ""]


@pytest.mark.parametrize(
    ("objectives", "flags", "message"),
    [
        (["mt", "dae"], {}, ""),
        (["mt"], {"checkpoint_activations": True}, ""),
        (["mt", "dae"], {"checkpoint_activations": True}, "2 objectives with --checkpoint-activat"),
        (["mt", "dae"], {"offload_activations": True}, "2 objectives with --offload-activations"),
        (["mlm"], {}, "mlm alone, which leaves the decoder unused: give --ddp-backend legacy_ddp, "
         "or add --find-unused-parameters"),
        (["mlm"], {"find_unused_parameters": True}, ""),
        (["mt", "mlm"], {"find_unused_parameters": True}, "mlm, which has no decoder, beside mt"),
        (["mt"], {"moe_gating_dropout": True}, "some passes: give --ddp-backend legacy_ddp, or add "
         "--find-unused-parameters"),
        (["mt"], {"moe_gating_dropout": True, "find_unused_parameters": True}, ""),
        (["mt", "dae"], {"moe_gating_dropout": True, "find_unused_parameters": True},
         "some passes: give --ddp-backend legacy_ddp"),
        (["mt"], {"encoder_layerdrop": 0.1}, "--encoder-layerdrop, which leaves layers unused"),
        (["mt"], {"encoder_layerdrop": 0.1, "find_unused_parameters": True}, ""),
        (["mt", "dae"], {"decoder_layerdrop": 0.1, "find_unused_parameters": True},
         "some passes: give --ddp-backend legacy_ddp"),
    ],
)  # fmt: skip
def test_what_torchs_ddp_cannot_do(
    objectives: list[str], flags: dict[str, Any], message: str
) -> None:
    options = Namespace(ddp_backend="pytorch_ddp", **flags)
    first, second = run_ranks(_told, 2, options, objectives)
    assert first == second
    assert message in first
    assert bool(first) == bool(message)
    assert run_ranks(_told, 2, Namespace(**{**vars(options), "ddp_backend": "legacy_ddp"}),
                     objectives) == ["", ""]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cpu_offload": True}, "--cpu-offload needs --ddp-backend fully_sharded"),
        ({"optimizer": "composite", "moe_balance": "bias"}, "give --moe-balance loss"),
    ],
)
def test_optimizers_that_cannot_do_it(options: dict[str, Any], message: str) -> None:
    assert message in _told(0, Namespace(**options), ["mt"])


def _experts() -> nn.Module:
    return MOELayer(TopKGate(4, 2), Experts(4, 8, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quant_noise_pq": 0.1}, "--quant-noise-pq 0.1 knows nothing of experts"),
        ({"quant_noise_scalar": 0.1}, "--quant-noise-scalar 0.1 knows nothing of experts"),
    ],
)
def test_what_does_not_go_with_experts(options: dict[str, Any], message: str) -> None:
    check_model(Namespace(**options), nn.Linear(2, 2), ["mt"])
    with pytest.raises(UserError, match=message):
        check_model(Namespace(**options), _experts(), ["mt"])


def test_gates_alone_need_their_passes() -> None:
    model, options = _experts(), Namespace(moe_gating_dropout=0.2)
    check_model(options, model, ["mt"])
    gate = nn.ModuleDict({"moe_layer": model})
    model.experts.requires_grad_(False)
    check_model(Namespace(moe_gating_dropout=0.0), gate, ["mt"])
    with pytest.raises(UserError, match="and gates alone are trained: set it to 0"):
        check_model(options, gate, ["mt"])
    model.experts.requires_grad_(True)
    check_model(options, gate, ["mt"])
    options.moe_gating_dropout_policy = "skip"
    with pytest.raises(UserError, match="and gates and experts alone are trained: set it to 0"):
        check_model(options, gate, ["mt"])


def _experts_alone(rank: int, backend: str) -> str:
    model = _experts()
    for parameter in model.experts.parameters():
        parameter.expert = True  # type: ignore[attr-defined]
    model.gate.requires_grad_(False)
    try:
        check_model(Namespace(ddp_backend=backend), model, ["mt"])
    except UserError as error:
        return str(error)
    return ""


def test_experts_alone_need_another_backend() -> None:
    first, _ = run_ranks(_experts_alone, 2, "pytorch_ddp")
    assert first.endswith("experts alone are trained: give --ddp-backend legacy_ddp")
    assert run_ranks(_experts_alone, 2, "legacy_ddp") == ["", ""]


def _clipped(rank: int, shared: bool) -> tuple[float, list[float]]:
    """The norm, and an expert's gradient after clipping to 1, of ranks with gradients 3 and 4."""
    expert = nn.Parameter(torch.zeros(1))
    expert.expert = True  # type: ignore[attr-defined]
    parameters = [expert] + [nn.Parameter(torch.zeros(1))] * shared
    optimizer = adam(parameters)
    patch_optimizer(optimizer, expert_topology(2, [2]))
    expert.grad = torch.tensor([3.0 + rank])
    for parameter in parameters[1:]:
        parameter.grad = torch.tensor([12.0])
    norm = optimizer.clip_grad_norm(1.0)
    return float(norm), expert.grad.tolist()


def test_gradients_that_are_no_numbers_end_a_run_of_one_process(
    refusal: Callable[..., str],
) -> None:
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = adam([parameter])
    patch_optimizer(optimizer, ExpertTopology())
    patch_optimizer(optimizer, ExpertTopology())
    parameter.grad = torch.tensor([3.0, 4.0])
    assert optimizer.clip_grad_norm(1.0) == pytest.approx(5.0)
    assert parameter.grad.tolist() == pytest.approx([0.6, 0.8])
    parameter.grad = torch.tensor([3.0, float("nan")])
    assert "gradients are infinite or NaN: lower --lr" in refusal(
        lambda: optimizer.clip_grad_norm(1.0)
    )


def _least_scale(shared: bool) -> FP16Optimizer:
    """An optimizer whose loss scale cannot fall further, and an infinite gradient."""
    parameters = [nn.Parameter(torch.zeros(2, dtype=torch.float16))]
    optimizer = half_sgd(parameters, min_loss_scale=4.0)
    patch_optimizer(optimizer, expert_topology(2, [2]) if shared else ExpertTopology())
    optimizer.zero_grad()
    optimizer.backward(parameters[0].float().sum() * 1e30)
    return optimizer


def _least_scale_of_a_rank(rank: int) -> str:
    try:
        _least_scale(shared=True).clip_grad_norm(1.0)
    except RankError as error:
        return str(error)
    return ""


def test_a_loss_scale_that_cannot_fall_further_ends_the_run(refusal: Callable[..., str]) -> None:
    """Stock would look for the place in a pass that knows nothing of gates."""
    optimizer = _least_scale(shared=False)
    told = refusal(lambda: optimizer.clip_grad_norm(1.0))
    assert "Minimum loss scale reached (4.0). Your loss is probably exploding" in told
    for said in run_ranks(_least_scale_of_a_rank, 2):
        assert said.startswith("Minimum loss scale reached (4.0)")


@pytest.mark.parametrize(("shared", "norm"), [(False, 5.0), (True, 13.0)])
def test_experts_are_clipped_with_and_without_others(shared: bool, norm: float) -> None:
    for rank, (found, grad) in enumerate(run_ranks(_clipped, 2, shared)):
        assert found == pytest.approx(norm)
        assert grad == pytest.approx([(3 + rank) / norm], rel=1e-5)


def test_too_long_sentences_are_told_at_the_start(
    configure: Callable[..., Any],
    reversal: Path,
    refusal: Callable[..., str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Stock would fail at the first validation, with numbers that are of no file."""
    from fairseq import tasks

    limits = ("--max-source-positions", "4", "--max-target-positions", "5")
    lines = [line.split() for line in (reversal.parent / "valid.aa").read_text().splitlines()]

    def built(*options: str) -> Any:
        cfg = configure(reversal, *limits, *options)
        task = tasks.setup_task(cfg.task)
        task.build_model(cfg.model)
        return task

    told = refusal(lambda: built().load_dataset("valid"))
    built("--disable-validation").load_dataset("valid")
    task = built("--skip-invalid-size-inputs-valid-test")
    task.load_dataset("valid")
    task.get_batch_iterator(
        task.dataset("valid"), max_tokens=100, max_positions=(4, 5), ignore_invalid_inputs=True
    )
    [warned] = [line for line in caplog.messages if "left out" in line]
    assert told.endswith(": raise them, or leave the sentences out with "
                         "--skip-invalid-size-inputs-valid-test")  # fmt: skip
    # With the end, a source of 4 tokens has 3 words.
    long = sum(len(line) > 3 for line in lines)
    for line in (told, warned):
        assert f"{2 * long} sentences (mt aa-bb: {long}, mt bb-aa: {long}; for example" in line
        number, source, target = re.findall(
            r"number (\d+) of mt ..-.., (\d+) and (\d+) tokens", line
        )[0]
        words = len(lines[int(number) - 1])
        assert (int(source), int(target)) == (words + 1, words + 1)
        assert "longer than --max-source-positions 4 and --max-target-positions 5" in line
