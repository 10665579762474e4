"""`zcode evaluate` on a stock Transformer of a few updates, and what it refuses."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from zcode_plugin.data.pairs import Pair
from zcode_plugin.errors import UserError
from zcode_plugin.evaluation import generation
from zcode_plugin.translation import Search, Translator

Run = Callable[..., subprocess.CompletedProcess[str]]

TRAINING = """
    --task translation -s de -t en --arch transformer --share-all-embeddings --max-update 2 --cpu
    --encoder-layers 1 --encoder-embed-dim 8 --encoder-ffn-embed-dim 8 --encoder-attention-heads 1
    --decoder-layers 1 --decoder-embed-dim 8 --decoder-ffn-embed-dim 8 --decoder-attention-heads 1
    --optimizer sgd --lr 0.1 --max-tokens 2000 --disable-validation --no-epoch-checkpoints
"""


def stock(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a console script of fairseq."""
    return subprocess.run(
        [Path(sys.executable).with_name(name), *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def checkpoint(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    stock("fairseq-train", data, *shlex.split(TRAINING), "--save-dir", folder)
    return folder / "checkpoint_last.pt"


def test_translates_scores_and_writes_what_stock_prints(
    zcode: Run, data: Path, raw: Path, checkpoint: Path, tmp_path: Path
) -> None:
    results, kept = tmp_path / "results" / "all.json", tmp_path / "kept"
    ended = zcode(
        *("evaluate", data, "--path", checkpoint, "--pairs", "de-en,en-de", "--beam", "2"),
        *("--out", results, "--translations", kept, "--copy-baseline", "--", "--max-len-b", "9"),
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    record = json.loads(results.read_text(encoding="utf-8"))
    assert list(record["directions"]) == ["de-en", "en-de"]
    assert record["updates"] == 2
    assert record["means"]["all"]["directions"] == 2
    assert record["directions"]["de-en"]["sentences"] == 6

    command = shlex.split(record["directions"]["de-en"]["command"])
    assert command[-6:] == ["--beam", "2", "--max-tokens", "4096", "--max-len-b", "9"]
    by_hand = stock(*command).stdout
    assert (kept / "de-en.txt").read_text(encoding="utf-8") == by_hand
    assert by_hand.count("\nD-") == 6
    texts = generation.read_translations(by_hand, Pair("de", "en"))
    assert texts.references[0]
    for name in ("sources", "hypotheses", "references"):
        assert record["directions"]["de-en"][name] == getattr(texts, name)

    # A stock checkpoint translates raw text, too, in its own direction.
    translator = Translator.load(checkpoint, data=data)
    sources = (raw / "test.en-de.de").read_text(encoding="utf-8").splitlines()
    search = Search(beam=2, max_len_b=9)
    found = translator.translate(sources, source="de", target="en", search=search)
    assert [one.hypotheses[0].text for one in found] == texts.hypotheses
    with pytest.raises(UserError, match="the checkpoint translates from de to en alone"):
        translator("the house", source="en", target="de")

    lines = ended.stdout.splitlines()
    assert {line.partition(" (")[0] for line in lines[:2]} == {
        *("de-en translated", "en-de translated")
    }
    assert [line.split()[0] for line in lines[2:]] == [
        *("direction", lines[3], "de-en", "en-de", "mean", "mean", "mean"),
        *("BLEU:", "chrF++:", "results:"),
    ]


def test_a_failure_of_fairseq_generate_is_told_in_one_line(
    zcode: Run, data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    ended = zcode(
        *("evaluate", data, "--path", checkpoint, "--pairs", "de-en"),
        *("--out", tmp_path / "x.json", "--", "--lenpen", "long"),
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith(
        "zcode evaluate: error: fairseq-generate failed for de-en, exit code 2: fairseq-generate: "
        "error: argument --lenpen: invalid float value: 'long'; by hand: fairseq-generate "
    )
    assert ended.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_direction_that_fails_does_not_cost_the_scores_of_others(
    zcode: Run, data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "data"
    shutil.copytree(data, broken)
    (broken / "test.fr-en.fr.bin").write_bytes(b"")
    ended = zcode(
        *("evaluate", broken, "--path", checkpoint, "--pairs", "fr-en,de-en"),
        *("--out", tmp_path / "x.json", "--translations", tmp_path / "kept"),
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith(
        "zcode evaluate: error: fairseq-generate failed for fr-en, exit code 1: "
    )
    assert ended.stderr.endswith(
        f"; the scores above are of the other 1 of 2 directions, and {tmp_path}/x.json is not "
        "written\n"
    )
    assert ended.stderr.count("\n") == 1
    assert "\nde-en  " in ended.stdout
    assert (tmp_path / "kept" / "de-en.txt").stat().st_size > 0
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--path", "x.pt"], "there is no data folder nowhere: make one with zcode "
         "prepare"),
        (["{data}", "--path", "x.pt"], "there is no checkpoint x.pt"),
        (["{data}", "--path", "c-rank-0.pt"], "c-rank-0.pt is of one rank of several: run "
         "`zcode merge c-rank-0.pt`"),
        (["{data}", "--path", "c.pt"], "c.pt is of one rank of several: run `zcode merge c.pt`"),
        (["{data}", "--path", "d.pt", "--pairs", "de-fr"], "--pairs de-fr: {data} holds only test "
         "of de-en, en-de, en-fr, fr-en"),
        (["{data}", "--path", "d.pt", "--gen-subset", "dev"], "{data} holds no split dev of any "
         "pair: see --gen-subset"),
        (["{data}", "--path", "d.pt", "--beam", "0"], "--beam 0 must be at least 1"),
        (["{data}", "--path", "d.pt", "--jobs", "0"], "--jobs 0 must be at least 1"),
        (["{data}", "--path", "d.pt", "--out", "d.pt/x.json"], "--out d.pt/x.json: d.pt is no "
         "folder"),
        (["{data}", "--path", "d.pt", "--out", "."], "--out . is a folder: name a file"),
        (["{data}", "--path", "d.pt", "--out", "d.pt"], "--out d.pt is one of the files to read: "
         "name another"),
        (["{data}", "--path", "d.pt", "--out", "/dev/null"], "--out /dev/null is no ordinary file: "
         "name one, or a file to be made"),
        (["{data}", "--path", "d.pt", "--translations", "d.pt"], "--translations d.pt is no "
         "folder"),
        (["{data}", "--path", "a:b.pt"], "a:b.pt: fairseq takes what stands between colons for "
         "several paths: rename it, or make a link to it without any"),
        (["{data}", "--path", "d.pt", "--sacrebleu-tokenizer", "14a"], "--sacrebleu-tokenizer 14a: "
         "sacreBLEU has no '14a'; did you mean 13a?"),
    ],
)  # fmt: skip
def test_mistakes(
    here: Run, data: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    for name in ("c-rank-0.pt", "d.pt"):
        (tmp_path / name).touch()
    ended = here("evaluate", *(word.format(data=data) for word in arguments), cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr == f"zcode evaluate: error: {message.format(data=data)}\n"
