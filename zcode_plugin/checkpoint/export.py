"""Writes a checkpoint as safetensors, or as a folder that Hugging Face's transformers loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zcode_plugin.checkpoint import config
from zcode_plugin.checkpoint.export_options import (
    REMEDY,
    all_options,
    model_options,
    plain_options,
    weight_names,
)
from zcode_plugin.checkpoint.folders import (
    CONFIG,
    GENERATION,
    MODULES,
    SENTENCEPIECE,
    SYMBOLS,
    TOKENIZER,
    WEIGHTS,
)
from zcode_plugin.checkpoint.gather import Gathered
from zcode_plugin.checkpoint.names import EMBEDDINGS, HEADS, UNSET_BUFFER
from zcode_plugin.checkpoint.tensors import count_elements, identity, with_own_storage
from zcode_plugin.checkpoint.tokenisation import Vocabulary
from zcode_plugin.checkpoint.vocabulary import languages_of
from zcode_plugin.errors import UserError

MODEL_CLASS, CONFIG_CLASS, TOKENIZER_CLASS = (
    "modeling_zcode_moe.ZcodeMoeForConditionalGeneration",
    "configuration_zcode_moe.ZcodeMoeConfig",
    "tokenization_zcode_moe.ZcodeMoeTokenizer",
)
# What fairseq-generate does without flags: 200 tokens and the end.
_BEAM, _LONGEST = 5, 201


@dataclass(frozen=True)
class Written:
    """What is in the weights' file.

    Attributes:
        parameters: elements of all weights.
        tied: names that share a tensor with another, by name; stored once, under the other's.
        left_out: names of weights that are not in the file.
    """

    parameters: int
    tied: dict[str, str]
    left_out: list[str]


def write_safetensors(gathered: Gathered, symbols: list[str] | None, folder: Path) -> Written:
    """Write weights under the checkpoint's names, and a plain `config.json`.

    Args:
        gathered: the whole checkpoint.
        symbols: by number, for a file of one symbol a line; None for no such file.
        folder: empty.
    """
    model = _weights(gathered)
    tied = _tied(model)
    stored = {name: value for name, value in model.items() if name not in tied}
    _save(stored, folder)
    state = gathered.state
    task = config.section(state, "task")
    _write_json(
        folder / CONFIG,
        {
            "model": plain_options(all_options(state)),
            "experts": gathered.experts,
            "tied": tied,
            "updates": config.num_updates(state),
            "langs": languages_of(state) or None,
            "encoder_langtok": config.get(task, "encoder_langtok"),
            "decoder_langtok": bool(config.get(task, "decoder_langtok", False)),
        },
    )
    if symbols is not None:
        _write_symbols(symbols, folder)
    return Written(count_elements(stored.values()), tied, [])


def huggingface_options(gathered: Gathered) -> dict[str, Any]:
    """Arguments of the exported model's configuration.

    Raises:
        UserError: naming an option that the exported model does not have.
    """
    return model_options(all_options(gathered.state), gathered.experts, _weights(gathered))


def write_huggingface(
    gathered: Gathered,
    options: Mapping[str, Any],
    vocabulary: Vocabulary,
    sentencepiece: Path | None,
    folder: Path,
) -> Written:
    """Write what `AutoModelForSeq2SeqLM` and `AutoTokenizer` of transformers load.

    Args:
        gathered: the whole checkpoint.
        options: as `huggingface_options` gives them.
        vocabulary: its symbols and languages.
        sentencepiece: the model that cuts text into pieces; None where text has spaces between.
        folder: empty.

    Raises:
        UserError: naming a weight that the exported model does not have, or the checkpoint.
    """
    stored, written = _fit(_weights(gathered), options)
    _save(stored, folder)
    modules = Path(__file__).with_name("huggingface")
    for name in MODULES:
        shutil.copyfile(modules / name, folder / name)
    _write_json(folder / CONFIG, _config(options, stored[EMBEDDINGS].dtype))
    _write_json(folder / GENERATION, _generation_config(options))
    _write_json(folder / TOKENIZER, _tokenizer_config(options, vocabulary))
    _write_symbols(vocabulary.symbols, folder)
    if sentencepiece is not None:
        shutil.copyfile(sentencepiece, folder / SENTENCEPIECE)
    return written


def _fit(
    model: Mapping[str, torch.Tensor], options: Mapping[str, Any]
) -> tuple[dict[str, torch.Tensor], Written]:
    """The weights that the exported model has, and what became of the others."""
    wanted = weight_names(options)
    tied = {}
    if options["share_decoder_input_output_embed"]:
        table = EMBEDDINGS if options["share_all_embeddings"] else "decoder.embed_tokens.weight"
        tied = {
            name: table
            for name in ("decoder.embed_tokens.weight", "decoder.output_projection.weight")
            if name in model and name != table
        }
    left_out = [name for name in model if name.startswith(HEADS)]
    versions = {"encoder.version", "decoder.version"}  # fairseq's, of the format
    for name in model:
        if name not in wanted and not {name} & {*tied, *left_out, *versions}:
            raise UserError(f"the weight {name} has no place in the exported model: {REMEDY}")
    for name in sorted(wanted):
        if name not in model:
            raise UserError(f"the checkpoint has no {name}, which its options ask for")
    for name, table in tied.items():
        if not torch.equal(model[name], model[table]):
            raise UserError(f"{name} differs from {table}, though they are shared: {REMEDY}")
    stored = {name: model[name] for name in sorted(wanted)}
    return stored, Written(count_elements(stored.values()), tied, left_out)


def _weights(gathered: Gathered) -> dict[str, torch.Tensor]:
    """The checkpoint's weights without the number that is never set."""
    return {
        name: value
        for name, value in gathered.state["model"].items()
        if not name.endswith(UNSET_BUFFER)
    }


