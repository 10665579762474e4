"""A model card in Markdown: what is known of a model, and nothing else.

With the metadata block that the Hugging Face hub reads (https://huggingface.co/docs/hub/model-cards);
its licence is for the owner to add.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from zcode_plugin.errors import UserError
from zcode_plugin.reporting.charts import OBJECTIVES
from zcode_plugin.reporting.runs import Run
from zcode_plugin.reporting.tables import Table, duration, load_table, score_table

# How the verb knows a card that it may replace.
MARK = "<!-- written by zcode report -->"
# Options that a reader wants to know, by part of the checkpoint's configuration.
_OPTIONS = {
    "task": (
        "multitask", "multitask_normalization", "sampling_method", "sampling_temperature",
        "encoder_langtok", "decoder_langtok",
    ),
    "model": (
        "moe_freq", "encoder_moe_freq", "decoder_moe_freq", "moe_top_k", "moe_capacity_factor",
        "moe_eval_capacity_factor", "moe_token_priority", "moe_balance", "dropout",
    ),
    "criterion": ("_name", "label_smoothing", "moe_gate_loss_wt", "moe_z_loss_wt"),
    "optimizer": ("_name", "adam_betas", "adam_eps", "weight_decay"),
    "lr_scheduler": ("_name", "warmup_updates", "total_num_update"),
    "optimization": ("lr", "max_update", "update_freq", "clip_norm"),
    "dataset": ("max_tokens", "batch_size"),
    "common": ("seed", "fp16", "bf16"),
}  # fmt: skip
_NAMES = {"criterion": "criterion", "optimizer": "optimizer", "lr_scheduler": "lr-scheduler"}


def find_checkpoint(run: Run) -> Path:
    """The checkpoint that the scores or the statistics are of, or `model.pt` in the folder.

    Raises:
        UserError: none of them is there.
    """
    named = [
        origin.get("checkpoint")
        for origin in (
            run.evaluation.record if run.evaluation else {},
            run.statistics.origin if run.statistics else {},
        )
    ]
    # A run that has moved is looked for beside its results, too.
    places = [
        place for name in named if name for place in (Path(name), run.folder / Path(name).name)
    ]
    for path in (*places, run.folder / "model.pt"):
        if path.is_file():
            return path
    raise UserError(f"{run.folder} names no checkpoint that is there: give --checkpoint CKPT")


def model_card(run: Run, checkpoint: Path) -> str:
    """The card of a checkpoint.

    Raises:
        UserError: as `inspect`.
    """
    from zcode_plugin.checkpoint import io
    from zcode_plugin.checkpoint.inspect import inspect

    contents = inspect(checkpoint)
    state = io.load_options(Path(contents.files[0]))
    parts = [
        _metadata(contents),
        f"{MARK}\n# {run.name}",
        _model(contents),
        _data(contents, run),
        _training(contents, state, run),
        _scores(contents, run),
        _load(run),
        _limits(contents, run),
        _use(contents, state, checkpoint),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(contents: Any) -> str:
    lines = ["---", "library_name: fairseq", "pipeline_tag: translation"]
    if contents.languages:
        # Quoted: Norwegian's code is YAML for false.
        lines += ["language:", *(f'  - "{lang}"' for lang in contents.languages)]
    tags = ["translation", "fairseq", *(["mixture-of-experts"] if contents.experts else [])]
    return "\n".join([*lines, "tags:", *(f"  - {tag}" for tag in tags), "---"])


def _model(contents: Any) -> str:
    parameters = contents.parameters
    experts = ", ".join(f"{number} in {layer}" for layer, number in contents.experts.items())
    facts = {
        "architecture": contents.arch,
        "task": contents.task,
        "parameters": f"{parameters.total:,}",
        "active per token": f"{parameters.active:,}" if contents.experts else None,
        "stored as": ", ".join(parameters.dtypes),
        "vocabulary": ", ".join(f"{side} {size:,}" for side, size in contents.vocabulary.items()),
        "experts": experts,
        "experts of a token": contents.top_k,
        "gate": contents.gate,
    }
    return "## Model\n\n" + _facts(facts)


def _data(contents: Any, run: Run) -> str:
    facts = {
        "languages": ", ".join(contents.languages),
        "directions": ", ".join(contents.pairs),
        "objectives": ", ".join(OBJECTIVES.get(name, name) for name in contents.objectives),
        "scored on split": run.evaluation and run.evaluation.record.get("subset"),
    }
    return "## Languages and data\n\n" + _facts(facts)


def _training(contents: Any, state: Any, run: Run) -> str:
    facts: dict[str, Any] = {"updates": f"{contents.updates:,}", "ranks": contents.ranks}
    if run.log is not None and run.log.seconds:
        facts["time of training"] = duration(max(run.log.seconds.values()))
    options = _options(state)
    text = "## Training\n\n" + _facts(facts)
    return text + (f"\n\nOptions: `{' '.join(options)}`" if options else "")


def _options(state: Any) -> Iterable[str]:
    """Flags and values, as one gives them to fairseq-train."""
    from zcode_plugin.checkpoint import config

    found: dict[str, str] = {}
    for part, names in _OPTIONS.items():
        section = config.section(state, part)
        for name in names:
            value = config.get(section, name)
            if value is None or value is False or value == "":
                continue
            flag = _NAMES[part] if name == "_name" else name.replace("_", "-")
            found[f"--{flag}"] = "" if value is True else _value(value)
    return [f"{flag} {value}".strip() for flag, value in found.items()]


def _value(value: Any) -> str:
    if isinstance(value, (str, int, float)):
        text = str(value)
    else:  # lists of the configuration, one entry for each epoch
        text = ",".join(map(str, value))
    return f'"{text}"' if any(sign in text for sign in " ()") else text


def _scores(contents: Any, run: Run) -> str:
    table = score_table([run])
    if table is None or run.evaluation is None:
        return ""
    updates = run.evaluation.record.get("updates")
    other = updates is not None and updates != contents.updates
    warning = f"\n\nThe scores are of the model after {updates:,} updates." if other else ""
    notes = "\n".join(f"- `{note}`" for note in table.notes[1:])
    return f"## Scores\n\n{_markdown(table)}\n\n{notes}{warning}"


def _load(run: Run) -> str:
    table = load_table([run])
    if table is None:
        return ""
    text = f"Shares of a layer's tokens; {table.notes[0]}."
    return f"## Load of the experts\n\n{text}\n\n{_markdown(table)}"


def _limits(contents: Any, run: Run) -> str:
    lines = []
    if contents.pairs:
        lines.append("Its training names the directions above and no others.")
    if run.evaluation is None:
        lines.append("It has not been scored.")
    else:
        scored = set(run.evaluation.directions)
        left = [pair for pair in contents.pairs if pair not in scored]
        lines.append("The scores are automatic ones, on the split named above alone.")
        if left:
            lines.append(f"Not scored: {', '.join(left)}.")
        beaten = [
            name
            for name, entry in run.evaluation.directions.items()
            if entry.get("copy_bleu") is not None and entry["bleu"] <= entry["copy_bleu"]
        ]
        if beaten:
            lines.append(f"No better than the source text, by BLEU: {', '.join(beaten)}.")
        weakest = min(run.evaluation.directions.items(), key=lambda item: item[1]["bleu"])
        lines.append(f"The lowest BLEU is that of {weakest[0]}: {weakest[1]['bleu']:.2f}.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _use(contents: Any, state: Any, checkpoint: Path) -> str:
    from zcode_plugin.checkpoint import config
    from zcode_plugin.checkpoint.vocabulary import languages_of
    from zcode_plugin.evaluation.generation import task_arguments

    if not contents.pairs:
        return ""
    try:
        task = task_arguments(config.section(state, "task"), languages_of(state))
    except UserError:  # of a task that zcode evaluate does not know
        return ""
    src, _, tgt = contents.pairs[0].partition("-")
    plugin = "--user-dir zcode_plugin "
    command = (
        f"fairseq-interactive DATA {plugin}{' '.join(task)} \\\n"
        f"  -s {src} -t {tgt} --path {checkpoint.name} --beam 5 \\\n"
        "  --bpe sentencepiece --sentencepiece-model DATA/sentencepiece.model "
        "--remove-bpe sentencepiece"
    )
    return (
        "## How to use\n\nWith fairseq 0.12.2 and zcode_plugin; DATA is the folder with the "
        f"dictionaries and the SentencePiece model of training.\n\n```\n{command}\n```"
    )


def _facts(facts: dict[str, Any]) -> str:
    rows = [(name, value) for name, value in facts.items() if value not in (None, "")]
    return "\n".join(f"- {name}: {value}" for name, value in rows)


def _markdown(table: Table) -> str:
    lines = [_row(table.header), _row(["---", *["---:"] * (len(table.header) - 1)])]
    return "\n".join([*lines, *map(_row, table.rows)])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
