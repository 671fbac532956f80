"""What a run leaves beside its checkpoints: metrics, wrong predictions, predictions."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from lit_nlp.data.base import Split
from lit_nlp.files import write_jsonl, write_text
from lit_nlp.tokenization import Text

T = TypeVar("T")


class ResultsWriter(Callback):
    """Writes `metrics.json`, and after `test` a table and the wrong predictions, after `predict` the predictions.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._validations: list[dict[str, float]] = []
        self._rows: list[dict[str, Any]] = []
        self._predictions: list[Any] = []

    def state_dict(self) -> dict[str, Any]:
        """Keep the validations for a run that is resumed."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the validations of the run that is resumed."""
        self._validations = list(state_dict["validations"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the metrics of a validation; `validate` writes them at once."""
        if trainer.sanity_checking:
            return
        self._validations.append(_scalars(trainer, "val/"))
        if trainer.state.fn == "validate":
            self._write_metrics(trainer, self._validations[-1])

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the validation metrics of the best checkpoint."""
        name, mode = getattr(pl_module, "monitor", ("val/loss", "min"))
        measured = [metrics for metrics in self._validations if name in metrics]
        if measured:
            best = (max if mode == "max" else min)(measured, key=lambda metrics: metrics[name])
            self._write_metrics(trainer, best)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the rows of a test that broke off."""
        self._rows = []

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Keep what the test step returned of each row."""
        if isinstance(outputs, dict) and "row" in outputs:
            columns = {name: outputs[name].detach().cpu() for name in ("row", "logits", "losses", "labels")}
            self._rows += [{name: column[i] for name, column in columns.items()} for i in range(len(columns["row"]))]

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write metrics, their table, and the wrong predictions, the worst first."""
        metrics = _scalars(trainer, "test/")
        self._write_metrics(trainer, metrics)
        rows, self._rows = _from_all_processes(self._rows), []
        if not trainer.is_global_zero:
            return
        write_text(self.folder / "test.md", _table(metrics, pl_module))
        if rows:
            path = self.folder / "wrong_predictions.jsonl"
            write_jsonl(path, _wrong(rows, trainer, pl_module))
            rank_zero_info(f"Wrong predictions, worst first: {path}")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the predictions of a run that broke off."""
        self._predictions = []

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Keep the predictions of a batch."""
        self._predictions += outputs

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the predictions in the order of their file."""
        predictions, self._predictions = _from_all_processes(self._predictions), []
        if trainer.is_global_zero:
            predictions.sort(key=lambda prediction: prediction.row)
            texts = texts_of(trainer, "predict", [prediction.row for prediction in predictions])
            path = self.folder / "predictions.jsonl"
            write_jsonl(path, [_row(_with_text(each, text)) for each, text in zip(predictions, texts, strict=True)])
            rank_zero_info(f"Predictions: {path}")

    def _write_metrics(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = self.folder / "metrics.json"
        earlier = json.loads(path.read_text()) if path.exists() else {}
        # JSON knows no NaN, which a correlation of constants is.
        figures = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        if earlier | figures != earlier:
            replaced = not earlier.keys().isdisjoint(figures)
            write_text(path, json.dumps(earlier | figures, indent=2) + "\n", keep_earlier=replaced)
        rank_zero_info(f"Metrics: {path}")


def texts_of(trainer: Trainer, split: Split, rows: Sequence[int]) -> list[Text | None]:
    """Return the texts of rows of a split, None where the data module keeps none."""
    tables = getattr(getattr(trainer, "datamodule", None), "tables", {})
    if split not in tables or "text" not in tables[split].column_names:
        return [None] * len(rows)
    columns = tables[split].select_columns(["text", "text_pair"])[list(rows)]
    return [(text, pair) if pair else text for text, pair in zip(columns["text"], columns["text_pair"], strict=True)]


def _with_text(prediction: Any, text: Text | None) -> Any:
    first, second = text if isinstance(text, tuple) else (text, None)
    return replace(prediction, text=first, text_pair=second)


def _row(prediction: Any) -> dict[str, Any]:
    """Return a prediction as JSON, without fields that say nothing."""
    return {name: value for name, value in asdict(prediction).items() if value is not None or name == "text"}


def _wrong(rows: list[dict[str, Tensor]], trainer: Trainer, module: Any) -> list[dict[str, Any]]:
    """Return the rows whose prediction isn't their label, the highest loss first."""
    rows = sorted(rows, key=lambda row: -float(row["losses"]))
    numbers = [int(row["row"]) for row in rows]
    logits = torch.stack([row["logits"] for row in rows])
    predictions = module.predictions(logits, texts_of(trainer, "test", numbers), numbers)
    wrong = []
    for row, prediction in zip(rows, predictions, strict=True):
        label = module.label_of(row["labels"])
        if label != prediction.label:
            loss = (
                {"loss_nats": float(row["losses"])}
                if prediction.probability is not None
                else {"loss": float(row["losses"])}
            )
            wrong.append({**_row(replace(prediction, label=label)), "prediction": prediction.label, **loss})
    return wrong


def _scalars(trainer: Trainer, prefix: str) -> dict[str, float]:
    return {name: float(value) for name, value in sorted(trainer.callback_metrics.items()) if name.startswith(prefix)}


def _table(metrics: dict[str, float], module: Any) -> str:
    lines = ["| metric | value |", "|---|---|", *(f"| {name} | {value:.4f} |" for name, value in metrics.items())]
    confusion = getattr(module, "confusion", None)
    if confusion is not None:
        labels = [label.replace("|", "\\|") for label in module.labels]
        lines += ["", "Rows are the given labels, columns the predicted ones.", ""]
        lines += ["| | " + " | ".join(labels) + " |", "|---" * (len(labels) + 1) + "|"]
        lines += [
            f"| {label} | " + " | ".join(map(str, row)) + " |"
            for label, row in zip(labels, confusion.tolist(), strict=True)
        ]
    return "\n".join(lines) + "\n"


def _from_all_processes(items: list[T]) -> list[T]:
    """Join the lists of all processes; each row is in one of them."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return items
    gathered: list[list[T]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(gathered, items)
    return [item for each in gathered for item in each]
