"""Dense checkpoints with experts: the same function, the moments in their places."""

from __future__ import annotations

import shlex
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint.dense_files import ARCHITECTURES, State, build, dense_state, write
from omegaconf import OmegaConf

from zcode_plugin.checkpoint import config, io, names
from zcode_plugin.checkpoint.tensors import bit_equal
from zcode_plugin.checkpoint.upcycle import _PARAMETERS, FEED_FORWARD, dense_parameters
from zcode_plugin.cli.main import main
from zcode_plugin.models.moe_transformer import MoETransformer
from zcode_plugin.models.stored import as_namespace

SIDES = ("encoder.layers.1", "decoder.layers.1")


def upcycle(folder: Path, state: State, *flags: str, experts: str = "4") -> State:
    """What `zcode upcycle` makes of a state."""
    out = folder / "moe.pt"
    source = write(folder, state)
    before = source.read_bytes()
    assert main(["upcycle", str(source), "--experts", experts, "--out", str(out), *flags]) == 0
    assert source.read_bytes() == before
    made = io.load(out)
    out.unlink()
    return made


def model_of(state: State) -> torch.nn.Module:
    """The model that a checkpoint's options say, with its weights."""
    model = build(as_namespace(config.section(state, "model")))
    model.load_state_dict(dict(state["model"]))
    return model.eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    """Of a batch with padding."""
    source = torch.tensor([[4, 5, 6, 7, 2], [5, 4, 2, 1, 1], [8, 8, 8, 4, 2]])
    previous = torch.tensor([[2, 4, 5, 6], [2, 7, 8, 4], [2, 5, 5, 5]])
    with torch.no_grad():
        return model(source, (source != 1).sum(1), previous)[0]


def key(layer: str, expert: int, name: str) -> str:
    return f"{layer}.moe_layer.experts.{expert}.{name}"


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(
    "flags", [(), ("--top-k", "2"), ("--moe-freq", "1"), ("--decoder-moe-freq", "0")]
)
def test_the_model_is_the_same_function(tmp_path: Path, arch: str, flags: tuple[str, ...]) -> None:
    """Rows of experts are multiplied in other groups, and two halves summed: rounding, no more."""
    state = dense_state(arch)
    expected = logits(model_of(state))
    model = model_of(upcycle(tmp_path, state, *flags))
    assert any("moe_layer" in name for name, _ in model.named_parameters())
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-6)


def test_layers_may_have_different_numbers_of_experts(tmp_path: Path) -> None:
    model = upcycle(tmp_path, dense_state("transformer"), "--moe-freq", "1", experts="2,3,4,5")
    gates = [value.size(0) for name, value in model["model"].items() if name.endswith("wg.weight")]
    assert gates == [2, 3, 4, 5]
    model_of(model)


@pytest.mark.parametrize("arch", [*ARCHITECTURES, "transformer_iwslt_de_en"])
def test_the_printed_flags_build_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arch: str
) -> None:
    state = dense_state(
        arch, activation_fn="gelu", layernorm_embedding=True, decoder_ffn_embed_dim=16,
        share_all_embeddings=True, decoder_learned_pos=True, decoder_embed_dim=8,
    )  # fmt: skip
    made = upcycle(tmp_path, state, "--encoder-moe-freq", "1", experts="2,3,4")
    flags = shlex.split(capsys.readouterr().out.splitlines()[-1].partition("moe.pt ")[2])
    parser = ArgumentParser(argument_default=SUPPRESS)
    parser.add_argument("--arch")
    MoETransformer.add_args(parser)
    options = parser.parse_args(flags)
    assert options.dropout == 0
    model = build(Namespace(_name=options.arch, **vars(options)))
    model.load_state_dict(dict(made["model"]))
    model.eval()
    torch.testing.assert_close(logits(model), logits(model_of(state)), rtol=0, atol=1e-6)


def test_what_lies_where_the_dense_run_saved_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = dense_state("transformer", save_dir="checkpoints", restore_file="checkpoint_last.pt")
    monkeypatch.chdir(tmp_path)
    alone = upcycle(tmp_path, state)
    other = upcycle(tmp_path, dense_state("transformer"), "--top-k", "2")
    (tmp_path / "checkpoints").mkdir()
    torch.save(other, tmp_path / "checkpoints" / "checkpoint_last.pt")
    beside = upcycle(tmp_path, state)
    assert vars(beside["cfg"]["model"]) == vars(alone["cfg"]["model"])


