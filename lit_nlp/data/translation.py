"""Translation: sentences in one language, and what they say in another."""

from collections.abc import Mapping
from typing import Any

import datasets
import pyarrow as pa
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lit_nlp.data.base import Split
from lit_nlp.data.sources import Columns, Row
from lit_nlp.data.text_to_text import TextToTextDataModule
from lit_nlp.errors import ConfigError, DataError, require


class TranslationDataModule(TextToTextDataModule):
    """Rows of `source` and `target`: of two columns, of two files of aligned lines (``train.{en,de}``), or nested.

    Args:
        max_length_ratio: A pair is suspect where one text has more characters than this many times the other's,
            or none. Suspect pairs are counted in a warning.
        drop_suspect: Train without suspect pairs.
        kwargs: The arguments of `TextToTextDataModule`; with a `translation` object in each row, `source_lang` and
            `target_lang` are also the keys in it.

    Raises:
        ConfigError: A ratio that every pair exceeds, or a language that the backbone doesn't know.
    """

    canonical_columns = ("source", "target")

    def __init__(
        self, backbone: str, *, max_length_ratio: float = 9.0, drop_suspect: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(backbone, **kwargs)
        require(max_length_ratio > 1, f"max_length_ratio must be above 1, got {max_length_ratio}", "data")
        differ = self.source_lang is None or self.source_lang != self.target_lang
        require(differ, f"source_lang and target_lang are both {self.source_lang}", "data")
        self.max_length_ratio, self.drop_suspect = max_length_ratio, drop_suspect

    def columns_of(self, split: Split) -> Columns:
        """Read the source, and outside `predict` the target."""
        text = ("source",) if split == "predict" else ("source", "target")
        mapping = self._found(split) | self.columns
        # What is written of lines is lines again, blank ones among them.
        blank = split != "predict" or self.reads_lines(split)
        return Columns(text=text, mapping=mapping, names=self.column_names, blank=blank)

    def source_of(self, row: Row) -> str:
        """Return the text to translate."""
        return str(row.values["source"])

    def target_of(self, row: Row) -> str:
        """Return its translation."""
        return str(row.values["target"])

    @property
    def schema(self) -> pa.Schema:
        """Add whether a pair is suspect."""
        return super().schema.append(pa.field("suspect", pa.bool_()))

    def options(self, split: Split) -> dict[str, Any]:
        """Add what makes a pair suspect."""
        return super().options(split) | {"max_length_ratio": self.max_length_ratio}

    def tokenise(self, rows: list[Row], split: Split) -> Mapping[str, list[Any]]:
        """Tokenise both sides, and mark pairs that can hardly be a pair."""
        columns = super().tokenise(rows, split)
        pairs = zip(columns["source"], columns["target"], strict=True)
        return {**columns, "suspect": [split != "predict" and self._is_suspect(*pair) for pair in pairs]}

    def _is_suspect(self, source: str, target: str) -> bool:
        shorter, longer = sorted((len(source.strip()), len(target.strip())))
        return longer > self.max_length_ratio * shorter or longer == 0

    def _open(self, split: Split) -> datasets.Dataset:
        table = super()._open(split)
        suspect = [row for row, flag in enumerate(table["suspect"][:]) if flag]
        if not suspect:
            return table
        drops = split == "train" and self.drop_suspect
        if drops and len(suspect) == len(table):
            problem = f"all {len(table)} pairs have an empty text or one that is far longer than the other"
            raise DataError(problem, where="data.train", mend="check columns and languages, or raise max_length_ratio")
        rank_zero_warn(
            f"{split}: {len(suspect)} of {len(table)} pairs have an empty text, or one more than"
            f" {self.max_length_ratio:g} times as long as the other, the first in {table[suspect[0]]['where']}; "
            + ("they are left out." if drops else "data.drop_suspect trains without them.")
        )
        return self.kept(table, split)

    def kept(self, table: datasets.Dataset, split: Split) -> datasets.Dataset:
        """Return the rows without suspect pairs, where they are to be left out of training."""
        if split != "train" or not self.drop_suspect:
            return table
        return table.select([row for row, suspect in enumerate(table["suspect"][:]) if not suspect])

    def _found(self, split: Split) -> dict[str, str | list[str]]:
        """Return where the texts stand in lines, and in the hub's rows of a `translation` object."""
        source = self.sources[split]
        if source is None or {"source", "target"} <= self.columns.keys():
            return {}
        if self.source_lang is not None and self.target_lang is not None:
            self._check_braces(source, split)
        if self.reads_lines(split):
            return {"source": "text"}
        translation = self.first_record(split).get("translation")
        if not isinstance(translation, dict):
            return {}
        if self.source_lang is None or self.target_lang is None:
            problem = f"the rows hold translations under {', '.join(translation)}"
            raise ConfigError(
                problem, where=f"data.{split}", mend="name two with data.source_lang and data.target_lang"
            )
        found: dict[str, str | list[str]] = {}
        for side, language in ("source", self.source_lang), ("target", self.target_lang):
            keys = [key for key in (language, language.partition("_")[0]) if key in translation]  # en_XX is en here
            if not keys:
                problem = f"the rows hold translations under {', '.join(translation)}, but none under {language}"
                raise ConfigError(problem, where=f"data.{side}_lang", mend="name one of these")
            found[side] = f"translation.{keys[0]}"
        return found

    def _check_braces(self, source: str | list[str], split: Split) -> None:
        source_key, target_key = (str(lang).partition("_")[0] for lang in (self.source_lang, self.target_lang))
        if any(f"{{{target_key},{source_key}}}" in name for name in ([source] if isinstance(source, str) else source)):
            problem = f"the braces name {target_key} first, but the source's language is {self.source_lang}"
            raise ConfigError(problem, where=f"data.{split}", mend=f"write {{{source_key},{target_key}}}")
