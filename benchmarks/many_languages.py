"""Start-up time and memory with many languages, ours beside stock's multilingual task.

Writes a synthetic corpus of 50 languages (English with 49 others, sizes falling like 1/rank), in
the format of `fairseq-preprocess`, and trains one update on its 98 directions:

    python benchmarks/many_languages.py --pairs 10000000 --folder /tmp/many --out many.json

Seconds are those of the whole process, Python's start included; memory is its peak resident set,
which counts the pages of mapped files that were touched.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sysconfig
import time
from pathlib import Path

import numpy as np
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDataset

SCRIPTS = Path(sysconfig.get_path("scripts"))
PLUGIN = Path(__file__).resolve().parent.parent / "zcode_plugin"
LANGUAGES = ["en", *(f"l{number:02d}" for number in range(1, 50))]
VOCABULARY = 8000
COMMON = (
    "--sampling-method", "temperature", "--sampling-temperature", "5", "--encoder-langtok", "tgt",
    "--encoder-layers", "1", "--decoder-layers", "1", "--encoder-embed-dim", "32",
    "--decoder-embed-dim", "32", "--encoder-ffn-embed-dim", "32", "--decoder-ffn-embed-dim", "32",
    "--encoder-attention-heads", "2", "--decoder-attention-heads", "2", "--share-all-embeddings",
    "--optimizer", "adam", "--lr", "0.001", "--max-tokens", "4000", "--max-update", "1",
    "--disable-validation", "--no-save", "--cpu", "--num-workers", "0", "--data-buffer-size", "0",
    "--log-format", "json",
)  # fmt: skip
CONTESTANTS = {
    "zcode_plugin": (
        "--user-dir", str(PLUGIN), "--task", "multitask_multilingual", "--arch",
        "moe_transformer_tiny_dense", "--criterion", "multitask_summed_loss",
    ),
    "stock": (
        "--task", "translation_multi_simple_epoch", "--arch", "transformer", "--criterion",
        "label_smoothed_cross_entropy",
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--pairs", type=int, default=10_000_000, help="sentence pairs, each used both ways")
    add("--folder", type=Path, required=True, help="where the corpus is written, or is already")
    add("--rounds", type=int, default=3)
    add("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    if not (args.folder / "langs.txt").exists():
        write_corpus(args.folder, args.pairs)
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTESTANTS}
    for _ in range(args.rounds):
        for name in CONTESTANTS:
            runs[name].append(start(args.folder, CONTESTANTS[name]))
            print(f"{name:<14}{runs[name][-1][0]:7.1f} s {runs[name][-1][1]:8.0f} MiB", flush=True)
    record = {
        name: {
            "seconds": round(statistics.median(seconds for seconds, _ in figures), 1),
            "mib": round(statistics.median(mib for _, mib in figures)),
        }
        for name, figures in runs.items()
    }
    print(json.dumps(record, indent=2))
    if args.out:
        args.out.write_text(json.dumps({"pairs": args.pairs, **record}, indent=2) + "\n")


def write_corpus(folder: Path, pairs: int) -> None:
    """Sentences of 4 to 15 random words; `langs.txt` last, so that it marks a whole corpus."""
    folder.mkdir(parents=True, exist_ok=True)
    dictionary = Dictionary()
    for number in range(VOCABULARY):
        dictionary.add_symbol(f"w{number}")
    dictionary.finalize(padding_factor=1)
    for lang in LANGUAGES:
        dictionary.save(str(folder / f"dict.{lang}.txt"))
    rng = np.random.default_rng(1)
    shares = 1 / np.arange(1, len(LANGUAGES))
    for lang, share in zip(LANGUAGES[1:], shares / shares.sum(), strict=True):
        for side in ("en", lang):
            write_sentences(f"{folder}/train.en-{lang}.{side}", max(1, round(pairs * share)), rng)
            write_sentences(f"{folder}/valid.en-{lang}.{side}", 10, rng)
    (folder / "langs.txt").write_text("\n".join(LANGUAGES) + "\n")


def write_sentences(path: str, count: int, rng: np.random.Generator) -> None:
    sizes = rng.integers(5, 17, count, dtype=np.int32)
    tokens = rng.integers(4, 4 + VOCABULARY, int(sizes.sum()), dtype=np.uint16)
    tokens[np.cumsum(sizes) - 1] = 2  # end of sentence
    tokens.tofile(f"{path}.bin")
    with MMapIndexedDataset.Index.writer(f"{path}.idx", np.uint16) as index:
        index.write(sizes)


def start(folder: Path, options: tuple[str, ...]) -> tuple[float, float]:
    """Seconds and MiB of a training run of one update."""
    directions = [f"{a}-{b}" for lang in LANGUAGES[1:] for a, b in (("en", lang), (lang, "en"))]
    command = [
        str(SCRIPTS / "fairseq-train"), str(folder), *options, *COMMON, "--lang-pairs",
        ",".join(directions), "--langs", ",".join(LANGUAGES),
    ]  # fmt: skip
    begin = time.perf_counter()
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit((folder / "log").read_text()[-3000:])
    return time.perf_counter() - begin, usage.ru_maxrss / 1024


if __name__ == "__main__":
    main()