def as_struct(options: State) -> object:
    cfg = OmegaConf.create({**options, "model": vars(options["model"])})
    OmegaConf.set_struct(cfg, True)
    return cfg


FORMS: dict[str, Callable[[State], State]] = {
    "dict": lambda cfg: {"args": None, "cfg": {**cfg, "model": vars(cfg["model"])}},
    "DictConfig": lambda cfg: {"args": None, "cfg": as_struct(cfg)},
    "args alone": lambda cfg: {"args": Namespace(**vars(cfg["model"])), "cfg": None},
}


@pytest.mark.parametrize("form", FORMS)
def test_options_may_have_any_form_of_stock(tmp_path: Path, form: str) -> None:
    state = dense_state("transformer", activation_fn="gelu")
    plain = upcycle(tmp_path, state)
    made = upcycle(tmp_path, {**state, **FORMS[form](state["cfg"])})
    options = vars(as_namespace(config.section(made, "model")))
    known = vars(plain["cfg"]["model"])
    assert {name: options[name] for name in known if name in options} == {
        name: value for name, value in known.items() if name in options
    }
    assert options["arch"] == "moe_transformer_stock"
    assert options["moe_normalize_gate_prob"] == "true"
    torch.testing.assert_close(logits(model_of(made)), logits(model_of(state)), rtol=0, atol=1e-6)


def test_options_of_the_dense_run_that_say_nothing_of_experts_stay(tmp_path: Path) -> None:
    state = dense_state("moe_transformer_tiny_dense", activation_fn="gelu", activation_dropout=0.3)
    options = upcycle(tmp_path, state, "--encoder-moe-freq", "1")["cfg"]["model"]
    assert (options.activation_fn, options.activation_dropout) == ("gelu", 0.3)
    assert (options.arch, options._name) == ("moe_transformer_tiny",) * 2
    assert (options.encoder_moe_freq, options.decoder_moe_freq, options.moe_freq) == (1, None, 2)
    assert options.moe_jitter_eps == 0.01  # of the architecture


def test_experts_are_equal_without_noise_and_hold_tensors_of_their_own(tmp_path: Path) -> None:
    dense = dense_state("transformer")
    made = upcycle(tmp_path, dense)["model"]
    for layer in SIDES:
        for name in FEED_FORWARD:
            experts = [made[key(layer, expert, name)] for expert in range(4)]
            assert all(bit_equal(expert, dense["model"][f"{layer}.{name}"]) for expert in experts)
            assert len({expert.data_ptr() for expert in experts}) == 4
    assert not any(names.is_fast_path_copy(name) for name in made)
    assert any(names.is_fast_path_copy(name) for name in dense["model"])


def test_noise_is_as_large_as_asked_and_not_twice_the_same(tmp_path: Path) -> None:
    dense = dense_state("transformer", encoder_learned_pos=True)
    made = upcycle(tmp_path, dense, "--noise", "0.2", experts="50")["model"]
    for layer in SIDES:
        for name in FEED_FORWARD:
            original = dense["model"][f"{layer}.{name}"]
            change = torch.stack([made[key(layer, n, name)] - original for n in range(50)])
            # 400 draws at least: their deviation is known to 1 / sqrt(2 x 400) = 4 %
            share = float(change.std() / original.std(unbiased=False))
            assert share == pytest.approx(0.2, rel=0.15), name
            assert len(change.flatten().unique()) > 0.99 * change.numel()


def test_draws_depend_on_the_seed_and_the_entry_alone(tmp_path: Path) -> None:
    dense = dense_state("transformer")
    two = upcycle(tmp_path, dense, "--noise", "0.1", experts="2")["model"]
    three = upcycle(tmp_path, dense, "--noise", "0.1", "--moe-freq", "1", experts="3")["model"]
    other = upcycle(tmp_path, dense, "--noise", "0.1", "--seed", "2", experts="2")["model"]
    for layer in SIDES:
        expert, gate = key(layer, 1, "fc1.weight"), names.gate_key(f"{layer}.moe_layer")
        assert torch.equal(two[expert], three[expert])
        assert not torch.equal(two[expert], other[expert])
        assert not torch.equal(two[gate], other[gate])


def test_a_gate_starts_as_a_gate_of_a_model_does(tmp_path: Path) -> None:
    made = upcycle(tmp_path, dense_state("transformer"), experts="200")["model"]
    gates = [made[names.gate_key(f"{layer}.moe_layer")] for layer in SIDES]
    for gate in gates:
        assert float(gate.std()) == pytest.approx(8**-0.5, rel=0.1)
    assert not torch.equal(*gates)


