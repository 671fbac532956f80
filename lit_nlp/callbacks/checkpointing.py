"""Writing checkpoints so that a crash, a kill or a full disk never costs the last good one."""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lit_nlp.errors import CheckpointError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, then moves: the old checkpoint stands until the new one is whole.

    Lightning stages in the system's temporary folder, often another disk, from where a move is a copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            CheckpointError: The folder can't be written, or the disk is full.
        """
        target = Path(path)
        partial: str | None = None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=target.parent, suffix=".part", delete=False) as file:
                partial = file.name
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(partial, 0o644)
            os.replace(partial, target)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"the checkpoint can't be written ({error})",
                where=str(path),
                mend="make room, or choose another trainer.default_root_dir; earlier checkpoints are untouched",
            ) from error
        finally:
            if partial is not None:
                Path(partial).unlink(missing_ok=True)
