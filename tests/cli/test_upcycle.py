"""`zcode upcycle` between stock commands: translated as before, trained on, on several ranks."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import ranks
from toy import EXACT, PLUGIN, TASK, lines, run

from zcode_plugin.cli.main import main
from zcode_plugin.stock.jobs import StockCommand, StockJob

Run = Callable[..., subprocess.CompletedProcess[str]]

UPDATES, MORE = 30, 3
SAVING = ("--save-interval-updates", UPDATES)
OPTIONS = (
    *EXACT, "--arch", "moe_transformer_tiny_dense", "--max-tokens", "400", "--clip-norm", "1",
    "--disable-validation", "--max-update",
)  # fmt: skip
STOCK = (
    "--task", "translation", "-s", "aa", "-t", "bb", "--criterion", "label_smoothed_cross_entropy",
    "--optimizer", "adam", "--lr", "0.003", "--dropout", "0", "--max-tokens", "400", "--cpu",
    "--num-workers", "0", "--log-format", "json", "--log-interval", "1", "--no-epoch-checkpoints",
    "--disable-validation", "--max-update",
)  # fmt: skip
STOCK_SHAPE = (
    "--arch", "transformer", "--encoder-layers", "2", "--decoder-layers", "2",
    "--encoder-embed-dim", "32", "--encoder-ffn-embed-dim", "64", "--encoder-attention-heads", "2",
    "--decoder-attention-heads", "2", "--share-decoder-input-output-embed",
)  # fmt: skip


class Dense(NamedTuple):
    """A checkpoint, and the losses of the run before and after it."""

    path: Path
    losses: list[float]


def losses(output: str, name: str = "mt_loss") -> list[float]:
    """The loss of each update, in bits, as the log rounds it."""
    return ranks.log(output, "train_inner", name)


@pytest.fixture(scope="module")
def dense(reversal: Path, tmp_path_factory: pytest.TempPathFactory) -> Dense:
    """A checkpoint of the plugin's dense model."""
    folder = tmp_path_factory.mktemp("dense")
    output = ranks.train(reversal, folder, *OPTIONS, UPDATES + MORE, *SAVING)
    return Dense(folder / f"checkpoint_1_{UPDATES}.pt", losses(output))


@pytest.fixture(scope="module")
def stock(reversal: Path, tmp_path_factory: pytest.TempPathFactory) -> Dense:
    """A checkpoint of the stock Transformer, trained without the plugin."""
    folder = tmp_path_factory.mktemp("stock")
    output = run(
        "fairseq-train", reversal, *STOCK_SHAPE, *STOCK, UPDATES + MORE, *SAVING,
        "--save-dir", folder, fresh=True,
    )  # fmt: skip
    return Dense(folder / f"checkpoint_1_{UPDATES}.pt", losses(output, "loss"))


Upcycle = Callable[..., list[str]]


@pytest.fixture
def upcycle(capsys: pytest.CaptureFixture[str]) -> Upcycle:
    """Calls the verb, 4 experts; returns the flags that it says to train on with."""

    def call(source: Path, out: Path, *flags: str) -> list[str]:
        line = ["upcycle", str(source), "--experts", "4", "--out", str(out), *flags]
        assert main(line) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith("to train on: fairseq-train ... --")
        return shlex.split(last)[last.split().index("--arch") :]

    return call


