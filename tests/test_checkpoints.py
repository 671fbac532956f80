"""A checkpoint is read whole and harmless, or refused in one line."""

import datetime
import enum
import json
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, PreTrainedConfig

from lit_nlp import SentimentModule
from lit_nlp.checkpoints import check_primitives, pack_backbone, read_checkpoint, unpack_config, unpack_tokenizer
from lit_nlp.errors import CheckpointError
from lit_nlp.pretrained import load_tokenizer
from tests.backbones import CORPUS
from tests.contract import save

CONTENT = {"lit_nlp": {"module": "M"}, "state_dict": {f"weight{i}": torch.arange(100.0) + i for i in range(3)}}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A checkpoint of ours, as small as can be."""
    torch.save(CONTENT, tmp_path / "small.ckpt")
    return tmp_path / "small.ckpt"


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    weights, others = one["state_dict"], other["state_dict"]
    return (
        one["lit_nlp"] == other["lit_nlp"]
        and weights.keys() == others.keys()
        and all(torch.equal(weights[name], others[name]) for name in weights)
    )


def refused(path: str | Path, problem: str) -> None:
    with pytest.raises(CheckpointError) as raised:
        read_checkpoint(path)
    assert str(raised.value).startswith(f"{path}: {problem}; ")
    assert "\n" not in str(raised.value)


def test_what_was_saved_is_read(small: Path) -> None:
    assert equal(read_checkpoint(small), CONTENT)
    assert equal(read_checkpoint(str(small)), CONTENT)


def test_a_file_that_was_written_anew_is_read_anew(small: Path) -> None:
    read_checkpoint(small)
    changed = {**CONTENT, "lit_nlp": {"module": "Another"}}
    torch.save(changed, small)
    assert equal(read_checkpoint(small), changed)


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99, -1])
def test_a_truncated_file_is_damaged(kept: float, small: Path) -> None:
    content = small.read_bytes()
    small.write_bytes(content[: int(kept * len(content)) if 0 < kept < 1 else int(kept)])
    refused(small, "the checkpoint is damaged")


def test_a_flipped_bit_never_changes_what_is_read(small: Path) -> None:
    content, generator = small.read_bytes(), random.Random(0)
    outcomes = set()
    for number, place in enumerate(generator.sample(range(len(content)), 400)):
        # Another name each time: a file system's clock may not tell two writes apart.
        path = small.with_name(f"{number}.ckpt")
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << generator.randrange(8)]) + content[place + 1 :])
        try:
            assert equal(read_checkpoint(path), CONTENT)  # in padding between the parts
            outcomes.add("harmless")
        except CheckpointError as error:
            outcomes.add(error.problem)
        path.unlink()
    assert outcomes == {"harmless", "the checkpoint is damaged"}


def test_a_flipped_bit_in_the_weights_is_found_although_torch_loads_it(small: Path) -> None:
    content = small.read_bytes()
    place = content.index(torch.arange(100.0).numpy().tobytes()) + 40
    small.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    assert not equal(torch.load(small, weights_only=True), CONTENT)
    refused(small, "the checkpoint is damaged")


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("code of the checkpoint has run",)


def test_a_payload_does_not_run(small: Path) -> None:
    torch.save({**CONTENT, "hyper_parameters": Payload()}, small)
    refused(small, "the checkpoint holds Python objects, which are not loaded because they can run code")


def test_a_plain_pickle_does_not_run(small: Path) -> None:
    small.write_bytes(pickle.dumps(Payload()))
    refused(small, "the checkpoint is damaged")


@pytest.mark.parametrize("url", ["https://example.org/best.ckpt", "s3://bucket/best.ckpt", "file:///tmp/best.ckpt"])
def test_a_url_is_not_fetched(url: str) -> None:
    refused(url, "a checkpoint is read from a local file only, not from a URL")


def test_a_file_that_is_not_there_or_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    refused(tmp_path / "gone.ckpt", "there is no such checkpoint file")
    refused(tmp_path, "this is a folder")
    with pytest.raises(CheckpointError, match=r"^there is no such checkpoint file; look into checkpoints/$"):
        read_checkpoint("")


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], torch.zeros(3)])
def test_a_checkpoint_of_another_program_is_foreign(content: object, small: Path) -> None:
    torch.save(content, small)
    refused(small, "this file is no checkpoint of lit_nlp")


def test_all_that_a_module_saves_is_tensors_and_primitives(bert: str, tmp_path: Path) -> None:
    save(SentimentModule(bert), tmp_path / "x.ckpt")
    section = read_checkpoint(tmp_path / "x.ckpt")["lit_nlp"]
    described = {name: part for name, part in section.items() if name != "rng"}
    assert json.loads(json.dumps(described))["module"] == "SentimentModule"


# The backbone inside


@pytest.mark.parametrize("name", ["bert", "roberta", "llama"])
def test_configuration_and_tokenizer_come_back_as_they_were(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    config, tokenizer = AutoConfig.from_pretrained(folder, num_labels=3), load_tokenizer(folder)
    section = pack_backbone(config, tokenizer)
    rebuilt, again = unpack_config(section), unpack_tokenizer(section)
    assert type(rebuilt) is type(config)
    assert without_origin(rebuilt) == without_origin(config)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert again.special_tokens_map == tokenizer.special_tokens_map
    assert again.model_max_length == tokenizer.model_max_length
    assert again(CORPUS, padding=True) == tokenizer(CORPUS, padding=True)


def without_origin(config: PreTrainedConfig) -> dict[str, Any]:
    """What a configuration says, but for where and by which version it was written."""
    return {
        key: value for key, value in config.to_dict().items() if key not in ("_name_or_path", "transformers_version")
    }


def test_a_tokenizer_file_is_kept_byte_by_byte_whatever_it_holds(bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "a.model": bytes(range(256)),
        "b.txt": "é\r\nsecond line\u2028".encode(),
        "c.txt": b"base64:text",
        "d": b"",
    }
    tokenizer = load_tokenizer(bert)
    monkeypatch.setattr(
        type(tokenizer),
        "save_pretrained",
        lambda _, folder: [(Path(folder) / n).write_bytes(c) for n, c in files.items()],
    )
    section = pack_backbone(AutoConfig.from_pretrained(bert), tokenizer)
    found: dict[str, bytes] = {}

    def read(folder: str, **_: Any) -> object:
        found.update({path.name: path.read_bytes() for path in Path(folder).iterdir()})
        return tokenizer

    monkeypatch.setattr("lit_nlp.checkpoints.AutoTokenizer.from_pretrained", read)
    unpack_tokenizer(section)
    assert found == files


def test_a_checkpoint_writes_no_file_outside_its_own_folder(
    bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = pack_backbone(AutoConfig.from_pretrained(bert), load_tokenizer(bert))
    section["tokenizer"] |= {"../outside": "text:x", str(tmp_path / "absolute"): "text:x"}
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    unpack_tokenizer(section)
    assert list(tmp_path.iterdir()) == []


# Hyperparameters


class Colour(enum.StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    "value",
    [
        Path("x"),
        Colour.RED,
        np.float64(0.1),
        np.int64(1),
        torch.tensor(1.0),
        datetime.date(2020, 1, 1),
        len,
        int,
        {1, 2},
        b"bytes",
        {1: "a key that is no string"},
        ["nested", [Path("x")]],
        {"nested": {"deeper": Colour.RED}},
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_would_not_load_again_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match=r"^Module\(odd=…\) takes JSON primitives, so that its checkpoints load safely"):
        check_primitives({"plain": 1, "odd": value}, "Module")


def test_what_json_knows_is_accepted() -> None:
    check_primitives({"a": None, "b": [1, 2.5, "x", True], "c": {"d": {"e": []}}, "f": (1, 2)}, "Module")
