"""What a plugin registers, in a configuration of `fairseq-hydra-train`."""

from __future__ import annotations

import argparse
import difflib
import functools
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from zcode_mends.mend import Mend, always, refuse

# Sections of other commands, whose options fairseq-train does not know.
_ELSEWHERE = {"common_eval", "eval_lm", "generation", "interactive"}


class _Parser(argparse.ArgumentParser):
    """Stock's parser of a model's flags; a mistake is one line that names the YAML's section."""

    def error(self, message: str) -> NoReturn:
        refuse(f"model: {message.removeprefix('argument ')}")


def _near(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _check_keys(section: str, given: Iterable[str], known: Iterable[str]) -> None:
    known = [name for name in known if not name.startswith("_")]
    for key in given:
        if key not in known and not key.startswith("_"):
            refuse(f"there is no option {section}.{key}{_near(key, known)}")


def _name(options: Any) -> str | None:
    """What a section chooses; `get` of omegaconf 2.0 takes a missing key for a mistake."""
    return options._name if "_name" in options else None


def _check_known_sections(cfg: Any) -> None:
    """Refuse keys that `+` adds on the command line, which hydra lets through."""
    from dataclasses import is_dataclass

    from fairseq.dataclass.configs import FairseqConfig

    fields = FairseqConfig.__dataclass_fields__
    for section in cfg:
        if section not in fields:
            refuse(f"there is no section {section}{_near(section, fields)}")
        if is_dataclass(fields[section].type):
            _check_keys(section, cfg[section], fields[section].type.__dataclass_fields__)


def _registries() -> dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Sections whose options depend on a name: what is registered, and what has a dataclass."""
    from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_DATACLASS_REGISTRY, MODEL_REGISTRY
    from fairseq.registry import REGISTRIES
    from fairseq.tasks import TASK_DATACLASS_REGISTRY, TASK_REGISTRY

    found = {name: (r["registry"], r["dataclass_registry"]) for name, r in REGISTRIES.items()}
    return {
        "task": (TASK_REGISTRY, TASK_DATACLASS_REGISTRY),
        "model": ({**MODEL_REGISTRY, **ARCH_MODEL_REGISTRY}, MODEL_DATACLASS_REGISTRY),
        **found,
    }


def _check_chosen_sections(cfg: Any) -> None:
    """Refuse names and keys that nobody registered, which stock would meet in a traceback."""
    from omegaconf import DictConfig

    for section, (registered, dataclasses) in _registries().items():
        options = cfg.get(section)
        name = _name(options) if isinstance(options, DictConfig) else None
        if name is None:
            continue
        if name not in registered:
            where = "" if cfg.common.user_dir else "; a plugin's is known with common.user_dir"
            refuse(f"there is no {section} {name}{_near(name, registered) or where}")
        if name in dataclasses:
            _check_keys(section, options, dataclasses[name].__dataclass_fields__)


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`encoder: {layers: 6}`, as stock's Transformer groups its options, is `encoder_layers: 6`."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        nested = isinstance(value, Mapping)
        flat.update(_flat(value, f"{prefix}{name}_") if nested else {f"{prefix}{name}": value})
    return flat


def _flags(options: Mapping[str, Any], parser: argparse.ArgumentParser) -> list[str]:
    """What a user of `fairseq-train` would have typed."""
    actions = {action.dest: action for action in parser._actions}
    _check_keys("model", options, actions)
    flags = []
    for name, value in options.items():
        if value is None or name.startswith("_"):
            continue
        action = actions[name]
        if action.nargs == 0:
            flags += [action.option_strings[-1]] * (bool(value) == action.const)
        else:
            flags.append(f"{action.option_strings[-1]}={value}")
    return flags


def _plain(cfg: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)


def _all_options(sections: Mapping[str, Any]) -> argparse.Namespace:
    """What `fairseq-train` has of the same run before it knows the model."""
    args = argparse.Namespace()
    for section in sections.values():
        vars(args).update({key: value for key, value in section.items() if key != "_name"})
    for name in set(_registries()) - {"model"}:
        vars(args)[name] = sections.get(name, {}).get("_name")
    return args


def _set_legacy_model(cfg: Any) -> None:
    """Make the section `model` what `fairseq-train` makes of a model without a dataclass.

    That is a namespace of all options, the architecture's choices among them; like there, the
    architecture may set options of other sections.
    """
    from fairseq.dataclass.utils import _set_legacy_defaults, omegaconf_no_object_check
    from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY

    arch = cfg.model._name
    model = ARCH_MODEL_REGISTRY[arch]
    parser = _Parser(argument_default=argparse.SUPPRESS, allow_abbrev=False, add_help=False)
    model.add_args(parser)
    sections = {
        name: section
        for name, section in _plain(cfg).items()
        if isinstance(section, dict) and name not in {"model", *_ELSEWHERE}
    }
    args = _all_options(sections)
    args.arch = arch
    parser.parse_args(_flags(_flat(_plain(cfg.model)), parser), args)
    ARCH_CONFIG_REGISTRY[arch](args)
    _set_legacy_defaults(args, model)
    args._name = arch
    for name, section in sections.items():
        for key, value in section.items():
            if key != "_name" and getattr(args, key) != value:
                cfg[name][key] = getattr(args, key)
    with omegaconf_no_object_check():
        cfg.model = args


def _completing(stock: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(stock)
    def add_defaults(cfg: Any) -> None:
        from fairseq import utils
        from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_DATACLASS_REGISTRY
        from omegaconf.errors import OmegaConfBaseException

        if cfg.common.user_dir and not _is_there(cfg.common.user_dir):
            refuse(f"common.user_dir {cfg.common.user_dir}: there is no such folder")
        utils.import_user_module(cfg.common)
        _check_known_sections(cfg)
        _check_chosen_sections(cfg)
        try:
            stock(cfg)
            arch = cfg.model and _name(cfg.model)
            if arch in ARCH_MODEL_REGISTRY and arch not in MODEL_DATACLASS_REGISTRY:
                _set_legacy_model(cfg)
        except OmegaConfBaseException as error:
            refuse(_one_line(error))

    return add_defaults


def _is_there(user_dir: str) -> bool:
    """Whether stock will find it: here, or among the packages that fairseq lies among."""
    import fairseq

    own = os.path.dirname(os.path.abspath(fairseq.__file__))
    places = (os.getcwd(), own, os.path.dirname(own))
    return any(os.path.isdir(os.path.join(place, user_dir)) for place in places)


def _one_line(error: Exception) -> str:
    """What is wrong with a configuration, of which hydra would print several lines."""
    from fairseq.dataclass.configs import FairseqConfig
    from omegaconf.errors import OmegaConfBaseException
    from yaml import MarkedYAMLError

    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    path = getattr(cause, "full_key", None) or ""
    if isinstance(cause, (AttributeError, KeyError)) and path:  # a key that a section does not have
        section, _, key = path.rpartition(".")
        known = getattr(FairseqConfig, "__dataclass_fields__", {})
        if section in known:
            known = getattr(known[section].type, "__dataclass_fields__", {})
        return f"there is no {'option' if section else 'section'} {path}{_near(key, known)}"
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: no valid YAML, {error.problem}"
    text = " ".join(line.strip() for line in str(cause).splitlines() if "_type=" not in line)
    return text.replace("full_key:", "in")


def _reports_in_one_line(stock: Callable[[], None]) -> Callable[[], None]:
    """Instead of hydra's report, which also keeps a rank's exception from `sys.excepthook`."""

    def run_and_report(function: Callable[[], Any]) -> Any:
        from hydra.errors import CompactHydraException
        from omegaconf.errors import OmegaConfBaseException
        from yaml import YAMLError

        try:
            return function()
        except (CompactHydraException, OmegaConfBaseException, YAMLError) as error:
            refuse(_one_line(error))

    @functools.wraps(stock)
    def cli_main() -> None:
        from hydra._internal import utils

        vars(utils)["run_and_report"] = run_and_report
        stock()

    return cli_main


def _mend(module: Any) -> None:
    module.add_defaults = _completing(module.add_defaults)
    module.cli_main = _reports_in_one_line(module.cli_main)


HYDRA_PLUGINS = Mend(
    name="hydra-plugins",
    reason=(
        "fairseq-hydra-train completes a configuration before it imports common.user_dir, and "
        "leaves a model without a dataclass its own keys alone, unchecked, until ranks and their "
        "files have names: with the mend a plugin's options, and its model, are what fairseq-train "
        "makes of the same flags, and a mistake in them is one line; hydra 1.0 failed while it "
        "reported one"
    ),
    is_needed=always,
    apply=_mend,
    after=("fairseq_cli.hydra_train",),
)
