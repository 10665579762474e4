"""Names of checkpoint files and of the entries of experts in them.

A run that spreads experts over ranks writes `STEM-rank-R.pt` for each rank R, and `STEM.pt` is what
all of them merge into. One that only slices layers writes `STEM-model_part-R.pt` for each tensor
rank R; what is said of rank files here goes for those, too. Expert entries are
`LAYER.experts.N.PARAMETER`, where LAYER ends in `.moe_layer` and N is the expert's number over all
ranks; the layer's gate has one row an expert. The optimizer sees the experts of a rank as stacks,
one for each parameter, and knows those as `LAYER.experts.STACK`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from zcode_plugin.errors import UserError

_RANK_FILE = re.compile(r"(?P<stem>.+)-(?P<kind>rank|model_part)-(?P<rank>\d+)\.pt")
EMBEDDINGS = "encoder.embed_tokens.weight"
# A module that encoder and decoder share is listed once among a model's parameters, and stands
# twice in its state dict.
ONE_EMBEDDING = MappingProxyType({"decoder.embed_tokens.weight": EMBEDDINGS})
# Of a run with --use-sharded-state.
_SHARD = re.compile(r"(?P<stem>.+?)(?:-rank-\d+)?-shard(?P<shard>\d+)\.pt")
# fairseq's sinusoidal positions own a number that nothing ever sets; only its device is read.
UNSET_BUFFER = "embed_positions._float_tensor"
_EXPERT_KEY = re.compile(
    r"(?P<layer>.*\bmoe_layer)\.experts\.(?P<expert>\d+)\.(?P<parameter>.+)",
)

# Stock encoder layers own second copies of their weights for an inference kernel of torch: unused,
# never trained, but parameters and in every file.
FAST_PATH_COPIES = (
    "in_proj_weight",
    "in_proj_bias",
    "out_proj_weight",
    "out_proj_bias",
    "fc1_weight",
    "fc1_bias",
    "fc2_weight",
    "fc2_bias",
)
_FAST_PATH_COPY = re.compile(rf"(?:.+\.)?layers\.\d+\.(?:{'|'.join(FAST_PATH_COPIES)})")
# Start of the entries of objectives' heads.
HEADS = "heads."
# Entries that no optimizer sees: format numbers, a device's marker, the state of balancing.
_BUFFER = re.compile(r"(?:.+\.)?(?:version|_float_tensor|selection_bias)")

_STACK = re.compile(r"(?P<layer>.*\bmoe_layer)\.experts\.(?P<parameter>fc[12]_(?:weight|bias))")


@dataclass(frozen=True)
class ExpertKey:
    """The parts of an expert entry's name; `expert` counts over all ranks."""

    layer: str
    expert: int
    parameter: str

    def __str__(self) -> str:
        return f"{self.layer}.experts.{self.expert}.{self.parameter}"


def parse_expert_key(key: str) -> ExpertKey | None:
    """The parts of an expert entry's name; None for the name of a shared entry."""
    match = _EXPERT_KEY.fullmatch(key)
    return ExpertKey(match["layer"], int(match["expert"]), match["parameter"]) if match else None


@dataclass(frozen=True)
class Stack:
    """A parameter of all experts of a layer that live on a rank, [experts, ...]."""

    layer: str
    parameter: str

    def key(self, expert: int) -> str:
        """The entry of one of its experts."""
        return str(ExpertKey(self.layer, expert, self.parameter))


def parse_stack(name: str) -> Stack | None:
    """The parts of an expert parameter's name in a model; None for the name of a shared one."""
    match = _STACK.fullmatch(name)
    return Stack(match["layer"], match["parameter"].replace("_", ".")) if match else None


def gate_key(layer: str) -> str:
    """The entry of a layer's gate, [experts, width of what it reads]."""
    return f"{layer}.gate.wg.weight"


def gate_rows(layer: str) -> tuple[str, ...]:
    """The entries of a layer that have a row for each expert; a checkpoint need not have all."""
    return gate_key(layer), f"{layer}.gate.selection_bias"


def is_fast_path_copy(key: str) -> bool:
    """Whether an entry is one of `FAST_PATH_COPIES` of a layer."""
    return _FAST_PATH_COPY.fullmatch(key) is not None


