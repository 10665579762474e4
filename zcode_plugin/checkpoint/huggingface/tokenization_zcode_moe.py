"""SentencePiece, the numbers of fairseq's dictionary, and language tokens."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizer

_SYMBOLS, _SENTENCEPIECE = "symbols.txt", "sentencepiece.model"
_SPACE = "\u2581"


class ZcodeMoeTokenizer(PreTrainedTokenizer):
    """Gives text the ids that the model was trained with: [tokens] pieces `</s>`.

    Set `src_lang` and `tgt_lang`, or give them with a call, after which they stay:
    `tokenizer(text, src_lang="de", tgt_lang="en")`. What looks like a special symbol in a text is
    text.

    Args:
        symbols_file: one symbol a line; the number of the line, from 0, is its id.
        sentencepiece_file: the model that cuts text into pieces; text is cut at spaces without.
        langs: languages, of which each has a token `__de__`.
        encoder_langtok: the language whose token goes before a source: `src`, `tgt` or None.
        decoder_langtok: whether the token of the target's language goes before a target.
        objective_symbol: what goes before all else of a source, if anything does.
        src_lang, tgt_lang: languages to begin with.
    """

    vocab_files_names = {  # noqa: RUF012
        "symbols_file": _SYMBOLS,
        "sentencepiece_file": _SENTENCEPIECE,
    }
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(
        self,
        symbols_file: str,
        sentencepiece_file: str | None = None,
        langs: Sequence[str] = (),
        encoder_langtok: str | None = None,
        decoder_langtok: bool = False,
        objective_symbol: str | None = None,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        **kwargs: Any,
    ):
        self.symbols_file, self.sentencepiece_file = symbols_file, sentencepiece_file
        self.symbols = Path(symbols_file).read_text(encoding="utf-8").removesuffix("\n").split("\n")
        self.ids = {symbol: index for index, symbol in enumerate(self.symbols)}
        self.pieces = _load_sentencepiece(sentencepiece_file)
        self.langs = list(langs)
        self.encoder_langtok, self.decoder_langtok = encoder_langtok, decoder_langtok
        self.objective_symbol = objective_symbol
        self.src_lang, self.tgt_lang = src_lang, tgt_lang
        self._is_target = False
        names = {f"{kind}_token": self.symbols[index] for index, kind in enumerate(_KINDS)}
        kwargs = {**kwargs, **names, "clean_up_tokenization_spaces": False}
        super().__init__(
            langs=self.langs,
            encoder_langtok=encoder_langtok,
            decoder_langtok=decoder_langtok,
            objective_symbol=objective_symbol,
            src_lang=src_lang,
            tgt_lang=tgt_lang,
            **kwargs,
        )

    @property
    def vocab_size(self) -> int:
        """V."""
        return len(self.symbols)

    def get_vocab(self) -> dict[str, int]:
        """Ids by symbol."""
        return dict(self.ids)

    def get_lang_id(self, lang: str) -> int:
        """The id of a language's token.

        Raises:
            ValueError: the model does not know the language.
        """
        if lang not in self.langs:
            raise ValueError(f"language {lang!r} is none of {', '.join(self.langs)}")
        return self.ids[f"__{lang}__"]

    @property
    def forced_bos_token_id(self) -> int | None:
        """What `generate` needs under this name: the token before a target, if there is one."""
        return self._lang_id("tgt") if self.decoder_langtok else None

    def __call__(
        self, *args: Any, src_lang: str | None = None, tgt_lang: str | None = None, **kwargs: Any
    ) -> Any:
        """See `PreTrainedTokenizer.__call__`; languages that are given stay."""
        self.src_lang, self.tgt_lang = src_lang or self.src_lang, tgt_lang or self.tgt_lang
        return super().__call__(*args, **kwargs)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """[objective and language token] ids `</s>`; a second sentence has no such tokens."""
        side = self.encoder_langtok
        if self._is_target:
            side = "tgt" if self.decoder_langtok else None
        before = [] if side is None else [self._lang_id(side)]
        if self.objective_symbol is not None and not self._is_target:
            before.insert(0, self.ids[self.objective_symbol])
        end = [self.eos_token_id]
        after = [] if token_ids_1 is None else [*token_ids_1, *end]
        return [*before, *token_ids_0, *end, *after]

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """Pieces of a text."""
        if self.pieces is None:
            return text.split()
        pieces: list[str] = self.pieces.encode(text, out_type=str)
        return pieces

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Symbols of ids; `skip_special_tokens` leaves out all special ones but `<unk>`."""
        if isinstance(ids, int):
            return self._convert_id_to_token(ids)
        special = self._special_ids() if skip_special_tokens else set()
        return [self._convert_id_to_token(int(i)) for i in ids if int(i) not in special]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of symbols."""
        if self.pieces is None:
            return " ".join(tokens)
        return "".join(tokens).replace(_SPACE, " ").strip()

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Copy the symbols and the SentencePiece model."""
        saved = []
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        for source, name in (
            (self.symbols_file, _SYMBOLS),
            (self.sentencepiece_file, _SENTENCEPIECE),
        ):
            target = Path(save_directory) / f"{prefix}{name}"
            if source and Path(source).resolve() != target.resolve():
                shutil.copyfile(source, target)
            if source:
                saved.append(str(target))
        return tuple(saved)

    def _convert_token_to_id(self, token: str) -> int:
        return self.ids.get(token, _KINDS.index("unk"))

    def _convert_id_to_token(self, index: int) -> str:
        return self.symbols[index]

    def _special_ids(self) -> set[int]:
        tokens = [f"__{lang}__" for lang in self.langs] + ["<mask>"]
        tokens += [symbol for symbol in self.symbols if symbol.startswith("<objective_")]
        return {0, 1, 2, *(self.ids[token] for token in tokens if token in self.ids)}

    def _lang_id(self, side: str) -> int:
        lang = self.src_lang if side == "src" else self.tgt_lang
        if lang is None:
            raise ValueError(
                f"{side}_lang is not set, whose token the model needs: tokenizer(text, "
                f'{side}_lang="{(self.langs or ["de"])[0]}")'
            )
        return self.get_lang_id(lang)

    def _switch_to_target_mode(self) -> None:
        self._is_target = True

    def _switch_to_input_mode(self) -> None:
        self._is_target = False


# The first symbols of every dictionary of fairseq.
_KINDS = ("bos", "pad", "eos", "unk")


def _load_sentencepiece(path: str | None) -> Any:
    if path is None:
        return None
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=path)
