"""The run's folder, made when every process has chosen it, with the configuration of the verb."""

import re
from itertools import count
from pathlib import Path

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_nlp.files import write_text


def unused_run(root: Path, name: str) -> Path:
    """Return the folder of a new run: ``name``, or the first of ``name-2``, ``name-3``, … that isn't there."""
    if not (root / name).exists():
        return root / name
    return next(run for number in count(2) if not (run := root / f"{name}-{number}").exists())


def newest_run(root: Path, name: str, *, holding: str) -> Path:
    """Return the run of this name that wrote a file last; the first, where none did."""
    numbered = re.compile(re.escape(name) + r"-\d+")
    runs = [
        run for run in root.glob("*") if run.name == name or (numbered.fullmatch(run.name) and _is_named(run, name))
    ]
    files = [run / holding for run in runs if (run / holding).exists()]
    return max(files, key=lambda file: file.stat().st_mtime).parent if files else root / name


def _is_named(run: Path, name: str) -> bool:
    """Whether a numbered folder is a further run of the name, and not one that was called so."""
    config = run / "fit.yaml"
    return config.exists() and yaml.safe_load(config.read_text("utf-8")).get("name") == name


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
