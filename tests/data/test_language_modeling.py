"""Blocks of documents, and what of them is hidden: anew each epoch, and the same again where it must be."""

import json
import shutil
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

from lit_nlp import LanguageModelingDataModule, LanguageModelingModule
from lit_nlp.errors import BackboneError, ConfigError, DataError
from lit_nlp.objectives import IGNORED
from lit_nlp.pretrained import load_tokenizer
from tests import language_models
from tests.backbones import CORPUS

Make = Callable[..., LanguageModelingDataModule]
DOCUMENTS = [" ".join(CORPUS[i % 6 :] + CORPUS[: i % 5]) + f" {i}" for i in range(20)]


@pytest.fixture(scope="session")
def t5(tmp_path_factory: pytest.TempPathFactory) -> str:
    return language_models.save("t5", tmp_path_factory.mktemp("t5"))


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "documents.txt"
    path.write_text("".join(f"{document}\n\n" for document in DOCUMENTS))
    return str(path)


@pytest.fixture
def make(bert: str, source: str) -> Make:
    """Data modules over twenty documents, most of which are longer than a block."""

    def module(backbone: str = bert, objective: Any = "masked", **arguments: Any) -> LanguageModelingDataModule:
        given = {"train": source, "val": source, "test": source, "predict": source}
        return LanguageModelingDataModule(
            backbone, objective=objective, **{**given, "max_length": 24, "batch_size": 4, **arguments}
        )

    return module


def opened(data: LanguageModelingDataModule, stage: str = "fit") -> LanguageModelingDataModule:
    data.setup(stage)
    return data


def epoch_of(data: LanguageModelingDataModule, epoch: int = 0) -> list[dict[str, Tensor]]:
    batches = opened(data).train_dataloader()
    batches.sampler.set_epoch(epoch)
    return list(batches)


def by_row(batches: Any) -> dict[int, tuple[list[int], list[int]]]:
    """Return the inputs and labels of each row, without padding."""
    rows = {}
    for batch in batches:
        mask = batch.get("attention_mask", torch.arange(batch["input_ids"].shape[1]) < batch["length"].unsqueeze(1))
        for i, row in enumerate(batch["row"].tolist()):
            labels = batch["labels"][i].tolist()
            while labels[-1] == IGNORED:
                labels.pop()
            rows[row] = (batch["input_ids"][i, mask[i].bool()].tolist(), labels)
    return rows


def restored(batches: Any) -> dict[int, list[int]]:
    """Return the tokens of each row as they were before any was hidden."""
    return {
        row: [id if label == IGNORED else label for id, label in zip_longest(ids, labels, fillvalue=IGNORED)]
        for row, (ids, labels) in by_row(batches).items()
    }


# Blocks


