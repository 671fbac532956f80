"""Writing checkpoints so that a crash, a kill or a full disk never costs the last good one."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_nlp.errors import CheckpointError, UserError
from lit_nlp.files import written_whole


class LastCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt`: the state after each epoch, and where SIGTERM or a mistake ended the run behind a batch.

    `ModelCheckpoint(save_last=True)` wouldn't do: it writes only when there is a new best. What comes from the middle
    of a batch leaves the file alone, and so does what we raise ourselves, as of weights that diverge.

    Args:
        folder: Where to keep it.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(
            dirpath=folder,
            filename="last",
            save_on_train_epoch_end=True,
            save_on_exception=True,
            enable_version_counter=False,
        )
        self._has_trained = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin a run, of which nothing is there to save."""
        self._has_trained = False
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(self, *given: Any) -> None:
        """Note that the run has something to save."""
        self._has_trained = True
        super().on_train_batch_end(*given)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save where the run ended behind a batch, as by a callback that looks for a metric that nobody logs."""
        batches = trainer.fit_loop.epoch_loop.batch_progress.current
        behind = self._has_trained and batches.ready == batches.completed
        mistaken = isinstance(exception, Exception) and not isinstance(exception, UserError)
        # Of several processes one may fail alone, and would wait for the others to save.
        keeps = behind and mistaken and trainer.world_size == 1
        if keeps or isinstance(exception, SIGTERMException):
            super().on_exception(trainer, pl_module, exception)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, then moves: the old checkpoint stands until the new one is whole.

    Lightning stages in the system's temporary folder, often another disk, from where a move is a copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            CheckpointError: The folder can't be written, or the disk is full.
        """
        try:
            with written_whole(Path(path)) as partial, partial.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"the checkpoint can't be written ({error})",
                where=str(path),
                mend="make room, or choose another trainer.default_root_dir; earlier checkpoints are untouched",
            ) from error
