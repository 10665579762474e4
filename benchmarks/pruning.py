"""Size, speed and BLEU of a checkpoint with half of its experts, chosen in several ways.

    python benchmarks/pruning.py model.pt data --keep 50% --seeds 5

The statistics are of the split `valid`, the translations of `test`. Random choices are the
baseline: their line is the mean of all seeds, with the standard deviation and the range of BLEU
below.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import translation

from zcode_plugin.cli.main import main as zcode

CRITERIA = ("utilisation", "gate-weight", "activation-norm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    translation.add_arguments(parser)
    parser.add_argument("--keep", default="50%", help="of zcode prune")
    parser.add_argument("--seeds", type=int, default=5, help="random choices")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pruning-") as folder:
        files = prune(args, Path(folder))
        random = [name for name in files if name.startswith("random")]
        rows = translation.compare(args, files, once=random)
    shown = {name: row for name, row in rows.items() if name not in random}
    shown[f"random, mean of {len(random)}"] = {
        key: statistics.fmean(rows[name][key] for name in random) for key in rows[random[0]]
    }
    print(translation.table(shown))
    bleu = [rows[name]["bleu"] for name in random]
    spread = f"{statistics.stdev(bleu):.2f}" if len(bleu) > 1 else "-"
    print(f"random: BLEU {min(bleu):.2f} to {max(bleu):.2f}, standard deviation {spread}")
    if args.out:
        translation.write_json(args.out, rows)


def prune(args: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """The checkpoint without its optimizer's state, and each choice of its experts, by name."""
    stats = folder / "stats.json"
    # Of translation alone: denoising asks for other experts.
    run("stats", args.checkpoint, args.data, "--out", stats, "--objectives", "mt", "--cpu")
    files = {"all": folder / "all.pt"}
    run("prune", args.checkpoint, "--keep", "100%", "--by", "random", "--out", files["all"])
    choice = ("prune", args.checkpoint, "--keep", args.keep)
    for criterion in CRITERIA:
        files[criterion] = folder / f"{criterion}.pt"
        run(*choice, "--by", criterion, "--stats", stats, "--out", files[criterion])
    files["utilisation, all layers"] = folder / "across.pt"
    run(
        *choice, "--by", "utilisation", "--stats", stats, "--across-layers",
        "--out", files["utilisation, all layers"],
    )  # fmt: skip
    for seed in range(1, args.seeds + 1):
        files[f"random {seed}"] = folder / f"random{seed}.pt"
        run(*choice, "--by", "random", "--seed", seed, "--out", files[f"random {seed}"])
    return files


def run(*arguments: object) -> None:
    if zcode([str(argument) for argument in arguments]):
        raise SystemExit(2)


if __name__ == "__main__":
    main()
