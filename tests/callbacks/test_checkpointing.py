"""The last good checkpoint survives whatever happens while the next one is written."""

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lit_nlp import SentimentDataModule, SentimentModule
from lit_nlp.callbacks.checkpointing import AtomicCheckpointIO, LastCheckpoint
from lit_nlp.checkpoints import read_checkpoint
from lit_nlp.errors import CheckpointError
from tests.backbones import CORPUS
from tests.contract import plain_trainer, write_rows


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A folder with one good checkpoint."""
    AtomicCheckpointIO().save_checkpoint({"weights": torch.arange(1000.0)}, tmp_path / "run" / "last.ckpt")
    return tmp_path / "run" / "last.ckpt"


def test_what_is_saved_is_read(earlier: Path) -> None:
    assert torch.equal(torch.load(earlier, weights_only=True)["weights"], torch.arange(1000.0))
    assert [path.name for path in earlier.parent.iterdir()] == ["last.ckpt"]


def test_others_may_read_a_checkpoint(earlier: Path) -> None:
    assert stat.S_IMODE(earlier.stat().st_mode) == 0o644


def test_the_next_one_replaces_it(earlier: Path) -> None:
    AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(3)}, earlier)
    assert torch.equal(torch.load(earlier, weights_only=True)["weights"], torch.zeros(3))


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def half_written_then(error: BaseException) -> Any:
    def save(content: Any, file: Any) -> None:
        file.write(b"half of a checkpoint")
        raise error

    return save


@pytest.mark.parametrize(
    ("place", "failing", "raised"),
    [
        ("torch.save", half_written_then(OSError(errno.ENOSPC, "No space left on device")), CheckpointError),
        ("torch.save", half_written_then(RuntimeError("PytorchStreamWriter failed writing file")), CheckpointError),
        ("torch.save", half_written_then(KeyboardInterrupt()), KeyboardInterrupt),
        ("torch.save", half_written_then(AttributeError("Can't pickle")), AttributeError),
        ("os.fsync", full_disk, CheckpointError),
        ("os.replace", full_disk, CheckpointError),
    ],
)
def test_a_failure_in_the_middle_leaves_the_earlier_one_and_nothing_else(
    place: str, failing: Any, raised: type[BaseException], earlier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = earlier.read_bytes()
    monkeypatch.setattr(place, failing)
    with pytest.raises(raised):
        AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(3)}, earlier)
    assert earlier.read_bytes() == before
    assert [path.name for path in earlier.parent.iterdir()] == ["last.ckpt"]


def test_the_new_one_is_on_the_disk_before_it_takes_the_place_of_the_old(
    earlier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, real=real, name=name: (calls.append(name), real(*given)))
    AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(3)}, earlier)
    assert calls == ["fsync", "replace"]


def test_it_is_staged_beside_its_target_not_in_the_systems_temporary_folder(
    earlier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(3)}, earlier)


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "last.ckpt"
    with pytest.raises(CheckpointError) as raised:
        AtomicCheckpointIO().save_checkpoint({}, path)
    message = str(raised.value)
    assert message.startswith(f"{path}: the checkpoint can't be written (")
    assert message.endswith("make room, or choose another trainer.default_root_dir; earlier checkpoints are untouched")
    assert "\n" not in message


def test_a_trainer_writes_its_checkpoints_by_it(bert: str, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"text": text, "label": i % 2} for i, text in enumerate(CORPUS)])
    keeper = ModelCheckpoint(dirpath=tmp_path / "run", filename="last", enable_version_counter=False)
    trainer = plain_trainer(callbacks=[keeper], enable_checkpointing=True, plugins=[AtomicCheckpointIO()], max_epochs=2)
    trainer.fit(SentimentModule(bert), SentimentDataModule(bert, train=source, val=source))
    assert read_checkpoint(tmp_path / "run" / "last.ckpt")["epoch"] == 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["last.ckpt"]


def test_a_fit_that_cannot_write_its_checkpoint_does_not_pass_for_one_that_did(bert: str, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"text": text, "label": i % 2} for i, text in enumerate(CORPUS)])
    keeper = ModelCheckpoint(dirpath=tmp_path / "run", filename="last", enable_version_counter=False)
    trainer = plain_trainer(callbacks=[keeper], enable_checkpointing=True, plugins=[AtomicCheckpointIO()])
    (tmp_path / "run" / "last.ckpt" / "in the way").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"last.ckpt: the checkpoint can't be written"):
        trainer.fit(SentimentModule(bert), SentimentDataModule(bert, train=source, val=source))


@pytest.mark.parametrize(("hook", "kept"), [("on_validation_end", True), ("on_train_batch_start", False)])
def test_a_mistake_of_a_callback_behind_a_batch_costs_nothing(hook: str, kept: bool, bert: str, tmp_path: Path) -> None:
    def fails(self: Any, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step:
            raise RuntimeError("no such metric")

    source = write_rows(tmp_path / "rows.jsonl", [{"text": text, "label": i % 2} for i, text in enumerate(CORPUS)])
    callbacks = [type("Fails", (Callback,), {hook: fails})(), LastCheckpoint(tmp_path / "run")]
    trainer = plain_trainer(callbacks=callbacks, enable_checkpointing=True)
    data = SentimentDataModule(bert, train=source, val=source, batch_size=3)
    with pytest.raises(RuntimeError, match="no such metric"):
        trainer.fit(SentimentModule(bert), data)
    last = tmp_path / "run" / "last.ckpt"
    assert last.exists() == kept
    if kept:
        assert read_checkpoint(last)["global_step"] == 2


def test_a_resume_that_fails_leaves_the_earlier_file(bert: str, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"text": text, "label": i % 2} for i, text in enumerate(CORPUS)])
    last = tmp_path / "run" / "last.ckpt"

    def fit(epochs: int, ckpt_path: Path | None = None, **arguments: Any) -> None:
        trainer = plain_trainer(callbacks=[LastCheckpoint(last.parent)], enable_checkpointing=True, max_epochs=epochs)
        data = SentimentDataModule(bert, train=source, val=source, batch_size=3)
        trainer.fit(SentimentModule(bert, **arguments), data, ckpt_path=ckpt_path)

    fit(1)
    before = last.read_bytes()
    with pytest.raises(ValueError, match="parameter group"):
        fit(2, last, layer_decay=0.5)
    assert last.read_bytes() == before
