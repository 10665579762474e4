"""Size, speed and BLEU of a checkpoint with experts of float32, int8 and int4.

    python benchmarks/quantisation.py model.pt data --directions de-en,en-de --rounds 5

See `translation.py` for how. The float32 file is CKPT merged, without the optimizer's state and
EMA, as the others are.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import translation

from zcode_plugin.checkpoint import config, io
from zcode_plugin.checkpoint.gather import gather_whole
from zcode_plugin.checkpoint.quantise import quantise_checkpoint
from zcode_plugin.checkpoint.tensors import WEIGHTS_IN_EXTRA_STATE

BITS = {"float32": config.FLOAT_BITS, "int8": 8, "int4": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    translation.add_arguments(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="quantisation-") as folder:
        files = {name: Path(folder, f"{name}.pt") for name in BITS}
        for name, path in files.items():
            write(args.checkpoint, BITS[name], path)
        translation.write(args, translation.compare(args, files))


def write(checkpoint: Path, bits: int, path: Path) -> None:
    """Write the file of so many bits."""
    if bits == config.FLOAT_BITS:
        state = gather_whole(checkpoint)[1].state
        for name in WEIGHTS_IN_EXTRA_STATE:
            (state.get("extra_state") or {}).pop(name, None)
    else:
        state = quantise_checkpoint(checkpoint, bits).state
    io.save(state, path)


if __name__ == "__main__":
    main()
