"""The run's folder, made when every process has chosen it, with the configuration of the verb."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_nlp.files import write_text


class RunFolder(Callback):
    """Writes the verb's configuration to ``<folder>/<verb>.yaml`` before the run starts.

    Args:
        folder: The run's folder.
        verb: fit, validate, test or predict.
        config: The configuration as YAML.
    """

    def __init__(self, folder: Path, verb: str, config: str) -> None:
        self.folder, self.verb, self.config = folder, verb, config

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the configuration; fails before any work where the folder can't be written."""
        if trainer.is_global_zero:
            write_text(self.folder / f"{self.verb}.yaml", self.config)