def test_it_says_what_it_did(
    zcode: Run, dense: Dense, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "moe.pt"
    ended = zcode("upcycle", dense.path, "--experts", "4", "--moe-freq", "1", "--out", out)
    printed = ended.stdout.splitlines()
    for line, start in zip(printed, ("read 1 file", "upcycle", "write 1 file"), strict=False):
        assert line.startswith(f"{start} ... ")
    ffn, layer_norm = 2 * 64 * 128 + 128 + 64, 64 * 4
    rows = {line[:20].rstrip(): line[20:].split() for line in printed[5:10]}
    before, after = (int(number.replace(",", "")) for number in rows["parameters"])
    assert after - before == 4 * (3 * ffn + layer_norm)
    assert rows["MoE layers"] == ["0", "4"]
    assert rows["experts of a layer"] == ["1", "4"]
    assert rows["experts of a token"] == ["1", "1"]
    assert rows["bytes"] == [f"{path.stat().st_size:,}" for path in (dense.path, out)]
    assert printed[10:] == [
        f"to train on: fairseq-train ... --finetune-from-model {out} --arch moe_transformer_tiny "
        "--dropout 0.0 --encoder-embed-dim 64 --encoder-ffn-embed-dim 128 --encoder-layers 2 "
        "--moe-freq 1 --moe-expert-count 4 --moe-normalize-gate-prob true"
    ]
    again = ["upcycle", str(dense.path), "--experts", "2", "--out", str(out)]
    assert main(again) == 2
    assert capsys.readouterr().err == (
        f"zcode upcycle: error: {out} exists: --force overwrites it, --out names another\n"
    )
    assert main([*again, "--force"]) == 0


@pytest.mark.slow
def test_translations_are_those_of_the_dense_model(
    upcycle: Upcycle, dense: Dense, stock: Dense, reversal: Path, tmp_path: Path
) -> None:
    """Stock fairseq-generate: the same words, scores to their four digits."""
    upcycle(dense.path, tmp_path / "ours.pt")
    upcycle(stock.path, tmp_path / "stock.pt")
    tasks = {"ours": (*TASK, "--encoder-langtok", "tgt"), "stock": STOCK[:6]}
    tasks["stock"] += ("--user-dir", str(PLUGIN))
    jobs = [
        StockJob(
            f"{name}-{path.stem}",
            (str(reversal), *tasks[name], "-s", "aa", "-t", "bb", "--path", str(path), "--cpu",
             "--max-len-b", "10", "--nbest", "2"),
            tmp_path / f"{name}-{number}.out",
        )
        for name, original in (("ours", dense.path), ("stock", stock.path))
        for number, path in enumerate((original, tmp_path / f"{name}.pt"))
    ]  # fmt: skip
    with StockCommand("fairseq_cli.generate", workers=1, threads=1) as command:
        results = command.run(jobs)
    assert [result.exit_code for result in results] == [0] * 4, results[-1].log[-3000:]
    outputs = [result.job.output.read_text() for result in results]
    for before, after in (outputs[:2], outputs[2:]):
        assert len(lines(before, "H")) == 200
        for one, other in zip(lines(before, "H"), lines(after, "H"), strict=True):
            (name, score, text), (name_2, score_2, text_2) = one.split("\t"), other.split("\t")
            assert (name, text) == (name_2, text_2)
            assert float(score) == pytest.approx(float(score_2), abs=1e-4)


def test_a_run_goes_on_with_its_optimizer(
    upcycle: Upcycle, dense: Dense, reversal: Path, tmp_path: Path
) -> None:
    """In one process, and on two ranks that share the experts."""
    expected = dense.losses[UPDATES:]
    flags = upcycle(dense.path, tmp_path / "moe.pt", "--with-optimizer")
    go_on = (*OPTIONS, UPDATES + MORE, *flags)
    one = ranks.train(reversal, tmp_path / "one", *go_on, "--restore-file", tmp_path / "moe.pt")
    # The first is a loss of the same function; then the experts part, as they see other tokens.
    assert losses(one)[0] == pytest.approx(expected[0], abs=2e-3)
    assert losses(one)[1:] == pytest.approx(expected[1:], abs=0.1)
    two = tmp_path / "two"
    assert main(["reshard", str(tmp_path / "moe.pt"), "--ranks", "2", "--out", str(two)]) == 0
    output = ranks.train(
        reversal, two, *go_on, "--expert-parallel-size", "2", "--restore-file", two / "moe.pt",
        world=2,
    )  # fmt: skip
    assert len(losses(output)) == len(expected) == MORE
    assert losses(output)[-1] == pytest.approx(expected[-1], abs=0.3)  # of other batches


def test_two_ranks_train_on_from_the_weights(
    upcycle: Upcycle, dense: Dense, reversal: Path, tmp_path: Path
) -> None:
    flags = upcycle(dense.path, tmp_path / "moe.pt", "--noise", "0.01", "--top-k", "2")
    output = ranks.train(
        reversal, tmp_path / "run", *OPTIONS, "20", *flags, "--expert-parallel-size", "2",
        "--finetune-from-model", tmp_path / "moe.pt", world=2,
    )  # fmt: skip
    found = losses(output)
    assert found[0] < dense.losses[0] - 0.5  # it starts from what the dense model had learnt
    assert found[0] == pytest.approx(dense.losses[UPDATES], abs=0.5)  # of other batches
    assert sum(found[-5:]) < sum(found[:5])


def test_a_stock_run_goes_on_with_its_optimizer(
    upcycle: Upcycle, stock: Dense, reversal: Path, tmp_path: Path
) -> None:
    """The task stays stock's, which names no parameters: their order follows from the file."""
    flags = upcycle(stock.path, tmp_path / "moe.pt", "--with-optimizer")
    output = run(
        "fairseq-train", reversal, *flags, *EXACT[2:], *STOCK, UPDATES + MORE,
        "--user-dir", PLUGIN, "--restore-file", tmp_path / "moe.pt", "--save-dir", tmp_path / "run",
    )  # fmt: skip
    told = "--criterion label_smoothed_cross_entropy leaves out the gate's losses"
    assert output.count(told) == 1
    found, expected = losses(output, "loss"), stock.losses[UPDATES:]
    assert len(found) == len(expected) == MORE
    assert found[0] == pytest.approx(expected[0], abs=2e-3)
    assert found[1:] == pytest.approx(expected[1:], abs=0.1)
