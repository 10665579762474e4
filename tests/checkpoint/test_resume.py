"""What a run must not start from is refused on every rank, in the same words."""

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint.rank_files import State, rank_state, write_rank_files
from distributed import run_ranks

from zcode_plugin.checkpoint import io
from zcode_plugin.checkpoint.reshard import plan
from zcode_plugin.checkpoint.resume import check_start
from zcode_plugin.errors import UserError

SYMBOLS = ["<s>", "<pad>", "</s>", "<unk>", "a", "b", "c"]


def told(rank: int, options: Namespace) -> str:
    """What a rank is told; nothing where it may start."""
    try:
        check_start(options, SYMBOLS)
    except UserError as error:
        return str(error)
    return ""


def start(folder: Path, world: int, **options: object) -> str:
    """What all ranks of a run are told."""
    given = {"save_dir": str(folder), "restore_file": "checkpoint_last.pt", **options}
    first, *others = run_ranks(told, world, Namespace(**given))
    assert all(other == first for other in others)
    return first


def write(folder: Path, world: int = 2, size: int = 2) -> dict[int, Path]:
    folder.mkdir(exist_ok=True)
    return write_rank_files(folder, {rank: rank_state(rank, size, world) for rank in range(world)})


@pytest.fixture
def files(tmp_path: Path) -> dict[int, Path]:
    return write(tmp_path / "run")


def test_a_whole_set_and_a_first_start_are_welcome(files: dict[int, Path], tmp_path: Path) -> None:
    assert start(tmp_path / "run", 2, expert_parallel_size=2) == ""
    write(tmp_path / "groups", world=4)
    assert start(tmp_path / "groups", 4, expert_parallel_size=2) == ""
    assert start(tmp_path / "new", 2, expert_parallel_size=2) == ""
    assert start(tmp_path / "new", 1, expert_parallel_size=1) == ""
    torch.save(rank_state(0, 1), tmp_path / "one.pt")
    for finetune in (str(tmp_path / "one.pt"), None):
        restore = "checkpoint_last.pt" if finetune else str(tmp_path / "one.pt")
        size = {"expert_parallel_size": 2 if finetune else 1}
        options = {"finetune_from_model": finetune, "restore_file": restore, **size}
        assert start(tmp_path / "new", 2, **options) == ""


def test_an_interrupted_save_is_completed(files: dict[int, Path], tmp_path: Path) -> None:
    state = io.load(files[1])
    files[1].rename(f"{files[1]}.tmp")
    state["optimizer_history"][-1]["num_updates"] = 20
    torch.save(state, files[1])
    assert start(tmp_path / "run", 2, expert_parallel_size=2) == ""
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoint_last-rank-0.pt",
        "checkpoint_last-rank-1.pt",
    ]


def test_a_start_from_elsewhere_that_happens_once(files: dict[int, Path], tmp_path: Path) -> None:
    once = tmp_path / "old.pt"
    new = {"expert_parallel_size": 1, "continue_once": str(once)}
    assert start(tmp_path / "new", 1, **new) == (
        f"--continue-once {once}: there is no such checkpoint"
    )
    state = rank_state(0, 1)
    torch.save(state, once)
    assert start(tmp_path / "new", 1, **new) == ""
    state["task_state"]["symbols"] = "\n".join([*SYMBOLS[:-1], "d"])
    torch.save(state, once)
    assert "has another vocabulary" in start(tmp_path / "new", 1, **new)
    assert start(tmp_path / "new", 2, expert_parallel_size=2, continue_once=str(once)) == (
        f"--continue-once {once} is read by all ranks alike, and here each has a file of its own: "
        "name it as --restore-file"
    )
    # Once the run has a checkpoint of its own, that is what it goes on from.
    assert start(tmp_path / "run", 2, expert_parallel_size=2, continue_once=str(once)) == ""


def change(path: Path, how: Callable[[State], None]) -> None:
    state = io.load(path)
    how(state)
    torch.save(state, path)


def age(state: State, updates: int = 20) -> None:
    state["optimizer_history"][-1]["num_updates"] = updates


def retrain(state: State) -> None:
    state["model"]["encoder.version"] += 1


def forget(state: State) -> None:
    del state["last_optimizer_state"]


