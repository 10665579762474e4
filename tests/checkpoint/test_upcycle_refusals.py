"""What `zcode upcycle` refuses, and what `upcycle` and `inspect` make of damaged files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint.dense_files import State, dense_state, write
from checkpoint.rank_files import rank_state
from damage import DAMAGES, Damage, check_refusal
from hypothesis import HealthCheck, given, settings

from zcode_plugin.cli.main import main


def forget_optimizer(state: State) -> None:
    del state["last_optimizer_state"]


def two_groups(state: State) -> None:
    groups = state["last_optimizer_state"]["param_groups"]
    groups.append({"params": [groups[0]["params"].pop()]})


def coupled_moments(state: State) -> None:
    state["last_optimizer_state"]["state"][8] = {"exp_avg_sq_row": torch.ones(3)}


def other_model(state: State) -> None:
    state["cfg"]["model"].arch = state["cfg"]["model"]._name = "transformer_align"


def no_model(state: State) -> None:
    state["cfg"]["model"] = None


def adaptive_input(state: State) -> None:
    state["cfg"]["model"].adaptive_input = True


def adaptive_softmax(state: State) -> None:
    state["model"]["decoder.adaptive_softmax.head.weight"] = torch.ones(1)


def base_layers(state: State) -> None:
    state["model"]["decoder.layers.1.expert_network.fc1.weight"] = torch.ones(1)


def fewer_layers(state: State) -> None:
    state["cfg"]["model"].encoder_layers = 3


def no_decoder(state: State) -> None:
    for name in [name for name in state["model"] if name.startswith("decoder.layers")]:
        del state["model"][name]


def integers(state: State) -> None:
    state["model"]["encoder.layers.1.fc1.weight"] = torch.ones(12, 8, dtype=torch.int8)


REFUSALS = [
    (None, ["--experts", "0"], "--experts 0 is too small: give at least 1"),
    (None, ["--experts", "2,3,4"], "--experts 2,3,4 has 3 numbers, but encoder and decoder have "
     "2 MoE layers: give one number for all, or 2"),
    (None, ["--top-k", "3"], "--top-k 3 is more than --experts 2 of encoder layer 2: give at most "
     "as many"),
    (None, ["--top-k", "0"], "--top-k 0 is too small: give at least 1"),
    (None, ["--noise", "nan"], "--noise nan must be a number of at least 0"),
    (None, ["--moe-freq", "-1"], "--moe-freq -1 is too small: give at least 0"),
    (None, ["--moe-freq", "3"], "--moe-freq leaves no MoE layer: the encoder has 2 layers and the "
     "decoder 2"),
    (forget_optimizer, ["--with-optimizer"],
     "{0} holds no optimizer's state: leave out --with-optimizer"),
    (two_groups, ["--with-optimizer"], "{0}: the optimizer treats parameters in groups, of which "
     "new ones would be none: leave out --with-optimizer"),
    (coupled_moments, ["--with-optimizer"], "{0}: the optimizer's exp_avg_sq_row does not treat "
     "each weight of encoder.layers.0.fc2_bias by itself, as adam and sgd do: leave out "
     "--with-optimizer"),
    (other_model, [], "the checkpoint is of the model transformer_align: upcycle takes transformer "
     "of stock and moe_transformer, under the name of one of their architectures"),
    (no_model, [], "the checkpoint is of the model not named: upcycle takes transformer of stock "
     "and moe_transformer, under the name of one of their architectures"),
    (adaptive_input, [],
     "the checkpoint is of a model with --adaptive-input: upcycle takes none of those"),
    (adaptive_softmax, [], "{0} has an adaptive softmax (--adaptive-softmax-cutoff): upcycle takes "
     "a dense Transformer"),
    (base_layers, [], "{0} has BASE layers (--base-layers): upcycle takes a dense Transformer"),
    (fewer_layers, [], "the checkpoint holds 2 layers of the encoder and its options say 3"),
    (no_decoder, [], "{0} is of no Transformer with encoder and decoder: there is nothing to "
     "upcycle"),
    (integers, [], "the checkpoint has no encoder.layers.1.fc1.weight of floating-point numbers: "
     "upcycle takes a dense Transformer"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "flags", "message"), REFUSALS)
def test_refusals(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[State], None] | None,
    flags: list[str],
    message: str,
) -> None:
    state = dense_state("transformer", ema=False)
    if change is not None:
        change(state)
    refused(tmp_path, capsys, write(tmp_path, state), flags, message)


def refused(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    source: Path,
    flags: list[str],
    message: str,
) -> None:
    """The verb ends with this line and code 2, and the folder is as before."""
    before = {path: path.read_bytes() for path in folder.iterdir()}
    line = ["upcycle", str(source), "--experts", "2", "--out", str(folder / "out.pt"), *flags]
    assert main(line) == 2
    assert capsys.readouterr().err == f"zcode upcycle: error: {message.format(source)}\n"
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_model_with_experts_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path, rank_state(0, size=1))
    refused(
        tmp_path, capsys, source, [], "{0} has experts already: upcycle takes a dense Transformer"
    )


SMALL = {"encoder_layers": 1, "decoder_layers": 1, "encoder_embed_dim": 4}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A small checkpoint in both of torch's formats."""
    folder = tmp_path_factory.mktemp("good")
    state = dense_state("transformer", ema=False, **SMALL)
    torch.save(state, folder / "old.pt", _use_new_zipfile_serialization=False)
    return {"zip": write(folder, state).read_bytes(), "old": (folder / "old.pt").read_bytes()}


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(damage=DAMAGES)
def test_damaged_files_are_refused_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    good: dict[str, bytes],
    damage: Damage,
) -> None:
    bad, out = tmp_path / "bad.pt", tmp_path / "out.pt"
    content = damage.of(good)
    bad.write_bytes(content)
    upcycling = ["upcycle", str(bad), "--experts", "2", "--with-optimizer", "--out", str(out)]
    for line in (upcycling, ["inspect", str(bad)]):
        code = main([*line, *(["--moe-freq", "1"] if line is upcycling else [])])
        printed = capsys.readouterr().err
        check_refusal(line[0], code, printed, damage)
        assert bad.read_bytes() == content
        written = {bad, out} if code == 0 and line is upcycling else {bad}
        assert set(tmp_path.iterdir()) == written
        out.unlink(missing_ok=True)
