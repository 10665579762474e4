"""A checkpoint of several directions over SentencePiece, and raw text of them."""

from __future__ import annotations

from pathlib import Path

from toy import MODEL, TASK, run

DIRECTIONS = ("de-en", "en-de", "en-fr", "fr-en")
LANGTOK = ("--encoder-langtok", "src", "--decoder-langtok", "--objective-token")


def train(data: Path, folder: Path) -> Path:
    """A checkpoint that has learnt something of the corpus of tests/cli.

    Args:
        data: what zcode prepare made of it.
        folder: for the checkpoint.
    """
    run(
        "fairseq-train", data, *TASK, *MODEL, *LANGTOK, "--moe-top-k", "2", "--moe-freq", "1",
        "--criterion", "multitask_summed_loss", "--optimizer", "adam", "--lr", "0.005",
        "--max-tokens", "2000", "--max-update", "40", "--disable-validation", "--cpu",
        "--num-workers", "0", "--data-buffer-size", "0", "--no-epoch-checkpoints",
        "--save-dir", folder,
    )  # fmt: skip
    return folder / "checkpoint_last.pt"


def text(raw: Path, direction: str, split: str = "test") -> list[str]:
    """The source side of a split, as users have it."""
    source = direction.split("-")[0]
    pair = "en-de" if "de" in direction else "fr-en"
    return (raw / f"{split}.{pair}.{source}").read_text(encoding="utf-8").splitlines()