def test_blocks_of_masked_texts_are_cut_from_one_document_each_and_lose_nothing(make: Make) -> None:
    data = opened(make())
    rows = restored(data.val_dataloader())
    cls, sep = data.tokenizer.cls_token_id, data.tokenizer.sep_token_id
    assert all(tokens[0] == cls and tokens[-1] == sep and len(tokens) <= 24 for tokens in rows.values())
    joined = [token for row in sorted(rows) for token in rows[row][1:-1]]
    assert joined == [token for ids in data.examples.documents(DOCUMENTS).ids for token in ids]
    assert len(rows) > len(DOCUMENTS)
    for row, tokens in rows.items():
        line = int(data.tables["val"][row]["where"].split()[-1])
        assert set(tokens[1:-1]) <= set(data.tokenizer(DOCUMENTS[(line - 1) // 2])["input_ids"])


def test_blocks_of_a_decoder_are_full_and_hold_one_document_after_the_other(make: Make, llama: str) -> None:
    data = opened(make(llama, "causal"))
    batches = list(data.val_dataloader())
    rows = restored(batches)
    stream = [token for ids in data.examples.documents(DOCUMENTS).ids for token in ids]
    assert [rows[row] for row in sorted(rows)] == [stream[i : i + 24] for i in range(0, len(stream), 24)]
    assert len(rows) == -(-len(stream) // 24), "no token is left out, and no block but the last is short"
    eos = data.tokenizer.eos_token_id
    for batch in batches:
        assert "attention_mask" not in batch, "with one, documents would see each other"
        for ids, labels, positions, length in zip(
            *(batch[name].tolist() for name in ("input_ids", "labels", "position_ids", "length")), strict=True
        ):
            starts = [i for i in range(length) if i == 0 or ids[i - 1] == eos]
            assert [i for i in range(length) if positions[i] == 0] == starts
            assert [i for i in range(length) if labels[i] == IGNORED] == starts
            assert all(labels[i] == ids[i] for i in range(length) if i not in starts)
            assert set(labels[length:]) <= {IGNORED}
            assert set(positions[length:]) <= {0}


def test_held_out_documents_share_no_block_with_those_trained_on(make: Make, llama: str) -> None:
    for backbone, objective in ((llama, "causal"), (None, "masked")):
        data = opened(make(*([backbone] if backbone else []), objective=objective, val=None, val_fraction=0.3))
        places = [set(data._documents[split]["where"]) for split in ("train", "val")]
        assert len(places[1]) == 6
        assert len(places[0] | places[1]) == 20
        assert not places[0] & places[1]
        for split, own in zip(("train", "val"), places, strict=True):
            assert set(data.tables[split]["where"]) <= own


def test_blocks_of_another_length_need_no_tokenising(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(make(max_length=24))
    monkeypatch.setattr(LanguageModelingDataModule, "tokenise", lambda *_: pytest.fail("tokenised again"))
    assert len(opened(make(max_length=16)).tables["train"]) > len(opened(make(max_length=24)).tables["train"])


def test_a_budget_of_tokens_counts_what_a_batch_holds(make: Make, t5: str) -> None:
    for arguments in ({}, {"backbone": t5, "objective": "denoising"}):
        data = opened(make(batch_size=99, max_tokens=100, **arguments))
        sizes = []
        for batch in data.train_dataloader():
            sides = batch["input_ids"].numel() + (batch["labels"].numel() if arguments else 0)
            sizes.append(sides)
            assert data.lengths(data.tables["train"])[batch["row"].numpy()].max(0).sum() * len(batch["row"]) == sides
        assert max(sizes) <= 100


def test_a_budget_of_tokens_to_predict_counts_the_blocks_of_a_document(make: Make, t5: str) -> None:
    for arguments in ({}, {"backbone": t5, "objective": "denoising"}):
        data = opened(make(batch_size=99, max_tokens=100, **arguments), "predict")
        for batch in data.predict_dataloader():
            width = batch["input_ids"].shape[1] + (batch["labels"].shape[1] if arguments else 0)
            # The module runs as many blocks at once as there are documents.
            assert len(batch["text"]) * width <= 100


def test_two_backbones_whose_texts_end_otherwise_do_not_share_documents(make: Make, llama: str, tmp_path: Path) -> None:
    other = Path(shutil.copytree(llama, tmp_path / "other"))
    settings = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": settings["bos_token"]}))
    ends = [
        opened(make(folder, "causal"), "predict").tables["predict"][0]["input_ids"][-1]
        for folder in (llama, str(other))
    ]
    assert ends == [load_tokenizer(llama).eos_token_id, load_tokenizer(llama).bos_token_id]
    assert ends[0] != ends[1]


def test_documents_to_predict_come_whole_with_their_texts(make: Make) -> None:
    data = opened(make(), "predict")
    for batch in data.predict_dataloader():
        rows = torch.unique_consecutive(batch["row"]).tolist()
        assert batch["text"] == [DOCUMENTS[row] for row in rows]
    assert data.tables["predict"]["text"][:] == DOCUMENTS


# What is hidden


@pytest.mark.parametrize("objective", ["masked", "denoising"])
@pytest.mark.parametrize("whole_words", [False, True])
def test_each_epoch_of_training_hides_other_tokens(make: Make, objective: str, whole_words: bool, t5: str) -> None:
    if objective == "denoising" and whole_words:
        pytest.skip("whole words are masked only")
    arguments: dict[str, Any] = {"backbone": t5} if objective == "denoising" else {}
    data = make(objective=objective, whole_words=whole_words, **arguments)
    first, again, second = (by_row(epoch_of(data, epoch)) for epoch in (0, 0, 1))
    assert first == again
    assert first.keys() == second.keys()
    assert sum(first[row] == second[row] for row in first) < len(first) / 2
    assert by_row(epoch_of(make(objective=objective, whole_words=whole_words, **arguments), 1)) == second
    other = by_row(epoch_of(make(objective=objective, whole_words=whole_words, seed=1, **arguments)))
    assert sum(first[row] == other[row] for row in first) < len(first) / 2


def test_what_is_hidden_hangs_on_nothing_that_was_drawn_before_nor_on_the_batches(make: Make) -> None:
    expected = by_row(epoch_of(make(), 3))
    torch.manual_seed(99)
    assert by_row(epoch_of(make(batch_size=7), 3)) == expected
    assert by_row(epoch_of(make(num_workers=2), 3)) == expected


def test_validation_and_test_hide_the_same_in_every_epoch_and_process(make: Make) -> None:
    data = opened(opened(make()), "test")
    for loader in (data.val_dataloader, data.test_dataloader):
        batches = loader()
        first = by_row(batches)
        batches.sampler.set_epoch(5)
        assert by_row(batches) == first
        assert by_row(opened(opened(make(batch_size=3)), "test").val_dataloader()) == first


def test_a_share_of_each_block_is_to_be_found(make: Make) -> None:
    data = make(mask_probability=0.4)
    batches = epoch_of(data)
    tokens, special = restored(batches), data.tokenizer.all_special_ids
    for row, (_, labels) in by_row(batches).items():
        candidates = sum(token not in special for token in tokens[row])
        assert sum(label != IGNORED for label in labels) == round(0.4 * candidates)


def test_a_resumed_epoch_hides_what_the_unbroken_one_would_have(make: Make) -> None:
    unbroken = epoch_of(make(), 2)
    batches = opened(make()).train_dataloader()
    batches.load_state_dict({"epoch": 2, "done": 3})
    rest = list(batches)
    assert len(rest) == len(unbroken) - 3
    for one, other in zip(rest, unbroken[3:], strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


# What a module must know, and mistakes


def test_the_facts_are_what_is_asked_of_the_module(make: Make) -> None:
    facts = {"max_length": 24, "objective": "masked", "mask_probability": 0.2, "span_length": 3.0}
    assert make(mask_probability=0.2).facts == facts


def test_a_block_is_no_longer_than_what_the_backbone_reads(make: Make) -> None:
    assert make(max_length=None).max_length == 64
    with pytest.raises(ConfigError, match="max_length is 65, but the backbone reads at most 64 tokens"):
        opened(make(max_length=65))


def test_without_a_limit_of_its_tokenizer_a_block_has_512_tokens(make: Make, t5: str) -> None:
    assert make(t5, "denoising", max_length=None).max_length == 512


@pytest.mark.parametrize("stage", ["fit", "test", "predict"])
def test_a_file_without_text_is_named(make: Make, tmp_path: Path, stage: str) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    with pytest.raises(DataError, match=r"empty.txt: no rows; name a file that holds data"):
        opened(make(train=str(empty), test=str(empty), predict=str(empty)), stage)


def test_texts_without_a_token_are_no_data(make: Make, tmp_path: Path) -> None:
    # BERT's normalizer drops control characters.
    (tmp_path / "odd.txt").write_text("\x01\x02\n")
    with pytest.raises(DataError) as raised:
        opened(make(test=str(tmp_path / "odd.txt")), "test")
    assert str(raised.value) == "data.test: no text has a token; name a file that holds text"


def test_a_nul_byte_is_named_by_its_line(make: Make, tmp_path: Path) -> None:
    (tmp_path / "nul.txt").write_text("good\nb\0d\n")
    with pytest.raises(DataError, match=r"nul.txt, line 2: a NUL byte at offset 6"):
        opened(make(test=str(tmp_path / "nul.txt")), "test")


def test_a_column_of_any_name_may_hold_the_texts(make: Make, tmp_path: Path) -> None:
    (tmp_path / "news.csv").write_text('title,body\nGood,"a, b"\nNA,007\n')
    columns = {"text": ["title", "body"]}
    data = opened(make(predict=str(tmp_path / "news.csv"), columns=columns), "predict")
    assert data.tables["predict"]["text"][:] == ["Good a, b", "NA 007"]


def test_a_backbone_without_the_objectives_tokens_is_refused_before_any_work(make: Make, llama: str) -> None:
    with pytest.raises(BackboneError, match="its tokenizer has no mask_token, which masked needs"):
        opened(make(llama))


def test_a_module_of_another_objective_is_refused(make: Make, bert: str) -> None:
    make(objective="masked").check_module(LanguageModelingModule(bert))
    with pytest.raises(ConfigError, match=r"^data.objective: the data has 'causal', the module 'masked'; give"):
        make(objective="causal").check_module(LanguageModelingModule(bert))


def test_an_objective_that_there_is_not_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a user's Python checks no types
    with pytest.raises(ConfigError, match=r"^data.objective: 'mlm' is not one of masked, causal, denoising"):
        make(objective="mlm")
