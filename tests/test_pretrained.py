import shutil
from pathlib import Path

import pytest

from lit_nlp import SentimentModule
from lit_nlp.errors import BackboneError
from lit_nlp.pretrained import Location, load_tokenizer, locate_backbone
from tests.backbones import CORPUS
from tests.contract import save


def test_a_hub_id_stays_as_it_is() -> None:
    assert locate_backbone("acme/tiny").arguments == {"pretrained_model_name_or_path": "acme/tiny"}


def test_a_folder_is_taken_before_a_hub_id_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "acme" / "tiny").mkdir(parents=True)
    assert locate_backbone("acme/tiny") == Location("acme/tiny", "acme/tiny")
    assert locate_backbone("./acme/tiny").path == "./acme/tiny"


def test_a_gguf_file_is_its_folder_and_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_package").mkdir()
    path = tmp_path / "some_package" / "model.Q4_1.gguf"
    path.touch()
    expected = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": "model.Q4_1.gguf"}
    assert locate_backbone(str(path)).arguments == expected
    monkeypatch.syspath_prepend(tmp_path)
    assert locate_backbone("package:some_package/model.Q4_1.gguf").arguments == expected


def test_a_checkpoint_is_told_from_a_folder(tmp_path: Path, bert: str) -> None:
    (tmp_path / "x.ckpt").touch()
    assert locate_backbone(str(tmp_path / "x.ckpt")).is_checkpoint
    assert not locate_backbone(bert).is_checkpoint


@pytest.mark.parametrize("backbone", ["./gone", "/gone/model", "~/gone", "gone/model.gguf", "gone.ckpt"])
def test_a_path_that_leads_nowhere_is_no_hub_id(backbone: str) -> None:
    with pytest.raises(BackboneError) as raised:
        locate_backbone(backbone)
    assert str(raised.value) == (
        f"backbone {backbone}: there is no such folder or file; give a folder, a hub id, or package:name/folder"
    )


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert locate_backbone("~/model").path == str(tmp_path / "model")


def test_a_checkpoints_tokenizer_is_that_of_its_backbone(bert: str, tmp_path: Path) -> None:
    folder = shutil.copytree(bert, tmp_path / "backbone")
    expected = load_tokenizer(bert)(CORPUS)
    save(SentimentModule(str(folder)), tmp_path / "x.ckpt")
    shutil.rmtree(folder)
    assert load_tokenizer(str(tmp_path / "x.ckpt"))(CORPUS) == expected
