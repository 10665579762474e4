"""Every command of README and docs exists, and what can run here runs (slow).

A new block must get an entry in PAGES_OF_BLOCKS: `Run()` where it runs in a small copy of what the
README's five commands make, or the reason why it does not. Blocks of output are labelled as text.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from blocks import ELLIPSIS, PAGES, ROOT, Block, blocks_of, shell_blocks
from parsing import COMMON, check, flags_of_stock
from toy import PLUGIN, SCRIPTS


@dataclass(frozen=True)
class Run:
    """How a block runs.

    Attributes:
        instead: texts to run in the place of others: sizes that are too much for a test.
        without: what the block makes, and the stage has already.
        without_line: a text; lines that hold it do not run.
    """

    instead: dict[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    without_line: str | None = None

    def left_out(self, line: str) -> bool:
        return self.without_line is not None and self.without_line in line


INSTALLS = "installs; tests/compat/test_install.py and the environment of all tests do"
SUITE = "is what runs this"
DEMO = "takes the model of make demo, minutes: tests/examples/test_demo.py makes it"
MEASURES = "measures, minutes"

# Of each page, blocks by the beginning of their first line.
PAGES_OF_BLOCKS: dict[str, dict[str, Run | str]] = {
    "README.md": {
        "git clone": "takes the network; tests/examples/test_demo.py runs the demo",
        "make test": SUITE,
        "make install": INSTALLS,
        "pip install": INSTALLS,
        "zcode prepare": Run({"--vocab-size 8000": "--vocab-size 60"}),
        "zcode translate": Run(),
    },
    "CONTRIBUTING.md": {"make test": SUITE},
    "docs/checkpoints.md": {"zcode merge": Run(without=("model.pt",))},
    "docs/evaluation.md": {
        "zcode translate": Run(),
        "zcode evaluate data --path model.pt": Run(
            without_line="--comet"  # takes a model that is downloaded
        ),
        "zcode evaluate data --path a.pt": Run(),
        "pip install": INSTALLS,
    },
    "docs/objectives.md": {
        "zcode prepare --raw text-en-sw": Run(),
        "python benchmarks/many_languages.py": MEASURES,
    },
    "docs/parallel.md": {
        "torchrun": Run(without=("checkpoints",)),
        "zcode plan --arch zcode_m3_10b --ranks 64": Run(),
        "zcode plan --arch zcode_m3_10b --ranks 512": Run(),
    },
    "docs/speed.md": {
        "pip install": MEASURES,
        "python benchmarks/moe_layer.py": "needs a GPU; " + MEASURES,
    },
    "docs/surgery.md": {
        "zcode inspect": Run(),
        "zcode stats": Run(),
        "zcode prune": Run(),
        "python benchmarks/pruning.py": DEMO,
        "zcode aggregate": Run(),
        "zcode upcycle": Run(),
        "fairseq-train": Run(),
        "zcode quantise": Run(),
        "python benchmarks/quantisation.py": DEMO,
        "zcode export": Run(),
    },
    "examples/configs/README.md": {
        "examples/configs/base_moe.sh": "tests/examples/test_configs.py runs both",
    },
    "examples/paper/README.md": {
        "python examples/paper/main_table.py": "takes the network, and minutes",
    },
    "examples/localisation/README.md": {
        "python examples/localisation/build_corpus.py": "takes the network; "
        "tests/examples/test_localisation.py runs it on wheels made there",
    },
}


def entry(block: Block) -> Run | str:
    found = {
        start: how
        for start, how in PAGES_OF_BLOCKS.get(block.page, {}).items()
        if block.first.startswith(start)
    }
    assert found, (
        f"{block.page}: nothing says how the block {block.first!r} is run: add it to "
        "PAGES_OF_BLOCKS in tests/docs/test_commands.py, or label it (```text) if it is output"
    )
    return found[max(found, key=len)]


def name(block: Block) -> str:
    return f"{block.page}: {block.first[:40]}"


@pytest.mark.parametrize("block", shell_blocks(), ids=name)
def test_commands_exist(block: Block) -> None:
    entry(block)
    assert block.commands()
    for words in block.commands():
        check(words)


def test_no_entry_is_left_over() -> None:
    blocks = shell_blocks()
    for page, entries in PAGES_OF_BLOCKS.items():
        for start in entries:
            assert any(b.page == page and b.first.startswith(start) for b in blocks), (page, start)


@pytest.mark.parametrize("page", PAGES)
def test_inline_commands_exist(page: str) -> None:
    """`zcode VERB ...` in the text: the verb, and its flags, exist."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for command in re.findall(r"`(zcode\s[^`]+)`", text):
        words = command.split()
        if words[1].islower():
            check([*words, ELLIPSIS])


@pytest.mark.parametrize("page", PAGES)
def test_flags_exist(page: str) -> None:
    """Each flag that a page names is one of stock's, the plugin's, a verb's or a script's."""
    text = (ROOT / page).read_text()
    if page == "docs/migration.md":  # the first column has those of others
        text = re.sub(r"^\|.*?\|", "", text, flags=re.MULTILINE)
    scripts = "".join(path.read_text() for path in [*ROOT.glob("*/*.py"), *ROOT.glob("*/*/*.py")])
    known = flags_of_stock() | set(re.findall(r'"(--[\w-]+)"', scripts)) | FLAGS_OF_OTHERS
    verbs = (ROOT / "docs" / "reference.md").read_text()  # which another test holds current
    known.update(re.findall(r"`(--[\w-]+)`", verbs))
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*\w(?![\w*-])", text))
    assert not named - known


# Of Chromium, pip, launchers, sbatch, hydra, and of stock's task `translation`.
FLAGS_OF_OTHERS = {
    "--screenshot", "--no-deps", "--nproc-per-node", "--help", "--cfg", "--num-batch-buckets",
    "--nodes",
}  # fmt: skip


def test_the_readme_s_python(capsys: pytest.CaptureFixture[str]) -> None:
    [_, block] = [block for block in blocks_of("README.md") if block.language == "python"]
    found: dict[str, object] = {}
    exec(compile(block.text, "README.md", "exec"), found)
    assert found["output"].shape == (64, 32, 512)  # type: ignore[attr-defined]


# Running

# Stock's commands, as a block finds them: small, short and on the CPU.
TRAIN = (
    "--cpu", "--distributed-backend", "gloo", "--max-update", "5", "--max-tokens", "400",
    "--num-workers", "0", "--data-buffer-size", "0", "--save-interval-updates", "1",
)  # fmt: skip
SMALL = (
    "--encoder-layers", "2", "--decoder-layers", "2", "--encoder-embed-dim", "32",
    "--encoder-ffn-embed-dim", "64", "--encoder-attention-heads", "2",
    "--decoder-attention-heads", "2",
)  # fmt: skip
STAND_IN = """#!{python}
import sys
if "--finetune-from-model" not in sys.argv:
    sys.argv += {small}
sys.argv += {train}
from fairseq_cli.train import cli_main
cli_main()
"""
# What "..." stands for, with a folder of checkpoints for each command.
MORE = (
    f"{' '.join(COMMON)} --arch moe_transformer --criterion multitask_summed_loss "
    "--optimizer adam --lr 0.0005 --save-dir save-{}"
)
PAIRS = ("en-de", "en-sw", "document-summary")


def write_text(folder: Path) -> None:
    """Aligned text of two languages each, one the other backwards; monolingual text of de."""
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 4))) for _ in range(80)]
    for pair in PAIRS:
        raw = folder / f"text-{pair}"
        raw.mkdir()
        for split, count in (("train", 300), ("valid", 20), ("test", 10)):
            lines = [draw.choices(words, k=draw.randint(2, 5)) for _ in range(count)]
            for lang, step in zip(pair.split("-"), (1, -1), strict=True):
                text = "".join(" ".join(line[::step]) + "\n" for line in lines)
                (raw / f"{split}.{pair}.{lang}").write_text(text)
    for split in ("train", "valid"):
        text = (folder / "text-en-de" / f"{split}.en-de.de").read_text()
        (folder / "text-en-de" / f"mono.{split}.de.txt").write_text(text)
    (folder / "text-en-de").rename(folder / "text")


def bash(script: str, folder: Path) -> str:
    """Standard output of a block, run in a folder."""
    path = f"{folder / 'bin'}:{SCRIPTS}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=folder, stdin=subprocess.DEVNULL, text=True,
        capture_output=True, check=False, timeout=900,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


def run(block: Block, how: Run, folder: Path) -> str:
    script = block.text
    for old, new in how.instead.items():
        assert old in script
        script = script.replace(old, new)
    for count in range(script.count(ELLIPSIS)):
        script = script.replace(ELLIPSIS, MORE.format(count), 1)
    for made in how.without:
        path = folder / made
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    lines = script.splitlines(keepends=True)
    return bash("".join(line for line in lines if not how.left_out(line)), folder)


def blocks_that_run(page: str) -> list[tuple[Block, Run]]:
    found = [(block, entry(block)) for block in shell_blocks() if block.page == page]
    return [(block, how) for block, how in found if isinstance(how, Run)]


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the README's five commands make, in small, and what the docs take as given beside it."""
    folder = tmp_path_factory.mktemp("stage")
    (folder / "zcode_plugin").symlink_to(PLUGIN)
    write_text(folder)
    stand_in = folder / "bin" / "fairseq-train"
    stand_in.parent.mkdir()
    stand_in.write_text(
        STAND_IN.format(python=sys.executable, small=list(SMALL), train=list(TRAIN))
    )
    stand_in.chmod(0o755)
    shutil.copy(folder / "text" / "test.en-de.de", folder / "german.txt")
    output = "".join(run(block, how, folder) for block, how in blocks_that_run("README.md"))
    assert "mean all" in output, "zcode evaluate prints its table"
    english = (folder / "english.txt").read_text()
    assert len(english.splitlines()) == 10, "a line for each, in order"
    for copy in ("a.pt", "b.pt"):
        shutil.copy(folder / "model.pt", folder / copy)
    more = MORE.format("dense")
    bash(f"fairseq-train data {more} --arch moe_transformer_tiny_dense", folder)
    (folder / "save-dense" / "checkpoint_last.pt").rename(folder / "dense.pt")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks_that_run(page)])
def test_commands_run(stage: Path, page: str, tmp_path: Path) -> None:
    if page == "README.md":
        return  # the stage is what they made
    folder = tmp_path / "stage"
    shutil.copytree(stage, folder, symlinks=True)
    for block, how in blocks_that_run(page):
        run(block, how, folder)
