from pathlib import Path

import pytest
from lightning.pytorch.demos.boring_classes import BoringModel

from lit_nlp.callbacks.run_folder import RunFolder
from lit_nlp.errors import UserError
from tests.contract import plain_trainer


def test_the_configuration_is_written_before_the_work(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "run"

    class Model(BoringModel):
        def training_step(self, *_: object) -> None:
            assert (folder / "fit.yaml").read_text() == "seed: 1\n"

    plain_trainer(max_steps=1, limit_val_batches=0, callbacks=[RunFolder(folder, "fit", "seed: 1\n")]).fit(Model())
    assert (folder / "fit.yaml").exists()


def test_a_second_run_keeps_the_firsts_configuration(tmp_path: Path) -> None:
    for number in (1, 2):
        callback = RunFolder(tmp_path, "test", f"seed: {number}\n")
        plain_trainer(limit_test_batches=1, callbacks=[callback]).test(BoringModel(), verbose=False)
    assert (tmp_path / "test.yaml").read_text() == "seed: 2\n"
    assert (tmp_path / "test-1.yaml").read_text() == "seed: 1\n"


def test_a_folder_that_cannot_be_written_stops_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    callback = RunFolder(tmp_path / "file" / "run", "fit", "")
    with pytest.raises(UserError, match=r"fit.yaml: it can't be written"):
        plain_trainer(max_steps=1, limit_val_batches=0, callbacks=[callback]).fit(BoringModel())
