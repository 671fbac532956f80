"""What all data modules share: splits, limits, the cache, and batches with or without a Trainer."""

import json
import os
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jaxtyping
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus

from lit_nlp.data import base, text_classification
from lit_nlp.data.base import sample
from lit_nlp.data.text_classification import TextClassificationDataModule
from lit_nlp.errors import ConfigError, DataError
from lit_nlp.files import cache_folder
from lit_nlp.modules.text_classification import TextClassificationModule
from tests.backbones import CORPUS
from tests.contract import plain_trainer

Make = Callable[..., TextClassificationDataModule]


def write(path: Path, size: int, **columns: Callable[[int], Any]) -> str:
    """A JSONL of so many rows, each text another."""
    columns = {"text": text, "label": lambda row: "ab"[row % 2], **columns}
    rows = [{name: value(row) for name, value in columns.items()} for row in range(size)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def text(row: int) -> str:
    words = CORPUS[row % len(CORPUS)].split()
    return f"{' '.join(words[: 1 + row % len(words)])} {row}"


@pytest.fixture
def make(bert: str, tmp_path: Path) -> Make:
    """A data module over 20 training rows, unless told otherwise."""
    train = write(tmp_path / "train.jsonl", 20)

    def module(**arguments: Any) -> TextClassificationDataModule:
        return TextClassificationDataModule(bert, **{"train": train, "batch_size": 4, **arguments})

    return module


def texts(module: TextClassificationDataModule, split: base.Split) -> list[str]:
    return list(module.tables[split]["text"])


def given(module: TextClassificationDataModule, stage: str = "fit") -> TextClassificationDataModule:
    module.setup(stage)
    return module


# Splits


@pytest.mark.parametrize(
    ("rows", "fraction", "held_out"),
    [(20, 0.1, 2), (20, 0.25, 5), (7, 0.5, 4), (3, 0.01, 1), (3, 0.99, 2), (2, 0.5, 1)],
)
def test_a_share_of_the_training_rows_is_held_out_to_validate(
    make: Make, tmp_path: Path, rows: int, fraction: float, held_out: int
) -> None:
    module = given(make(train=write(tmp_path / "t.jsonl", rows), val_fraction=fraction))
    train, val = texts(module, "train"), texts(module, "val")
    assert len(val) == held_out
    assert not set(train) & set(val)
    assert sorted(train + val) == sorted(map(text, range(rows)))


def test_the_held_out_share_is_drawn_by_the_seed_and_nothing_else(make: Make) -> None:
    drawn = [tuple(texts(given(make(val_fraction=0.3, seed=seed)), "val")) for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3
    torch.manual_seed(99)
    assert tuple(texts(given(make(val_fraction=0.3, seed=0, batch_size=7)), "val")) == drawn[0]
    assert tuple(texts(given(make(val_fraction=0.3, seed=0), "validate"), "val")) == drawn[0]


def test_with_validation_data_all_training_rows_are_trained_on(make: Make, tmp_path: Path) -> None:
    module = given(make(val=write(tmp_path / "val.jsonl", 3)))
    assert texts(module, "train") == [text(row) for row in range(20)]
    assert texts(module, "val") == [text(row) for row in range(3)]


def test_one_training_row_can_not_be_split(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^data: one training row can't be split in two; give --data.val FILE$"):
        make(limit=1).setup("fit")
    with pytest.raises(ConfigError, match="one training row"):
        make(limit=1).prepare_data()


@pytest.mark.parametrize("split", ["train", "val", "test", "predict"])
def test_who_asks_for_batches_first_needs_no_setup(split: str, make: Make, tmp_path: Path) -> None:
    source = write(tmp_path / "own.jsonl", 6)
    module = make(**{"train": source, split: source})
    assert sum(len(batch["row"]) for batch in getattr(module, f"{split}_dataloader")()) == (
        5 if split == "train" else 6
    )


@pytest.mark.parametrize("stage", ["test", "predict"])
def test_a_split_without_a_source_is_asked_for(make: Make, stage: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make().setup(stage)
    assert str(caught.value) == f"data.{stage}: there is no {stage} data; give --data.{stage} FILE"


def test_validation_data_is_asked_for_where_there_is_none_to_hold_out_either(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"^data.val: there is no val data; give --data.val FILE$"):
        make(train=None, labels=["a", "b"]).setup("validate")


def test_every_row_knows_its_file_and_line(make: Make) -> None:
    module = given(make())
    for split in ("train", "val"):
        for row in module.tables[split]:
            line = int(row["text"].split()[-1]) + 1
            assert row["where"].endswith(f"train.jsonl, line {line}")


def test_a_broken_row_is_named_by_its_file_and_line(make: Make, tmp_path: Path) -> None:
    source = write(tmp_path / "broken.jsonl", 5, label=lambda row: "aabbc"[row])
    with pytest.raises(DataError) as caught:
        make(test=source, labels=["a", "b"]).setup("test")
    assert str(caught.value).startswith(f"{source}, line 5: label 'c' is not one of a, b")


# What is read


def test_several_sources_and_globs_are_read_in_turn(make: Make, tmp_path: Path) -> None:
    for name, size in (("x1.jsonl", 2), ("x2.jsonl", 1), ("y.jsonl", 3)):
        write(tmp_path / name, size, text=lambda row, name=name: f"{name} {row}")
    module = given(make(test=[str(tmp_path / "y.jsonl"), str(tmp_path / "x*.jsonl")]), "test")
    assert texts(module, "test") == [
        "y.jsonl 0",
        "y.jsonl 1",
        "y.jsonl 2",
        "x1.jsonl 0",
        "x1.jsonl 1",
        "x2.jsonl 0",
    ]


def test_columns_are_renamed_and_joined(make: Make, tmp_path: Path) -> None:
    source = write(
        tmp_path / "news.jsonl",
        4,
        title=lambda row: f"Title {row}",
        body=lambda row: f"body {row}" if row else " ",
        stars=lambda row: row % 2,
    )
    module = given(make(train=source, val=source, columns={"text": ["title", "body"], "label": "stars"}), "fit")
    assert texts(module, "train") == ["Title 0", "Title 1 body 1", "Title 2 body 2", "Title 3 body 3"]
    assert module.labels == ["0", "1"]


def test_a_file_without_a_header_is_read_by_the_names_given(make: Make, tmp_path: Path) -> None:
    (tmp_path / "plain.csv").write_text("a,1 one\nb,2 two\n")
    module = given(make(test=str(tmp_path / "plain.csv"), column_names=["label", "text"], labels=["a", "b"]), "test")
    assert texts(module, "test") == ["1 one", "2 two"]


# Limits


def test_a_limit_draws_rows_in_their_order_by_the_seed(make: Make) -> None:
    drawn = [
        texts(given(make(limit=8, val_fraction=0.5, test=make().sources["train"], seed=seed), "test"), "test")
        for seed in (0, 0, 1)
    ]
    numbers = [[int(each.split()[-1]) for each in some] for some in drawn]
    assert [len(some) for some in numbers] == [8, 8, 8]
    assert all(some == sorted(set(some)) for some in numbers)
    assert numbers[0] == numbers[1] != numbers[2]
    assert numbers[0] != list(range(8)), "not the beginning of a file that may be sorted by label"


def test_a_limit_counts_the_held_out_rows_too(make: Make) -> None:
    module = given(make(limit=10, val_fraction=0.3))
    assert (len(module.tables["train"]), len(module.tables["val"])) == (7, 3)


def test_a_limit_beyond_the_file_takes_all(make: Make) -> None:
    module = given(make(limit=1_000, val_fraction=0.5))
    assert sorted(texts(module, "train") + texts(module, "val")) == sorted(map(text, range(20)))


def test_the_labels_are_those_of_the_whole_file_whatever_the_limit(make: Make, tmp_path: Path) -> None:
    source = write(tmp_path / "rare.jsonl", 20, label=lambda row: "rare" if row == 19 else "ab"[row % 2])
    assert make(train=source, limit=2).labels == ["a", "b", "rare"]


def test_rows_that_are_named_twice_come_once(make: Make) -> None:
    module = make()
    module.prepare_data()
    assert module.rows("train", [2, 0, 2]).rows == [2, 0]


def test_every_item_is_drawn_with_equal_chance() -> None:
    draws = 4_000
    counts = Counter(item for seed in range(draws) for item in sample(range(10), 3, seed))
    # Binomial with p = 0.3: four standard deviations are 0.029.
    assert all(abs(counts[item] / draws - 0.3) < 0.03 for item in range(10)), counts


# The cache


@pytest.fixture
def no_encoding(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def forbid() -> None:
        def encode(*_: Any, **__: Any) -> None:
            raise AssertionError("tokenised again")

        monkeypatch.setattr(text_classification, "encode", encode)

    return forbid


def test_a_source_is_tokenised_once(make: Make, no_encoding: Callable[[], None]) -> None:
    first = given(make())
    no_encoding()
    second = given(make(batch_size=9, max_tokens=50, num_workers=3, val_fraction=0.3, seed=4))
    assert sorted(texts(second, "train") + texts(second, "val")) == sorted(texts(first, "train") + texts(first, "val"))


@pytest.mark.parametrize(("largest", "size"), [(2**16 - 1, 2), (2**16, 4)])
def test_a_token_takes_two_bytes_unless_there_are_too_many(
    largest: int, size: int, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make()
    monkeypatch.setattr(type(data.tokenizer), "get_vocab", lambda _: {"a": 0, "b": largest})
    tokenise = data.tokenise
    tokens = [[0, largest]]
    monkeypatch.setattr(
        data, "tokenise", lambda rows, split: {**tokenise(rows, split), "input_ids": [tokens] * len(rows)}
    )
    table = given(data).tables["train"]
    assert table[0]["input_ids"] == tokens
    assert table.data.schema.field("input_ids").type.value_type.value_type.bit_width == 8 * size


def test_the_cache_is_prepared_before_it_is_opened(make: Make, cache: Path, no_encoding: Callable[[], None]) -> None:
    make(test=make().sources["train"]).prepare_data()
    no_encoding()
    given(make())
    given(make(test=make().sources["train"]), "test")


@pytest.mark.filterwarnings("ignore:train. 9 of 18 texts are longer")
@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 9},
        {"labels": ["b", "a"]},
        {"labels": {"a": "x", "b": "y"}},
        {"columns": {"text": "label"}},
        {"limit": 5},
        {"limit": 5, "seed": 1},
        {"doc_stride": 2},
        {"problem_type": "multi_label"},
        {"problem_type": "multi_label", "label_separator": ","},
    ],
)
def test_what_changes_a_table_gives_a_new_one(make: Make, cache: Path, change: dict[str, Any]) -> None:
    given(make())
    given(make(limit=5))
    before = set(cache.iterdir())
    given(make(**change))
    assert len(set(cache.iterdir()) - before) == (0 if change == {"limit": 5} else 1)


def test_a_changed_file_gives_a_new_table(make: Make, tmp_path: Path) -> None:
    source = write(tmp_path / "t.jsonl", 4)
    given(make(train=source))
    write(tmp_path / "t.jsonl", 4, label=lambda row: "ba"[row % 2])
    os.utime(source, ns=(1, 1))
    assert list(given(make(train=source, val=source)).tables["train"]["label"]) == [1, 0, 1, 0]


def test_another_backbone_gives_a_new_table(make: Make, cache: Path, roberta: str) -> None:
    source = make().sources["train"]
    given(make())
    given(TextClassificationDataModule(roberta, train=source))
    assert len(list(cache.glob("*.arrow"))) == 2


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_run_leaves_no_table(
    make: Make, cache: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    monkeypatch.setattr(base, "_ROWS_AT_ONCE", 8)
    tokenise, chunks = TextClassificationDataModule.tokenise, []

    def interrupted(self: Any, rows: Any, split: Any) -> Any:
        chunks.append(len(rows))
        if len(chunks) == 3:
            raise failure
        return tokenise(self, rows, split)

    with monkeypatch.context() as patch:
        patch.setattr(TextClassificationDataModule, "tokenise", interrupted)
        with pytest.raises(failure):
            given(make())
    assert chunks == [8, 8, 4]
    assert list(cache.iterdir()) == []
    assert len(given(make(val_fraction=0.5)).tables["train"]) == 10


def test_a_broken_row_leaves_no_table(make: Make, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "a", "label": "a"}\n{"text": "b"}\n')
    with pytest.raises(DataError):
        given(make(test=str(tmp_path / "t.jsonl"), labels=["a", "b"]), "test")
    assert list(cache.iterdir()) == []


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LIT_NLP_CACHE", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x"
    monkeypatch.setenv("LIT_NLP_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "lit_nlp"


# Truncation


def test_truncated_texts_are_counted_for_each_split(make: Make, tmp_path: Path) -> None:
    long = {3, 4, 11}
    source = write(tmp_path / "t.jsonl", 20, text=lambda row: f"good {row} " + "film " * (20 if row in long else 1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = given(make(train=source, test=source, max_length=12, val_fraction=0.5), "fit")
        module.setup("test")
    of_train = sum(int(each.split()[1]) in long for each in texts(module, "train"))
    expected = {"train": (of_train, 10), "val": (3 - of_train, 10), "test": (3, 20)}
    said = [str(warning.message) for warning in caught if "truncated" in str(warning.message)]
    assert said == [
        f"{split}: {count} of {size} texts are longer than max_length=12 tokens and were truncated;"
        " set doc_stride to split them into windows instead."
        for split, (count, size) in expected.items()
        if count
    ]


def test_texts_that_fit_or_are_split_into_windows_are_not_reported(make: Make) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        given(make())
        given(make(max_length=7, doc_stride=1))


# Batches


def by_row(batches: Any) -> dict[int, list[int]]:
    """Row -> its tokens, without padding; each row comes once."""
    found: dict[int, list[int]] = {}
    for batch in batches:
        for row, tokens, mask in zip(
            batch["row"].tolist(), batch["input_ids"], batch["attention_mask"].bool(), strict=True
        ):
            assert row not in found
            found[row] = tokens[mask].tolist()
    return found


@pytest.mark.parametrize("num_workers", [0, 2])
def test_without_a_trainer_all_splits_that_have_a_source_can_be_opened(
    make: Make, tmp_path: Path, num_workers: int
) -> None:
    sources: dict[str, Any] = {split: write(tmp_path / f"{split}.jsonl", 9) for split in ("val", "test", "predict")}
    module = make(num_workers=num_workers, **sources)
    module.prepare_data()
    module.setup()
    loaders = {"train": module.train_dataloader, "val": module.val_dataloader}
    loaders |= {"test": module.test_dataloader, "predict": module.predict_dataloader}
    for split, loader in loaders.items():
        tokens = by_row(loader())
        expected = [module.tokenizer(each)["input_ids"] for each in texts(module, split)]
        assert [tokens[row] for row in range(len(tokens))] == expected, "`row` is the place in the file"


def test_a_stage_opens_what_it_needs(make: Make) -> None:
    module = make(test=make().sources["train"])
    module.setup("test")
    assert set(module.tables) == {"test"}
    module.setup("fit")
    assert set(module.tables) == {"test", "train", "val"}
    opened = module.tables["train"]
    module.setup("fit")
    assert module.tables["train"] is opened


@pytest.mark.parametrize(
    ("verb", "prepared"),
    [(TrainerFn.FITTING, ["train"]), (TrainerFn.VALIDATING, ["train"]), (TrainerFn.TESTING, ["test"])],
)
def test_with_a_trainer_only_what_its_verb_needs_is_prepared(
    make: Make, monkeypatch: pytest.MonkeyPatch, verb: TrainerFn, prepared: list[str]
) -> None:
    module = make(test=make().sources["train"], predict="not there.jsonl")
    module.trainer = SimpleNamespace(state=SimpleNamespace(fn=verb))  # type: ignore[assignment]
    tokenised = []
    tokenise = module.tokenise
    monkeypatch.setattr(module, "tokenise", lambda rows, split: tokenised.append(split) or tokenise(rows, split))
    module.prepare_data()
    assert tokenised == prepared


def test_the_training_order_is_another_each_epoch_and_seed(make: Make) -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        batches = given(make(seed=seed, val=make().sources["train"])).train_dataloader()
        batches.sampler.set_epoch(epoch)
        return tuple(by_row(batches))

    assert order(0, 0) == order(0, 0)
    assert len({order(seed, epoch) for seed in range(2) for epoch in range(2)}) == 4


def test_evaluation_begins_with_the_longest_and_is_the_same_each_time(make: Make) -> None:
    module = given(make(test=make().sources["train"]), "test")
    once, again = (by_row(module.test_dataloader()) for _ in range(2))
    assert list(once) == list(again)
    lengths = [len(tokens) for tokens in once.values()]
    assert lengths[0] == max(lengths)


def test_a_budget_of_tokens_bounds_the_batches(make: Make) -> None:
    module = given(make(test=make().sources["train"], batch_size=20, max_tokens=48), "test")
    batches = list(module.test_dataloader())
    assert all(batch["input_ids"].numel() <= 48 for batch in batches)
    assert len(by_row(batches)) == 20


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_each_process_gets_its_share(make: Make, stage: str) -> None:
    shares = []
    for rank in range(3):
        module = make(test=make().sources["train"], val=make().sources["train"])
        state = SimpleNamespace(fn=stage, status=TrainerStatus.FINISHED)
        module.trainer = SimpleNamespace(global_rank=rank, world_size=3, state=state)  # type: ignore[assignment]
        module.setup(stage)
        shares.append(by_row(module.train_dataloader() if stage == "fit" else module.test_dataloader()))
    assert set().union(*shares) == set(range(20))
    if stage == "test":
        assert sum(map(len, shares)) == 20


# The module that batches are for


def test_a_module_that_numbers_labels_otherwise_is_refused(make: Make, bert: str) -> None:
    data = make(predict=make().sources["train"])
    inverted = TextClassificationModule(bert, labels=["b", "a"])
    told = "data.labels: the data has ['a', 'b'], the module ['b', 'a']; give the module labels=data.labels"
    for run in plain_trainer().fit, plain_trainer().validate:
        with pytest.raises(ConfigError) as caught:
            run(inverted, datamodule=data)
        assert str(caught.value) == told
    # The trainer is done, and whom the data is for now is unknown.
    data.setup("fit")
    # Rows to predict have no labels, and the data needn't know any.
    unlabelled = TextClassificationDataModule(bert, predict=data.sources["train"])
    assert plain_trainer().predict(inverted, datamodule=unlabelled)


@pytest.mark.parametrize(
    ("labels", "refused"),
    [
        (["b", "a"], True),
        (["c", "a"], True),
        (["a", "c", "b"], True),
        (["a", "b", "c"], False),
        (["a", "c"], False),
        (["good", "bad"], False),
    ],
)
def test_labels_are_refused_where_one_stands_elsewhere(make: Make, bert: str, labels: list[str], refused: bool) -> None:
    module = TextClassificationModule(bert, labels=labels)
    with pytest.raises(ConfigError, match=r"^data.labels") if refused else nullcontext():
        make().check_module(module)


def test_labels_must_be_as_many_as_the_data_has_and_of_one_problem(make: Make, bert: str) -> None:
    data = make(labels=["a", "b", "c"])
    with pytest.raises(ConfigError, match=r"the data has \['a', 'b', 'c'\], the module \['x', 'y'\]"):
        data.check_module(TextClassificationModule(bert, labels=["x", "y"]))
    several = TextClassificationModule(bert, labels=["a", "b", "c"], problem_type="multi_label")
    with pytest.raises(ConfigError, match="the data has 'single_label', the module 'multi_label'"):
        data.check_module(several)
    scored = make(problem_type="regression")
    scored.check_module(TextClassificationModule(bert, problem_type="regression", labels=["quality"]))


def test_a_module_of_other_tokens_is_refused(make: Make, bert: str, roberta: str) -> None:
    data, module = make(predict=make().sources["train"]), TextClassificationModule(roberta, labels=["a", "b"])
    for run in plain_trainer().fit, plain_trainer().predict:
        with pytest.raises(ConfigError) as caught:
            run(module, datamodule=data)
        problem = "data.backbone: the module's tokenizer has other tokens"
        assert str(caught.value) == f"{problem}; give both the same backbone"
    more = TextClassificationModule(bert, labels=["a", "b"])
    more.tokenizer.add_tokens(["<new>"])
    data.check_module(more)


def test_a_module_of_another_project_is_asked_nothing(make: Make) -> None:
    class Foreign(LightningModule):
        def __init__(self, backbone: str) -> None:
            super().__init__()
            self.save_hyperparameters()

        labels, tokenizer, problem_type = ["b", "a"], "a teacher's", "single_label_classification"

        def predict_step(self, batch: Any) -> None:
            pass

    assert plain_trainer().predict(Foreign("resnet"), datamodule=make(predict=make().sources["train"]))


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "data: batch_size must be at least 1, got 0"),
        ({"max_tokens": 0}, "data: max_tokens must be at least 1, got 0"),
        ({"val_fraction": 0.0}, "data: val_fraction must lie between 0 and 1, got 0.0"),
        ({"val_fraction": 1.0}, "data: val_fraction must lie between 0 and 1, got 1.0"),
        ({"limit": 0}, "data: limit must be at least 1, got 0"),
        ({"max_length": 0}, "data: max_length must be at least 1, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(make: Make, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(**arguments)
    assert str(caught.value) == message


def test_several_sources_may_be_a_tuple(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a user's Python checks no types
    train = make().sources["train"]
    assert len(given(make(train=(train, train), val=train)).tables["train"]) == 40


@pytest.mark.parametrize("name", ["backbone", "train", "predict"])
def test_a_path_in_place_of_a_string_is_refused(make: Make, bert: str, name: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a user's Python checks no types
    for given in (Path("a.csv"), [Path("a.csv")]):
        with pytest.raises(ConfigError) as caught:
            TextClassificationDataModule(**{"backbone": bert, name: given})
        assert str(caught.value).startswith(f"data.{name}: expected a string, got ")


def test_no_more_tokens_can_be_asked_for_than_the_backbone_reads(make: Make) -> None:
    assert make().max_length == make().facts["max_length"] == 64
    assert make(max_length=9).facts["max_length"] == 9
    with pytest.raises(ConfigError, match="max_length is 65, but the backbone reads at most 64 tokens"):
        given(make(max_length=65))


def test_who_goes_on_with_other_rows_is_told(make: Make, recwarn: pytest.WarningsRecorder) -> None:
    def loading(module: TextClassificationDataModule, verb: TrainerFn) -> TextClassificationDataModule:
        module.trainer = SimpleNamespace(state=SimpleNamespace(fn=verb))
        return module

    module = given(make())
    loading(module, TrainerFn.FITTING).load_state_dict(module.state_dict())
    loading(given(make(limit=10)), TrainerFn.TESTING).load_state_dict(module.state_dict())
    assert not [each for each in recwarn if "was trained on" in str(each.message)]
    with pytest.warns(UserWarning, match=r"^train: the run was trained on 18 rows before, these are 9; is it the same"):
        loading(given(make(limit=10)), TrainerFn.FITTING).load_state_dict(module.state_dict())
