"""Load statistics of a trained model."""

from __future__ import annotations

from pathlib import Path

import torch
from fairseq import checkpoint_utils
from toy import train

from zcode_plugin import register
from zcode_plugin.moe import labelled, load_statistics


def test_layers_objectives_and_pairs_are_counted_apart(reversal: Path, tmp_path: Path) -> None:
    register()
    train(
        reversal, tmp_path, "--max-update", "2", "--multitask", "mt:1,dae:1",
        "--lang-pairs", "aa-bb", "--moe-expert-count", "4,2",
    )  # fmt: skip
    models, cfg, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(tmp_path / "checkpoint_last.pt")], {"data": str(reversal)}
    )
    task.load_dataset("valid")
    criterion = task.build_criterion(cfg.criterion)
    expected: dict[tuple[str, str], int] = {}
    with load_statistics() as statistics, torch.no_grad():
        for sample in task.get_batch_iterator(
            task.dataset("valid"), max_tokens=1000
        ).next_epoch_itr(shuffle=False):
            with labelled(pairs="aa-bb"):
                criterion(models[0].eval(), sample)
            for objective, batch in sample.items():
                for side, tokens in (
                    ("encoder", batch["net_input"]["src_tokens"]),
                    ("decoder", batch["net_input"]["prev_output_tokens"]),
                ):
                    real = int(tokens.ne(task.source_dictionary.pad()).sum())
                    key = (f"{side}.layers.1", objective)
                    expected[key] = expected.get(key, 0) + real
    rows = statistics.rows()
    assert {(row["layer"], row["objective"]): row["tokens"] for row in rows} == expected
    assert {objective for _, objective in expected} == {"mt", "dae"}
    assert {row["pair"] for row in rows} == {"aa-bb"}
    for row in rows:
        assert len(row["load"]) == (4 if row["layer"].startswith("encoder") else 2)
        assert sum(row["load"]) == sum(row["kept"]) == row["tokens"]
        assert sum(row["asked_by_sentence_position"]) == row["tokens"]
        assert row["dropped"] == 0
