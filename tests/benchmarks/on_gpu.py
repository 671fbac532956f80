"""Fitting on a GPU beside transformers' Trainer, as it comes, compiled, and with CUDA graphs; and the rate of products.

Backbones have the published sizes and random weights, on which no time depends.
"""

import csv
import random
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import lightning
import torch
import transformers
from lightning.pytorch.callbacks import Callback

from lit_nlp import (
    LanguageModelingDataModule,
    LanguageModelingModule,
    SentimentDataModule,
    SentimentModule,
    TranslationDataModule,
    TranslationModule,
)
from lit_nlp.data.base import TextDataModule
from lit_nlp.modules.base import TransformerModule
from lit_nlp.tokenization import IGNORED
from tests.benchmarks.fitting import TUNED
from tests.benchmarks.harness import Clock, Line, Missing, Setting, rates, threads, trainer
from tests.benchmarks.limits import multiplied, products

BERT_BASE = "scratch:{model_type: bert, vocab_size: 30522}"
T5_SMALL = "scratch:{model_type: t5, vocab_size: 32128}"
SMOLLM2 = (
    "scratch:{model_type: llama, vocab_size: 49152, hidden_size: 576, intermediate_size: 1536, num_hidden_layers: 30,"
    " num_attention_heads: 9, num_key_value_heads: 3, head_dim: 64, tie_word_embeddings: true,"
    " max_position_embeddings: 2048}"
)
# Steps before the clock starts, by when all but rare shapes are compiled for and recorded, and steps that are timed.
_WARM, _TIMED = 100, 150
_ROWS = 32
# What widths of Trainer's batches are multiples of, where texts are long: cuDNN plans attention anew for each.
_WIDTHS = 32
# Trainer at its best: batches are made beside the GPU's work, and nothing waits for it.
_BEST: dict[str, Any] = TUNED | {"dataloader_num_workers": 4, "logging_nan_inf_filter": False, "logging_steps": 50}


def gpu_bert_128(setting: Setting) -> list[Line]:
    """BERT-base on texts of up to 128 tokens."""
    return _bert(setting, 128)


def gpu_bert_512(setting: Setting) -> list[Line]:
    """BERT-base on texts of up to 512 tokens."""
    return _bert(setting, 512)


def gpu_t5(setting: Setting) -> list[Line]:
    """T5-small on Multi30k: a budget of tokens beside as many rows."""
    _needs_gpu()
    pairs = [setting.file("multi30k_en_de", f"train.{side}").read_text().splitlines() for side in ("en", "de")]
    with tempfile.TemporaryDirectory() as folder:
        for side, lines in zip(("en", "de"), pairs, strict=True):
            Path(folder, f"train.{side}").write_text("".join(f"{line}\n" for line in lines))
        data = TranslationDataModule(
            T5_SMALL, train=f"{folder}/train.{{en,de}}", max_length=128, max_tokens=4096, val_fraction=0.01
        )
        _set_up(data)
        table = data.tables["train"]
        columns = {"input_ids": table["source_ids"][:], "labels": table["target_ids"][:]}
        rows = round(data.max_tokens / (data.lengths(table).sum() / len(table)))
        return _lines(
            "T5-small, Multi30k",
            data,
            partial(TranslationModule, data.backbone),
            columns,
            rows,
            lambda module: transformers.DataCollatorForSeq2Seq(module.tokenizer, module.model, pad_to_multiple_of=8),
            setting.turns,
        )


def gpu_smollm2(setting: Setting) -> list[Line]:
    """A decoder of SmolLM2-135M's size on news: packed into blocks, beside padded rows."""
    _needs_gpu()
    texts = _news(setting)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "train.txt").write_text("".join(f"{text}\n" for text in texts))
        data = LanguageModelingDataModule(
            SMOLLM2, objective="causal", train=f"{folder}/train.txt", val_fraction=0.01, max_length=512, batch_size=8
        )
        _set_up(data)
        columns = {"input_ids": data.tokenizer(texts, truncation=True, max_length=512)["input_ids"]}
        return _lines(
            "SmolLM2-135M, AG News",
            data,
            partial(LanguageModelingModule, data.backbone, objective="causal"),
            columns,
            round(8 * 512 / (sum(map(len, columns["input_ids"])) / len(texts))),
            lambda module: transformers.DataCollatorForLanguageModeling(
                module.tokenizer, mlm=False, pad_to_multiple_of=8
            ),
            setting.turns,
        )


