"""`zcode report` as users call it, and its page as a browser shows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
from checkpoint.rank_files import rank_state, write_rank_files
from reporting.run_files import full_log, write_log, write_run, write_scores

from zcode_plugin.cli.main import main

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium: apt-get install chromium runs this test"
)


class Page(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a run with a report; not to be written to."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "run")
    assert main(["report", str(folder)]) == 0
    return folder


def test_one_page_with_everything_in_it(run: Path) -> None:
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    files = sorted(run.glob("report_figures/*.png"))
    assert len(images) == len(files) > 15
    for attributes in images:
        assert attributes["src"].startswith("data:image/png;base64,")
        assert len(attributes["alt"]) > 40
    # Nothing is loaded from elsewhere, and nothing runs.
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "embed"}
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    for words in (
        "mean all 2 dir. 15.00 35.00", "nrefs:1|case:mixed|eff:no", "encoder.layers.1 240",
        "Experts by language", "Experts by objective", "Drops by position", "lowest mt loss",
    ):  # fmt: skip
        assert words in page.text, words
    assert "This adds them" not in page.text


def test_what_is_missing_is_named_with_its_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir()
    write_scores(tmp_path / "a" / "scores.json")
    (tmp_path / "a" / "broken.json").write_text('{"format": ')
    (tmp_path / "a" / "stats.json").write_text('{"format": "zcode-stats-1", "rows": [{}]}')
    full_log(tmp_path / "b" / "train.log")
    write_log(tmp_path / "b" / "other.log", ["epoch 001: 10 / 20 loss=3"])
    out = tmp_path / "both.html"
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out)]) == 0
    text = Page(out.read_text()).text
    for command in (
        f"fairseq-train ... --log-format json --log-file {tmp_path}/a/train.log",
        f"zcode stats CKPT DATA --capacity-factor F --out {tmp_path}/a/stats.json",
        f"zcode evaluate DATA --path CKPT --out {tmp_path}/b/scores.json",
    ):
        assert command in text
    printed = capsys.readouterr().out
    assert f"{tmp_path}/a/broken.json is damaged: it holds no JSON" in printed
    assert f"{tmp_path}/a/stats.json is damaged: gather it again with zcode stats" in printed
    assert f"{tmp_path}/b/other.log has no record in JSON" in printed


def test_given_logs_in_their_order(tmp_path: Path) -> None:
    full_log(tmp_path / "elsewhere.txt")
    (tmp_path / "run").mkdir()
    arguments = ["report", str(tmp_path / "run"), "--log", str(tmp_path / "elsewhere.txt")]
    assert main(arguments) == 0
    assert str(tmp_path / "elsewhere.txt") in Page((tmp_path / "run/report.html").read_text()).text


REFUSED = [
    (["{tmp}/none"], "there is no folder {tmp}/none"),
    (["{tmp}/empty"], "{tmp}/empty holds nothing to report: train with --log-format json"),
    (["{run}", "{run}"], "the same RUN_DIR is named twice"),
    (["{run}", "--out", "{tmp}/page.txt"], "--out {tmp}/page.txt: the name must end in .html"),
    (["{run}", "--out", "{tmp}/no/a.html"], "--out {tmp}/no/a.html: there is no folder {tmp}/no"),
    (["{run}", "--out", "{tmp}/mine.html"], "{tmp}/mine.html exists: --force overwrites it"),
    (["{run}", "--model-card", "{tmp}/mine.md"], "{tmp}/mine.md exists: --force overwrites it"),
    (["{run}", "{tmp}/empty", "--log", "x"], "--log goes with one RUN_DIR, not with 2"),
    (["{run}", "--log", "{tmp}/none.log"], "{tmp}/none.log: No such file or directory"),
    (["{run}", "--log", "{tmp}/simple.log"], "{tmp}/simple.log has no record in JSON"),
    (["{run}", "--checkpoint", "x.pt"], "--checkpoint is for the model card: give --model-card"),
    (["{run}", "--model-card", "{tmp}/card.md"], "{run} names no checkpoint that is there: give"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_refusals_are_one_line_and_write_nothing(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("mine.html", "mine.md", "simple.log"):
        (tmp_path / name).write_text("of somebody else")
    before = sorted(tmp_path.rglob("*"))
    names = {"tmp": tmp_path, "run": run}
    assert main(["report", *(word.format(**names) for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"zcode report: error: {message.format(**names)}")
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_its_own_page_is_replaced_and_others_with_force(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    out.write_text("of somebody else")
    arguments = ["report", str(run), "--out", str(out)]
    assert main(arguments) == 2
    assert main([*arguments, "--force"]) == 0
    assert main(arguments) == 0


def test_without_matplotlib(run: Path, tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError")
    ended = subprocess.run(
        [
            sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r});"
            "from zcode_plugin.cli.main import main; sys.exit(main())",
            "report", str(run),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stderr == (
        "zcode report: error: drawing needs matplotlib: pip install matplotlib "
        "(or pip install '.[report]')\n"
    )


def test_model_card_of_what_is_known(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    full_log(folder / "train.log")
    file = write_rank_files(tmp_path, {rank: rank_state(rank) for rank in range(2)})[0]
    arguments = ["report", str(folder), "--checkpoint", str(file), "--model-card"]
    assert main([*arguments, str(folder / "card.md")]) == 0
    card = (folder / "card.md").read_text()
    for line in (
        "library_name: fairseq", '  - "de"\n  - "en"', "# run", "- architecture: moe_transformer",
        "- parameters: 220", "- active per token: 100",
        "- experts: 4 in encoder.layers.1, 4 in decoder.layers.0", "- updates: 40",
        "- time of training: 1.2 min", "- It has not been scored.",
    ):  # fmt: skip
        assert line in card, line
    # Nothing of what is not known: directions, scores, loads, a licence.
    assert not re.search(r"None|null|## Scores|## Load|## How to use|licen[cs]e|directions", card)


def test_model_card_with_scores(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    file = write_rank_files(tmp_path, {rank: rank_state(rank) for rank in range(2)})[0]
    write_scores(folder / "scores.json", checkpoint=str(file))
    assert main(["report", str(folder), "--model-card", str(folder / "card.md")]) == 0
    card = (folder / "card.md").read_text()
    assert "| de-en | 160 | 20.00 | 40.00 |" in card
    assert "`BLEU: nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0`" in card
    assert "| encoder.layers.1 | 240 | 4 |" in card
    assert "The lowest BLEU is that of en-de: 10.00." in card
    assert "The scores are of the model after 120 updates." in card  # the file has 40


@dataclass(frozen=True)
class Shown:
    """How a browser took a page: what it made of it, what the page asked for, what it logged."""

    page: Page
    asked: set[str]
    console: list[str]


def browse(path: Path, folder: Path) -> Shown:
    """Open a page in Chromium, which finds no host; the picture goes to `folder/page.png`."""
    assert CHROMIUM is not None
    net = folder / "net.json"
    ended = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr",
            "--host-resolver-rules=MAP * ~NOTFOUND", "--hide-scrollbars",
            "--window-size=1120,3000", f"--log-net-log={net}",
            f"--screenshot={folder / 'page.png'}", "--dump-dom", path.as_uri(),
        ],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    events = [event.get("params", {}) for event in json.loads(net.read_text())["events"]]
    # What Chromium asks for on its own account has no origin.
    asked = {e["url"] for e in events if e.get("initiator", "not an origin") != "not an origin"}
    console = [line for line in ended.stderr.splitlines() if "CONSOLE" in line]
    return Shown(Page(ended.stdout), asked, console)


@needs_chromium
def test_page_in_a_browser(run: Path, tmp_path: Path) -> None:
    """Every image is there, nothing is asked of the network, and no error is logged."""
    shown = browse(run / "report.html", tmp_path)
    images = [tag for tag, _ in shown.page.tags if tag == "img"]
    assert len(images) == len(list(run.glob("report_figures/*.png")))
    assert (shown.asked, shown.console) == (set(), [])
    from PIL import Image  # matplotlib brings it

    with Image.open(tmp_path / "page.png") as image:
        assert image.size == (1120, 3000)
        assert len(image.convert("RGB").getcolors(1 << 24)) > 200  # figures, no empty page


@needs_chromium
def test_the_browser_would_tell(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(
        '<img src="http://host.invalid/a.png"><script>console.error("an error")</script>'
    )
    shown = browse(tmp_path / "page.html", tmp_path)
    assert shown.asked == {"http://host.invalid/a.png"}
    assert "an error" in shown.console[0]
