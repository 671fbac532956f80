"""What translation and generative question answering share: a source text in, a target text out."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from lit_nlp.architecture import Architecture, architecture
from lit_nlp.data import sources
from lit_nlp.data.base import Split, TextDataModule, numbers
from lit_nlp.data.batching import Lengths
from lit_nlp.data.sources import Row
from lit_nlp.errors import require
from lit_nlp.generation import PairTokenizer, default_prompt
from lit_nlp.pretrained import load_config
from lit_nlp.tokenization import IGNORED, Text, pad

# A text that isn't in the training data may need a longer target than any that is.
_ROOM_TO_WRITE = 1.5


class TextToTextDataModule(TextDataModule):
    """Pairs of a source and a target text, for encoder-decoders, decoders, and encoders that become the former.

    A batch holds `input_ids` and `attention_mask` `[rows, sequence]` and `labels` `[rows, target]`, padded with -100.
    For a decoder the target stands behind the prompt, and `labels` `[rows, sequence]` are -100 over the prompt, so
    that the loss is on the target alone. Outside training, the texts ride along as `source` and `target`.

    Args:
        max_length: Tokens of a source; for a decoder of source and target together. None: what the backbone reads,
            at most 512.
        max_target_length: Tokens of a target. None: `max_length`, for a decoder half of it.
        prompt: The template around a source; ``{source}`` stands for it. None: the source alone, and for a
            decoder its chat template, or a line break behind the source.
        source_lang: The source's language as the backbone's tokenizer writes it: `en_XX` for mBART, `en` for M2M100.
        target_lang: The target's.
        kwargs: The arguments of `TextDataModule`.
    """

    task = "text_to_text"

    shared_with_module = ("prompt", "source_lang", "target_lang")

    def __init__(
        self,
        backbone: str,
        *,
        max_target_length: int | None = None,
        prompt: str | None = None,
        source_lang: str | None = None,
        target_lang: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, **kwargs)
        enough = max_target_length is None or max_target_length >= 2
        require(enough, f"max_target_length must be at least 2, got {max_target_length}", "data")
        self._max_target_length, self._prompt = max_target_length, prompt
        self.source_lang, self.target_lang = source_lang, target_lang
        self._first_records: dict[Split, dict[str, Any]] = {}

    @property
    def length_limits(self) -> str:
        """The arguments that say where a text is cut off."""
        return f"max_length={self.max_length} or max_target_length={self.pairs.max_target_length}"

    # What a task says

    def source_of(self, row: Row) -> str:
        """Return what a row asks for, without the template."""
        raise NotImplementedError

    def target_of(self, row: Row) -> str:
        """Return what is to be written."""
        raise NotImplementedError

    def learnt_from(self, row: Row) -> list[str]:
        """Return what is asked for, behind the prompt where one is given, and what is to be written."""
        asked = self.source_of(row)
        return [asked if self._prompt is None else self._prompt.replace("{source}", asked), self.target_of(row)]

    @property
    def languages(self) -> dict[str, str | None]:
        """The languages that a multilingual tokenizer writes down."""
        return {"source_lang": self.source_lang, "target_lang": self.target_lang}

    def kept(self, table: datasets.Dataset, split: Split) -> datasets.Dataset:
        """Return a split's rows without those that are to be left out."""
        return table

    # What they share

    def first_record(self, split: Split) -> dict[str, Any]:
        """Return the first record of a split's source under the file's own names; empty where there is none."""
        source = self.sources[split]
        if source is None:
            return {}
        if split not in self._first_records:
            self._first_records[split] = sources.first_record(source)
        return self._first_records[split]

    def reads_lines(self, split: Split) -> bool:
        """Whether a split is a file of lines to be read, each a source."""
        return split == "predict" and self.first_record(split).keys() == {"text"}

    @cached_property
    def architecture(self) -> Architecture:
        """What kind of transformer the backbone is."""
        return architecture(load_config(self.backbone))

    @cached_property
    def prompt(self) -> str:
        """The template around a source."""
        return default_prompt(self.architecture, self.tokenizer) if self._prompt is None else self._prompt

    @property
    def pairs(self) -> PairTokenizer:
        """What tokenises sources and targets."""
        return PairTokenizer(
            self.tokenizer,
            load_config(self.backbone),
            max_length=self.max_length,
            max_target_length=self._max_target_length,
            template=self.prompt,
            **self.languages,
        )

    @property
    def facts(self) -> dict[str, Any]:
        """What the module must know: how sources are framed, and how long targets get."""
        framed = {"max_target_length": self._max_target_length, "prompt": self.prompt, **self.languages}
        return super().facts | framed | {"max_new_tokens": self._max_new_tokens()}

    @property
    def schema(self) -> pa.Schema:
        """One row a pair."""
        # Targets may have a vocabulary of their own, which the tokenizer doesn't count.
        ids = pa.list_(pa.int32())
        texts = {"source": pa.string(), "target": pa.string(), "where": pa.string()}
        return pa.schema({"source_ids": ids, "target_ids": ids, "truncated": pa.bool_()} | texts)

    def options(self, split: Split) -> dict[str, Any]:
        """Add what frames sources and bounds targets."""
        pairs = self.pairs
        special = [self.architecture, pairs.start, pairs.first, pairs.end]
        ours = {"prompt": self.prompt, "target": self._max_target_length, "special": special}
        return super().options(split) | ours | self.languages

    def tokenise(self, rows: list[Row], split: Split) -> Mapping[str, list[Any]]:
        """Tokenise both sides."""
        pairs, texts = self.pairs, [self.source_of(row) for row in rows]
        read = pairs.sources(texts)
        columns: dict[str, list[Any]] = {
            "source_ids": read.ids,
            "source": texts,
            "where": [row.where for row in rows],
        }
        if split == "predict":
            nothing: list[Any] = [None] * len(rows)
            return columns | {"target_ids": nothing, "target": nothing, "truncated": read.truncated}
        written = [self.target_of(row) for row in rows]
        targets = pairs.targets(written)
        truncated = [any(pair) for pair in zip(read.truncated, targets.truncated, strict=True)]
        return columns | {"target_ids": targets.ids, "target": written, "truncated": truncated}

    def lengths(self, table: datasets.Dataset) -> Lengths:
        """Both sides; for a decoder, which reads them in one, their sum."""
        sides = np.stack([_sizes(table, name) for name in ("source_ids", "target_ids")], axis=1)
        return sides.sum(1, keepdims=True) if self.architecture == "decoder" else sides

    def batch_columns(self, split: Split) -> list[str]:
        """Let the texts ride along where they are measured or shown."""
        return ["source_ids", "target_ids"] + ([] if split == "train" else ["source", "target"])

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Pad pairs to a batch."""
        read, targets = ([row[name] for row in rows] for name in ("source_ids", "target_ids"))
        known = targets[0] is not None
        if known and self.architecture == "decoder":
            prompts, read = read, [source + target for source, target in zip(read, targets, strict=True)]
            targets = [[IGNORED] * len(prompt) + target for prompt, target in zip(prompts, targets, strict=True)]
        batch: dict[str, Any] = dict(pad([{"input_ids": ids} for ids in read], int(self.tokenizer.pad_token_id)))
        batch["row"] = torch.tensor([row["row"] for row in rows])
        if known:
            batch["labels"] = pad([{"input_ids": ids} for ids in targets], IGNORED)["input_ids"]
        texts = [name for name in ("source", "target") if rows[0].get(name) is not None]
        return batch | {name: [row[name] for row in rows] for name in texts}

    def texts_of(self, rows: dict[str, list[Any]]) -> list[Text]:
        """Return the sources, as they stand in the template."""
        return list(rows["source"])

    def given_of(self, rows: dict[str, list[Any]]) -> list[Any] | None:
        """Return the targets; None where they aren't known."""
        return None if None in rows["target"] else list(rows["target"])

    def _max_new_tokens(self) -> int | None:
        """Return half as many tokens again as the longest training target has; None without training data."""
        if self.sources["train"] is None:
            return None
        longest = int(_sizes(self.kept(self._table("train"), "train"), "target_ids").max(initial=1))
        return min(round(_ROOM_TO_WRITE * longest) + 1, self.pairs.max_target_length)


def _sizes(table: datasets.Dataset, name: str) -> np.ndarray:
    """Return the number of tokens in each row of a column; 0 where there are none."""
    return numbers(table, name, lambda rows: pc.fill_null(pc.list_value_length(rows), 0))