def _bert(setting: Setting, max_length: int) -> list[Line]:
    _needs_gpu()
    news, draw = _news(setting), random.Random(0)
    most = max_length // 32
    # More than are read: one row in a hundred validates, and a last batch of fewer rows would be compiled for anew.
    texts = [
        " ".join(news[(i + further) % len(news)] for further in range(draw.randint(1, most)))
        for i in range(_ROWS * (_WARM + _TIMED + 10))
    ]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "train.tsv").write_text("".join(f"{text}\t{i % 2}\n" for i, text in enumerate(texts)))
        data = SentimentDataModule(
            BERT_BASE,
            train=f"{folder}/train.tsv",
            val_fraction=0.01,
            column_names=["text", "label"],
            batch_size=_ROWS,
            max_length=max_length,
        )
        _set_up(data)
        table = data.tables["train"]
        columns = {name: list(chain.from_iterable(table[name][:])) for name in ("input_ids", "token_type_ids")} | {
            "labels": table["label"][:]
        }
        return _lines(
            f"BERT-base at {max_length}",
            data,
            partial(SentimentModule, data.backbone),
            columns,
            _ROWS,
            lambda module: transformers.DataCollatorWithPadding(module.tokenizer, pad_to_multiple_of=_WIDTHS),
            setting.turns,
        )


def _lines(
    what: str,
    data: TextDataModule,
    module: Callable[..., TransformerModule],
    columns: dict[str, list[Any]],
    rows: int,
    collator: Callable[[TransformerModule], Any],
    turns: int,
) -> list[Line]:
    table, told = datasets.Dataset.from_dict(columns), dict[str, str]()

    def ours(clock: Clock, compiled: bool) -> None:
        fitted = _new(module, compile=compiled)
        timed = _Timed(clock, fitted)
        fits = trainer(
            max_steps=_WARM + _TIMED, gradient_clip_val=1.0, limit_val_batches=0, callbacks=[_OurSteps(timed)]
        )
        fits.fit(fitted, data)
        told["at most"] = _most_memory()

    def trainers(clock: Clock, **options: Any) -> None:
        fitted = _new(module)
        with tempfile.TemporaryDirectory() as output:
            arguments = transformers.TrainingArguments(
                output,
                max_steps=_WARM + _TIMED,
                per_device_train_batch_size=rows,
                max_grad_norm=1.0,
                warmup_steps=0.1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                **_BEST,
                **options,
            )
            fits = _TheirSteps(fitted.model, arguments, collator(fitted), table)
            fits.remove_callback(transformers.PrinterCallback)  # which would print into the table
            fits.timed = _Timed(clock, fitted)
            fits.train()
            fits.timed.end()
            told["Trainer at most"] = _most_memory()

    return rates(
        f"fit, {what}, {threads()}",
        partial(ours, compiled=False),
        {
            "Trainer, bf16, length groups, fused AdamW": (1.5, trainers),
            "the same, compiled": (1.5, partial(trainers, torch_compile=True)),
            "the same, compiled, with CUDA graphs": (1.5, partial(trainers, torch_compile_mode="reduce-overhead")),
            "ours, compiled": (1.0, partial(ours, compiled=True)),
            "matrix products in bf16": (0.45, products),
        },
        unit="useful GFLOP",
        turns=turns,
        also=told,
    )


class _Timed:
    """Runs the clock behind the first steps, and counts the others' work: 6 operations a parameter and real token.

    An encoder-decoder's parameters count by half for each token of either side.
    """

    def __init__(self, clock: Clock, module: TransformerModule) -> None:
        self.clock, self.running, self.steps = clock, ExitStack(), 0
        self.tokens: list[torch.Tensor] = []
        self.parameters, self.halved = multiplied(module.model), module.model.config.is_encoder_decoder

    def step(self, batch: Mapping[str, torch.Tensor]) -> None:
        """Count a batch, which lies on the GPU, without waiting for it."""
        self.steps += 1
        if self.steps == _WARM + 1:
            self.running.enter_context(self.clock.running())
        if self.steps > _WARM:
            real = batch["attention_mask"] if "attention_mask" in batch else batch["labels"] != IGNORED
            self.tokens.append(real.sum())
            if self.halved:
                self.tokens.append((batch["labels"] != IGNORED).sum())

    def end(self) -> None:
        """Stop the clock."""
        self.running.close()
        tokens = int(torch.stack(self.tokens).sum())
        self.clock.done = 6 * self.parameters * tokens / (1 + self.halved) / 1e9


class _OurSteps(Callback):
    def __init__(self, timed: _Timed) -> None:
        self.timed = timed

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.timed.step(batch)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self.timed.end()


class _TheirSteps(transformers.Trainer):
    timed: _Timed

    def training_step(self, model: Any, inputs: Any, *args: Any) -> Any:
        batch = self._prepare_inputs(inputs)
        self.timed.step(batch)
        return super().training_step(model, batch, *args)


def _new(module: Callable[..., TransformerModule], **arguments: Any) -> TransformerModule:
    lightning.seed_everything(0, verbose=False)
    torch._dynamo.reset()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return module(**arguments)


def _most_memory() -> str:
    return f"{torch.cuda.max_memory_reserved() / 2**30:.1f} GiB"


def _set_up(data: TextDataModule) -> None:
    data.prepare_data()
    data.setup("fit")


def _news(setting: Setting) -> list[str]:
    with setting.file("ag_news", "train.csv").open(newline="") as file:
        return [" ".join(row["description"].replace('"', "").split()) for row in csv.DictReader(file)]


def _needs_gpu() -> None:
    if not torch.cuda.is_available():
        raise Missing("there is no GPU")
