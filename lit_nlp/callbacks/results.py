"""What a run leaves beside its checkpoints: metrics, wrong predictions, predictions."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_nlp.callbacks.spool import Spool
from lit_nlp.files import write_lines, write_text

# Rows that processes hand over at once.
_ROWS_AT_ONCE = 256


class ResultsWriter(Callback):
    """Writes `metrics.json`, the table of an evaluation, and the files that the module makes of rows.

    Those of `validate` lie in a folder `val`, so that those of a test by the same names stay apart.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._validations: list[dict[str, float]] = []
        self._rows: Spool | None = None

    def state_dict(self) -> dict[str, Any]:
        """Keep the validations for a run that is resumed."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the validations of the run that is resumed."""
        self._validations = list(state_dict["validations"])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the rows of a `validate` that broke off; while fitting none are kept."""
        keeps = trainer.state.fn == TrainerFn.VALIDATING and hasattr(pl_module, "evaluation_files")
        self._rows = Spool(self.folder) if keeps else None

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Keep what the validation step returned of each row."""
        self._keep(outputs)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the metrics of a validation; `validate` writes what it measured at once."""
        if trainer.sanity_checking:
            return
        self._validations.append(_scalars(trainer, "val/"))
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._write_evaluation(trainer, pl_module, "val", self.folder / "val")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the validation metrics of the best checkpoint."""
        name, mode = getattr(pl_module, "monitor", ("val/loss", "min"))
        measured = [metrics for metrics in self._validations if math.isfinite(metrics.get(name, math.nan))]
        if measured:
            best = (max if mode == "max" else min)(measured, key=lambda metrics: metrics[name])
            self._write_metrics(trainer, best, "val/")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the rows of a test that broke off; of another project's module none are kept."""
        self._rows = Spool(self.folder) if hasattr(pl_module, "evaluation_files") else None

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Keep what the test step returned of each row."""
        self._keep(outputs)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write metrics, their table, and the files that the module makes of the rows."""
        self._write_evaluation(trainer, pl_module, "test", self.folder)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the predictions of a run that broke off; of another project's module none are kept."""
        self._rows = Spool(self.folder) if hasattr(pl_module, "predict_files") else None

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Keep the predictions of a batch."""
        if self._rows is not None:
            self._rows.extend(outputs)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files that the module makes of the predictions."""
        self._write_files(trainer, pl_module, "predict_files", self.folder)

    def _keep(self, outputs: Any) -> None:
        if self._rows is not None and isinstance(outputs, dict):
            self._rows.extend(outputs.get("rows", []))

    def _write_evaluation(self, trainer: Trainer, pl_module: LightningModule, split: str, folder: Path) -> None:
        metrics = _scalars(trainer, f"{split}/")
        self._write_metrics(trainer, metrics, f"{split}/")
        if trainer.is_global_zero:
            write_text(self.folder / f"{split}.md", _table(metrics, pl_module))
        self._write_files(trainer, pl_module, "evaluation_files", folder)

    def _write_files(self, trainer: Trainer, pl_module: LightningModule, files_of: str, folder: Path) -> None:
        if self._rows is None:
            return
        rows, self._rows = self._on_rank_zero(self._rows), None
        if not rows or not trainer.is_global_zero:
            return
        rows.sort()
        for name, lines in getattr(pl_module, files_of)(rows).items():
            write_lines(folder / name, lines)
            rank_zero_info(f"{name.partition('.')[0].replace('_', ' ').capitalize()}: {folder / name}")

    def _on_rank_zero(self, own: Spool) -> Spool:
        """Give the first process the rows of all, a few at a time; each row is in one of them."""
        if not torch.distributed.is_available() or not torch.distributed.is_initialized():
            return own
        first = torch.distributed.get_rank() == 0
        counts: list[int] = [0] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(counts, len(own))
        everyone = Spool(self.folder)
        for start in range(0, max(counts), _ROWS_AT_ONCE):
            some: list[list[Any]] = [[] for _ in counts]
            torch.distributed.all_gather_object(some, own[start : start + _ROWS_AT_ONCE])
            for rows in some if first else []:
                everyone.extend(rows)
        return everyone

    def _write_metrics(self, trainer: Trainer, metrics: dict[str, float], prefix: str) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = self.folder / "metrics.json"
        earlier = json.loads(path.read_text()) if path.exists() else {}
        # JSON knows no NaN, which a correlation of constants is.
        figures = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        others = {name: value for name, value in earlier.items() if not name.startswith(prefix)}
        if others | figures != earlier:
            replaced = len(others) < len(earlier)
            write_text(path, json.dumps(others | figures, indent=2) + "\n", keep_earlier=replaced)
        rank_zero_info(f"Metrics: {path}")


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