def test_averaged_weights_change_as_the_weights_do(tmp_path: Path) -> None:
    dense = dense_state("transformer")
    made = upcycle(tmp_path, dense, "--noise", "0.1")
    weights, average = made["model"], made["extra_state"]["ema"]
    assert weights.keys() == average.keys()
    for layer in SIDES:
        assert torch.equal(
            *(part[f"{layer}.moe_layer.gate.wg.weight"] for part in (weights, average))
        )
        for name in FEED_FORWARD:
            one = weights[key(layer, 3, name)] - dense["model"][f"{layer}.{name}"]
            two = average[key(layer, 3, name)] - dense["extra_state"]["ema"][f"{layer}.{name}"]
            torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_moments_follow_their_parameters(tmp_path: Path, arch: str) -> None:
    dense = dense_state(arch, share_decoder_input_output_embed=True)
    before = [name for name, _ in model_of(dense).named_parameters()]
    made = upcycle(tmp_path, dense, "--with-optimizer")
    model = model_of(made)
    saved = made["last_optimizer_state"]
    assert made["task_state"]["parameters"] == [name for name, _ in model.named_parameters()]
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.load_state_dict(saved)  # checks the number of parameters
    for number, (name, parameter) in enumerate(model.named_parameters()):
        moments = saved["state"][number]
        assert moments["exp_avg"].shape == moments["exp_avg_sq"].shape == parameter.shape
        if name.endswith("gate.wg.weight"):
            assert moments["step"] == 0
            assert not moments["exp_avg"].any()
            continue
        origin = name.replace("moe_layer.experts.fc1_", "fc1.").replace(
            "moe_layer.experts.fc2_", "fc2."
        )
        assert moments["step"] == 7
        assert torch.all(moments["exp_avg"] == before.index(origin)), name


@pytest.mark.parametrize(
    ("trained", "expected"),
    [
        (["encoder.embed_tokens.weight"], ["encoder.embed_tokens.weight"]),
        (["decoder.layers.1.fc1.weight", "decoder.layer_norm.weight"],
         [*(f"decoder.layers.1.moe_layer.{name}" for name in _PARAMETERS),
          "decoder.layer_norm.weight"]),
    ],
)  # fmt: skip
def test_experts_of_layers_that_were_not_trained_are_no_parameters(
    tmp_path: Path, trained: list[str], expected: list[str]
) -> None:
    """A run with --freeze-except."""
    dense = dense_state("moe_transformer_tiny_dense")
    dense["task_state"]["parameters"] = trained
    assert upcycle(tmp_path, dense)["task_state"]["parameters"] == expected


def test_without_with_optimizer_there_is_none(tmp_path: Path) -> None:
    made = upcycle(tmp_path, dense_state("moe_transformer_tiny_dense"))
    assert "last_optimizer_state" not in made
    assert config.num_updates(made) == 7
    assert "encoder.layers.1.moe_layer.experts.fc1_weight" in made["task_state"]["parameters"]


@pytest.mark.parametrize("sharing", ["share_all_embeddings", "share_decoder_input_output_embed"])
def test_parameters_are_told_from_a_file_in_which_tied_ones_are_apart(sharing: str) -> None:
    """As stock saves from a GPU."""
    state = dense_state("transformer", **{sharing: True})
    apart = {name: value.clone() for name, value in state["model"].items()}
    expected = [name for name, _ in build(state["cfg"]["model"]).named_parameters()]
    assert dense_parameters(apart) == dense_parameters(state["model"]) == expected


def test_rank_files_of_a_dense_run_are_one_model(tmp_path: Path) -> None:
    state = dense_state("moe_transformer_tiny_dense")
    for rank in range(2):
        config.put(state["cfg"]["model"], "expert_parallel_size", 2)
        state["cfg"]["distributed_training"] = {"distributed_world_size": 2}
        state["cfg"]["checkpoint"] = {"checkpoint_suffix": f"-rank-{rank}"}
        write(tmp_path, state, f"dense-rank-{rank}.pt")
    out = tmp_path / "moe.pt"
    source = str(tmp_path / "dense-rank-1.pt")
    line = ["upcycle", source, "--experts", "2", "--out", str(out), "--with-optimizer"]
    assert main(line) == 0
    made = io.load(out)
    assert made["cfg"]["model"].expert_parallel_size == 1
    assert made["cfg"]["model"].base_layers == 0
    torch.testing.assert_close(logits(model_of(made)), logits(model_of(state)), rtol=0, atol=1e-6)