SPOILED = {
    "missing": (
        lambda files: files[1].unlink(),
        "{1} is missing: the run had 2 ranks, each of which wrote a file",
    ),
    "too many": (
        lambda files: files[1].with_name("checkpoint_last-rank-2.pt").touch(),
        "{run}/checkpoint_last-rank-2.pt is of another run: this one had 2 ranks; move the file "
        "away",
    ),
    "of another update": (
        lambda files: change(files[1], age),
        "{1} was saved after 20 updates but {0} after 40: use files of one save",
    ),
    "of another rank": (
        lambda files: files[1].write_bytes(files[0].read_bytes()),
        "{1} was saved as -rank-0: put the file of rank 1 in its place",
    ),
    "of another run": (
        lambda files: change(files[1], retrain),
        "{1} is of another run than {0}: their encoder.version differ; put the file of this run in "
        "its place",
    ),
    "without optimizer": (
        lambda files: change(files[0], forget),
        "{0} holds no optimizer's state, as after zcode merge or --no-save-optimizer-state: add "
        "--reset-optimizer to begin with a new one",
    ),
}


@pytest.mark.parametrize("what", SPOILED)
def test_a_missing_or_foreign_file(files: dict[int, Path], tmp_path: Path, what: str) -> None:
    spoil, message = SPOILED[what]
    spoil(files)
    expected = message.format(*files.values(), run=tmp_path / "run")
    assert start(tmp_path / "run", 2, expert_parallel_size=2) == expected


def test_other_trained_parameters_need_another_optimizer(tmp_path: Path) -> None:
    """The optimizer's state is by number: as many of equal shapes would go to the wrong weights."""
    state = rank_state(0, 1)
    state["task_state"]["parameters"] = ["layer.q_proj.weight", "layer.fc1.weight"]
    torch.save(state, tmp_path / "checkpoint_last.pt")
    options = Namespace(save_dir=str(tmp_path), restore_file="checkpoint_last.pt")
    check_start(options, SYMBOLS, ["layer.fc1.weight", "layer.q_proj.weight"])
    for trained, which in (
        (["layer.v_proj.weight", "layer.fc1.weight"], "trained layer.q_proj.weight"),
        ([*state["task_state"]["parameters"], "heads.mlm.bias"], "did not train heads.mlm.bias"),
    ):
        with pytest.raises(UserError) as refusal:
            check_start(options, SYMBOLS, trained)
        assert str(refusal.value) == (
            f"{tmp_path}/checkpoint_last.pt is of a run that {which}, unlike this one, as after "
            "another --freeze-except or --multitask: add --reset-optimizer to begin with a new one"
        )
        check_start(Namespace(**vars(options), reset_optimizer=True), SYMBOLS, trained)


@pytest.mark.parametrize("way", ["restore_file", "finetune_from_model"])
def test_averages_need_averages_to_go_on_from(tmp_path: Path, way: str) -> None:
    path = tmp_path / "one.pt"
    state = rank_state(0, 1)
    torch.save(state, path)
    given = {"restore_file": "checkpoint_last.pt", way: str(path), "store_ema": True}
    assert start(tmp_path / "new", 1, **given) == ""
    del state["extra_state"]["ema"]
    torch.save(state, path)
    assert start(tmp_path / "new", 1, **given) == (
        f"--store-ema: {path} holds no averages for stock to go on from: leave the flag out"
    )


def test_averages_in_float32_are_not_divided_over_ranks(tmp_path: Path) -> None:
    path = tmp_path / "one.pt"
    state = rank_state(0, 1)
    state["extra_state"]["ema_fp32_params"] = dict(state["model"])
    torch.save(state, path)
    given = {"finetune_from_model": str(path), "store_ema": True, "ema_fp32": True}
    assert start(tmp_path / "new", 1, **given) == ""
    assert start(tmp_path / "new", 2, expert_parallel_size=2, **given).startswith(
        f"--ema-fp32: the averages in {path} are of all experts"
    )


def test_the_newest_whole_set_is_named(files: dict[int, Path], tmp_path: Path) -> None:
    for path in files.values():
        for updates in (10, 20):
            target = path.with_name(path.name.replace("_last", f"_1_{updates}"))
            target.write_bytes(path.read_bytes())
            change(target, partial(age, updates=updates))
    change(files[1], age)
    assert start(tmp_path / "run", 2, expert_parallel_size=2) == (
        f"{files[1]} was saved after 20 updates but {files[0]} after 40: use files of one save; "
        f"--restore-file {tmp_path}/run/checkpoint_1_20.pt has the files of all ranks after 20 "
        "updates"
    )


RESHARD = "zcode reshard {} --ranks {} --expert-parallel-size {} --out DIR"


