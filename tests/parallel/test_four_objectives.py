"""All objectives at once on two ranks: unequal corpora, resumed in mid-epoch, translated."""

from __future__ import annotations

import random
import shutil
from itertools import combinations
from pathlib import Path

import pytest
from ranks import train
from toy import TASK, generate, lines, records, run

from zcode_plugin.checkpoint import io

OBJECTIVES = ("mt", "dae", "mlm", "electra")
OPTIONS = (
    "--multitask", "mt:1,dae:0.5,mlm:0.5,electra:0.2", "--max-tokens", "200",
    "--multitask-max-tokens", "dae:120,mlm:80,electra:60", "--sampling-method", "temperature",
    "--sampling-temperature", "5", "--expert-parallel-size", "2", "--decoder-langtok",
    "--save-interval-updates", "7", "--validate-interval-updates", "7",
    "--best-checkpoint-metric", "mt_nll_loss_cc-aa",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three languages, six directions, every corpus of another size."""
    from fairseq.data import Dictionary
    from fairseq.data.indexed_dataset import make_builder

    directory = tmp_path_factory.mktemp("three") / "data"
    directory.mkdir()
    dictionary = Dictionary()
    for word in "abcdefghij":
        dictionary.add_symbol(word)
    dictionary.finalize(padding_factor=1)
    draw = random.Random(1)

    def write(prefix: str, langs: tuple[str, ...], count: int) -> None:
        texts = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 7))) for _ in range(count)]
        for place, lang in enumerate(langs):
            path = str(directory / f"{prefix}.{lang}")
            builder = make_builder(f"{path}.bin", impl="mmap", vocab_size=len(dictionary))
            for text in texts:
                line = " ".join(text[:: 1 - 2 * place])
                builder.add_item(dictionary.encode_line(line, add_if_not_exist=False))
            builder.finalize(f"{path}.idx")

    languages = ("aa", "bb", "cc")
    for split, scale in (("train", 100), ("valid", 4), ("test", 4)):
        for factor, (src, tgt) in zip((1, 3, 9), combinations(languages, 2), strict=True):
            write(f"{split}.{src}-{tgt}", (src, tgt), factor * scale)
        for factor, lang in zip((7, 2, 1), languages, strict=True):
            write(f"{split}.{lang}-None", (lang,), factor * scale)
    for lang in languages:
        dictionary.save(str(directory / f"dict.{lang}.txt"))
    return directory


def test_it_trains_resumes_and_translates(data: Path, tmp_path: Path) -> None:
    whole = train(data, tmp_path / "whole", *OPTIONS, "--max-update", "14", world=2)
    losses = records(whole, "train_inner")
    names = [f"{name}_loss" for name in OBJECTIVES]
    assert len(losses) == 14
    assert all(name in entry for entry in losses for name in names)
    [validation, *_] = records(whole, '"valid_loss"')
    assert all(f"valid_{name}" in validation for name in names)
    assert "valid_electra_nll_loss_cc" in validation
    best = io.load_options(tmp_path / "whole" / "checkpoint_best-rank-0.pt")["extra_state"]["best"]
    valid = [entry["valid_mt_nll_loss_cc-aa"] for entry in records(whole, '"valid_loss"')]
    assert best == min(map(float, valid))

    resumed = tmp_path / "resumed"
    resumed.mkdir()
    for rank in (0, 1):
        saved = tmp_path / "whole" / f"checkpoint_1_7-rank-{rank}.pt"
        shutil.copy(saved, resumed / f"checkpoint_last-rank-{rank}.pt")
    output = train(data, resumed, *OPTIONS, "--max-update", "14", world=2)
    again = records(output, "train_inner")
    assert len(again) == 7
    for entry, expected in zip(again, losses[7:], strict=True):
        for name in (*names, "loss", "gnorm", "electra_false_share", "mt_overflow_expert1"):
            assert entry[name] == expected[name], name

    merged = tmp_path / "merged.pt"
    run("zcode", "merge", resumed / "checkpoint_last-rank-0.pt", "--out", merged)
    tokens = ("--decoder-langtok", "--beam", "2")
    generated = generate(data, merged, "cc", "aa", *tokens)
    assert len(lines(generated, "H")) == 3 * 4
    source = tmp_path / "source.txt"
    texts = [line.split("\t")[1].removeprefix("__aa__ ") for line in lines(generated, "S")]
    source.write_text("".join(f"{text}\n" for text in texts))
    interactive = run(
        "fairseq-interactive", data, *TASK, "-s", "cc", "-t", "aa", "--encoder-langtok", "tgt",
        *tokens, "--path", merged, "--cpu", "--max-len-b", "10", "--input", source,
        "--buffer-size", "20", "--max-tokens", "1000", fresh=True,
    )  # fmt: skip
    for one, other in zip(lines(interactive, "H"), lines(generated, "H"), strict=True):
        assert one.split("\t")[2] == other.split("\t")[2]