def is_buffer(key: str) -> bool:
    """Whether an entry is no parameter."""
    return _BUFFER.fullmatch(key) is not None


def layer_index(layer: str) -> int:
    """The number of a layer within its side: `encoder.layers.3.moe_layer` -> 3."""
    return int(layer.split(".layers.")[1].partition(".")[0])


def rank_of(path: Path) -> int | None:
    """The rank in a file's name, None where there is none."""
    match = _RANK_FILE.fullmatch(path.name)
    return int(match["rank"]) if match else None


def shard_of(path: Path) -> int | None:
    """The shard in a file's name (`NAME-shard1.pt`, `NAME-rank-1-shard1.pt`), or None."""
    match = _SHARD.fullmatch(path.name)
    return int(match["shard"]) if match else None


def without_shard(path: Path) -> Path:
    """`DIR/checkpoint_last-shard1.pt` -> `DIR/checkpoint_last.pt`; other names stay."""
    match = _SHARD.fullmatch(path.name)
    return path.with_name(f"{match['stem']}.pt") if match else path


def with_shard(path: Path, shard: int) -> Path:
    """`DIR/checkpoint_last.pt` -> `DIR/checkpoint_last-shard1.pt`."""
    return path.with_name(f"{path.stem}-shard{shard}.pt")


def find_shards(path: Path) -> dict[int, Path]:
    """The shards beside `path`, which may be one of them or the name without one, by number."""
    whole = without_shard(path)
    if not whole.parent.is_dir():
        return {}
    found = {}
    for other in whole.parent.iterdir():
        shard = shard_of(other)
        if shard is not None and without_shard(other) == whole:
            found[shard] = other
    return dict(sorted(found.items()))


def is_part(path: Path) -> bool:
    """Whether a file is of a tensor rank, `-model_part-R`."""
    match = _RANK_FILE.fullmatch(path.name)
    return match is not None and match["kind"] == "model_part"


def without_rank(path: Path) -> Path:
    """`DIR/checkpoint_last-rank-1.pt` -> `DIR/checkpoint_last.pt`; other names stay."""
    match = _RANK_FILE.fullmatch(path.name)
    return path.with_name(f"{match['stem']}.pt") if match else path


def with_rank(path: Path, rank: int) -> Path:
    """`DIR/checkpoint_last.pt` -> `DIR/checkpoint_last-rank-1.pt`."""
    return path.with_name(f"{path.stem}-rank-{rank}.pt")


def with_part(path: Path, part: int) -> Path:
    """`DIR/checkpoint_last.pt` -> `DIR/checkpoint_last-model_part-1.pt`."""
    return path.with_name(f"{path.stem}-model_part-{part}.pt")


def find_rank_files(path: Path) -> dict[int, Path]:
    """The rank files beside `path`, which may be one of them or the name without a rank.

    Those of tensor ranks are found where `path` is one, or where there are no others.

    Returns:
        Paths by rank, in the order of ranks; empty when there are none.
    """
    whole = without_rank(path)
    if not whole.parent.is_dir():
        return {}
    kinds = [with_part] if is_part(path) else [with_rank, with_part]
    others = [other for other in whole.parent.iterdir() if without_rank(other) == whole]
    for named in kinds:
        ranks = {
            rank: other
            for other in others
            if (rank := rank_of(other)) is not None and other == named(whole, rank)
        }
        if ranks:
            return dict(sorted(ranks.items()))
    return {}


def unfinished(path: Path) -> Path:
    """Where a save writes a file before it gets its name."""
    return path.with_name(f"{path.name}.tmp")


def check_no_folder(path: Path) -> None:
    """Refuse a folder where a checkpoint is to be named.

    Raises:
        UserError: it is one.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a checkpoint in it")


def check_whole(path: Path) -> None:
    """Refuse all but a checkpoint that one process can load.

    Raises:
        UserError: it is of one rank of several, a shard, or not there.
    """
    is_rank = rank_of(path) is not None
    if is_rank or (not path.exists() and find_rank_files(path)):
        raise UserError(f"{path} is of one rank of several: run `zcode merge {path}`")
    shard = path if shard_of(path) is not None else next(iter(find_shards(path).values()), None)
    if shard is not None and (shard == path or not path.exists()):
        raise UserError(f"{path} is a shard of all weights: run `zcode merge {shard}`")
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}")