def _tied(model: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Names of tensors that another name before them has, and that name."""
    first: dict[tuple[Any, ...], str] = {}
    tied = {}
    for name, value in model.items():
        other = first.setdefault(identity(value), name)
        if other != name:
            tied[name] = other
    return tied


def _save(weights: Mapping[str, torch.Tensor], folder: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # Views of one storage are what safetensors refuses; contiguous ones stay mapped files.
    tensors = {name: with_own_storage(value).contiguous() for name, value in weights.items()}
    try:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    except SafetensorError as error:  # a full disk
        raise UserError(f"{WEIGHTS} cannot be written: {str(error).splitlines()[0]}") from error


def _config(options: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {
        "architectures": [MODEL_CLASS.rpartition(".")[2]],
        "auto_map": {"AutoConfig": CONFIG_CLASS, "AutoModelForSeq2SeqLM": MODEL_CLASS},
        "model_type": "zcode_moe",
        "dtype": str(dtype).removeprefix("torch."),
        **options,
    }


def _generation_config(options: Mapping[str, Any]) -> dict[str, Any]:
    """The search of fairseq-generate."""
    return {
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "num_beams": _BEAM,
        "early_stopping": True,
        "length_penalty": 1.0,
        "min_length": 2,
        "max_new_tokens": min(_LONGEST, options["max_target_positions"]),
        "suppress_tokens": [1],
    }


def _tokenizer_config(options: Mapping[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "tokenizer_class": TOKENIZER_CLASS.rpartition(".")[2],
        "auto_map": {"AutoTokenizer": [TOKENIZER_CLASS, None]},
        "langs": vocabulary.langs,
        "encoder_langtok": vocabulary.encoder_langtok,
        "decoder_langtok": vocabulary.decoder_langtok,
        "objective_symbol": vocabulary.objective_token,
        "model_max_length": options["max_source_positions"],
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")


def _write_symbols(symbols: Iterable[str], folder: Path) -> None:
    text = "".join(f"{symbol}\n" for symbol in symbols)
    (folder / SYMBOLS).write_bytes(text.encode("utf-8"))