def test_a_run_of_another_layout(files: dict[int, Path], tmp_path: Path) -> None:
    run, last = tmp_path / "run", tmp_path / "run" / "checkpoint_last.pt"
    assert start(run, 4, expert_parallel_size=4) == (
        f"{files[0]} is of a run on 2 ranks with --expert-parallel-size 2, and this one has 4 and "
        f"4: divide it anew with {RESHARD.format(last, 4, 4)}"
    )
    for world in (1, 2):
        assert start(run, world, expert_parallel_size=1) == (
            f"{files[0]} and the like are of a run whose ranks had different experts or slices, "
            f"and this one has --expert-parallel-size 1: {RESHARD.format(files[0], world, 1)}"
        )
    torch.save(rank_state(0, 1), tmp_path / "one.pt")
    restore = {"restore_file": str(tmp_path / "one.pt"), "reset_optimizer": True}
    assert start(run, 2, expert_parallel_size=2, **restore) == (
        f"{tmp_path}/one.pt is one file for all ranks, but with --expert-parallel-size 2 each has "
        f"its own: divide it with {RESHARD.format(tmp_path / 'one.pt', 2, 2)}, or start from its "
        "weights alone with --finetune-from-model"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"restore_file": "{run}/x.pt"}, "--restore-file {run}/x.pt: there is no such checkpoint"),
        ({"restore_file": "{run}/old/checkpoint_last.pt"},
         "--restore-file {run}/old/checkpoint_last.pt: there is no such checkpoint"),
        ({"restore_file": "{run}/old/checkpoint_last.pt", "finetune_from_model": "{run}/x.pt"},
         "--restore-file {run}/old/checkpoint_last.pt: there is no such checkpoint"),
        ({"restore_file": "{run}/old/checkpoint_last.pt", "use_sharded_state": True},
         "{run}/old/checkpoint_last.pt is no shard, and --use-sharded-state starts from shards "
         "alone, which nothing else makes: leave it out"),
        ({"restore_file": "{run}/checkpoint_last-rank-0.pt"},
         "--restore-file {run}/checkpoint_last-rank-0.pt: give the name without -rank-0, each rank "
         "adds its own"),
        ({"restore_file": "a.pt.d/x.pt"},
         "--restore-file a.pt.d/x.pt: the name must end in .pt and have no other .pt in it, or "
         "stock does not find the files of ranks: rename the file or its folder"),
        ({"save_dir": "none", "finetune_from_model": "{run}/checkpoint_last.pt"},
         "--finetune-from-model {run}/checkpoint_last.pt: there is no such file; join its "
         "rank files with zcode merge"),
    ],
)  # fmt: skip
def test_names(
    files: dict[int, Path], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    run = tmp_path / "run"
    given = {
        name: value.format(run=run) if isinstance(value, str) else value
        for name, value in options.items()
    }
    assert start(run, 2, expert_parallel_size=2, **given) == message.format(run=run)


def test_a_run_with_other_slices(tmp_path: Path) -> None:
    """A whole file, too few slices, and slices for a run of whole layers."""
    torch.save(rank_state(0, 1), tmp_path / "one.pt")
    reshard = "zcode reshard {} --ranks {} --expert-parallel-size {}{} --out DIR"
    sliced = {"expert_parallel_size": 1, "model_parallel_size": 2}
    assert start(tmp_path, 2, **sliced, restore_file=str(tmp_path / "one.pt")) == (
        f"{tmp_path}/one.pt is one file for all ranks, but with --model-parallel-size 2 each has "
        "its own: divide it with "
        f"{reshard.format(tmp_path / 'one.pt', 2, 1, ' --model-parallel-size 2')}, or start from "
        "its weights alone with --finetune-from-model"
    )
    resharding = plan([tmp_path / "one.pt"], 4, 2, tensor_parallel=2)
    last = tmp_path / "run" / "checkpoint_last.pt"
    last.parent.mkdir()
    files = resharding.after.paths(last)
    io.save_all(zip(files, resharding.states(), strict=True))
    assert start(last.parent, 4, expert_parallel_size=2, model_parallel_size=2) == ""
    assert start(last.parent, 4, expert_parallel_size=4) == (
        f"{files[0]} is of a run with --model-parallel-size 2, and this one has 1: divide it anew "
        f"with {reshard.format(last, 4, 4, '')}"
    )
    assert start(last.parent, 2, **sliced) == (
        f"{files[0]} and the like are of a run whose ranks had different experts or slices, and "
        "this one has --model-parallel-size 2: "
        f"{reshard.format(files[0], 2, 1, ' --model-parallel-size 2')}"
    )
    assert start(last.parent, 2, expert_parallel_size=1, model_parallel_size=1) == (
        f"{files[0]} and the like are of a run whose ranks had different experts or slices, and "
        f"this one has --expert-parallel-size 1: {reshard.format(files[0], 2, 1, '')}"
    )


def test_a_first_start_may_name_the_checkpoint_of_its_own_folder(tmp_path: Path) -> None:
    restore = str(tmp_path / "new" / "checkpoint_last.pt")
    assert start(tmp_path / "new", 1, restore_file=restore) == ""
