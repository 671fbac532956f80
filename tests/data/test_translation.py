import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_nlp import TranslationDataModule
from lit_nlp.errors import ConfigError, DataError
from tests import language_models, translators
from tests.backbones import CORPUS
from tests.contract import write_rows
from tests.translators import GERMAN

Make = Callable[..., TranslationDataModule]


@pytest.fixture(scope="session")
def marian(tmp_path_factory: pytest.TempPathFactory) -> str:
    return translators.save_marian(tmp_path_factory.mktemp("marian"))


@pytest.fixture
def make(marian: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.chdir(tmp_path)
    rows = [{"source": source, "target": target} for source, target in zip(CORPUS, GERMAN, strict=True)]
    write_rows(Path("rows.jsonl"), rows)

    def data(backbone: str = marian, **arguments: Any) -> TranslationDataModule:
        source = arguments.pop("source", "rows.jsonl")
        return TranslationDataModule(
            backbone, **{"train": source, "val": source, "batch_size": 4, "max_length": 48, **arguments}
        )

    return data


def table(module: TranslationDataModule) -> list[dict[str, Any]]:
    module.setup("fit")
    return list(module.tables["train"])


def texts(module: TranslationDataModule) -> list[tuple[str, str]]:
    return [(row["source"], row["target"]) for row in table(module)]


PAIRS = list(zip(CORPUS, GERMAN, strict=True))

# Sources


def write_aligned(source: list[str], target: list[str]) -> str:
    Path("train.en").write_text("".join(f"{line}\n" for line in source))
    Path("train.de").write_text("".join(f"{line}\n" for line in target))
    return "train.{en,de}"


def test_two_files_of_aligned_lines(make: Make) -> None:
    module = make(source=write_aligned(CORPUS, GERMAN))
    assert texts(module) == PAIRS
    assert table(module)[3]["where"] == "train.{en,de}, line 4"


def test_the_order_in_the_braces_is_that_of_source_and_target(make: Make) -> None:
    write_aligned(CORPUS, GERMAN)
    assert texts(make(source="train.{de,en}")) == [(german, english) for english, german in PAIRS]


def test_files_of_different_length_are_not_aligned(make: Make) -> None:
    with pytest.raises(DataError) as raised:
        table(make(source=write_aligned(CORPUS, GERMAN[:4])))
    assert str(raised.value) == (
        "train.de: it ends after 4 lines, and train.en has more; give two files whose lines belong together"
    )


def test_a_missing_half_is_named(make: Make) -> None:
    Path("train.en").write_text("a\n")
    with pytest.raises(DataError, match=r"train\.de: no such file"):
        table(make(source="train.{en,de}"))


def test_a_changed_half_is_read_anew(make: Make) -> None:
    assert texts(make(source=write_aligned(CORPUS, GERMAN)))[0] == PAIRS[0]
    assert texts(make(source=write_aligned(CORPUS, GERMAN[::-1])))[0] == (CORPUS[0], GERMAN[-1])


def test_columns_of_a_table_under_other_names(make: Make) -> None:
    Path("rows.tsv").write_text("english\tdeutsch\n" + "".join(f"{e}\t{g}\n" for e, g in PAIRS))
    assert texts(make(source="rows.tsv", columns={"source": "english", "target": "deutsch"})) == PAIRS


@pytest.mark.parametrize("columns", [{"source": "translation.en", "target": "translation.de"}, None])
def test_nested_translations_as_the_hub_keeps_them(make: Make, columns: dict[str, Any] | None) -> None:
    write_rows(Path("wmt.jsonl"), [{"translation": {"en": english, "de": german}} for english, german in PAIRS])
    assert texts(make(source="wmt.jsonl", columns=columns, source_lang="en", target_lang="de")) == PAIRS


def test_nested_translations_whose_languages_nobody_named_are_told(make: Make) -> None:
    write_rows(Path("wmt.jsonl"), [{"translation": {"en": english, "de": german}} for english, german in PAIRS])
    with pytest.raises(ConfigError) as raised:
        table(make(source="wmt.jsonl"))
    assert str(raised.value) == (
        "data.train: the rows hold translations under en, de; name two with data.source_lang and data.target_lang"
    )


def test_a_file_of_lines_is_there_to_be_translated(make: Make) -> None:
    Path("new.txt").write_text("good\na bad film\n")
    module = make(predict="new.txt")
    module.setup("predict")
    assert module.tables["predict"]["source"][:] == ["good", "a bad film"]


def test_a_nested_language_that_is_missing_is_named_with_its_line(make: Make) -> None:
    write_rows(Path("wmt.jsonl"), [{"translation": {"en": "a", "de": "b"}}, {"translation": {"en": "a"}}])
    with pytest.raises(DataError, match=r"wmt.jsonl, line 2: no column 'translation.de' among translation"):
        table(make(source="wmt.jsonl", columns={"source": "translation.en", "target": "translation.de"}))


def test_rows_to_predict_need_no_target(make: Make) -> None:
    write_rows(Path("new.jsonl"), [{"source": "good"}, {"source": "a bad film"}])
    module = make(predict="new.jsonl")
    module.setup("predict")
    (batch,) = module.predict_dataloader()
    assert "labels" not in batch
    assert sorted(batch["source"]) == ["a bad film", "good"]


# Pairs that can hardly be pairs


def test_empty_and_lopsided_pairs_are_counted_and_stay(make: Make) -> None:
    rows = [("good", "gut"), ("good", ""), ("a", "ein sehr langer Satz"), ("", "")]
    source = write_aligned(*(list(side) for side in zip(*rows, strict=True)))
    with pytest.warns(UserWarning, match=r"train: 3 of 4 pairs .* 9 times .* line 2; data.drop_suspect"):
        assert texts(make(source=source)) == rows


def test_suspect_pairs_are_dropped_from_training_where_asked_for(make: Make) -> None:
    source = write_aligned(["good", "good", "bad"], ["gut", "", "schlecht"])
    module = make(source=source, drop_suspect=True)
    with pytest.warns(UserWarning, match="1 of 3 pairs .* they are left out"):
        assert texts(module) == [("good", "gut"), ("bad", "schlecht")]
    assert len(module.tables["val"]) == 3


# Batches


def only_batch(module: TranslationDataModule, split: str = "val") -> dict[str, Any]:
    module.setup("fit")
    (batch,) = module.val_dataloader() if split == "val" else module.train_dataloader()
    return batch


def test_labels_are_the_target_and_padded_with_what_the_loss_leaves_out(make: Make) -> None:
    module = make(batch_size=6)
    batch = only_batch(module)
    for i, row in enumerate(batch["row"].tolist()):
        labels: Tensor = batch["labels"][i]
        assert module.pairs.decode(labels[labels != -100].tolist()) == GERMAN[row]
        assert (labels[labels != -100][-1], set(labels[len(labels[labels != -100]) :].tolist())) in [
            (0, {-100}),
            (0, set()),
        ]
        assert (batch["source"][i], batch["target"][i]) == PAIRS[row]
    assert (batch["labels"] == -100).any()


def test_a_decoders_loss_is_on_the_target_alone(make: Make, llama: str) -> None:
    module = make(llama, batch_size=6, max_length=64, prompt="{source} =>")
    batch = only_batch(module)
    for ids, mask, labels, row in zip(
        batch["input_ids"], batch["attention_mask"], batch["labels"], batch["row"].tolist(), strict=True
    ):
        on = labels != -100
        prompt, target = (table(module)[row][name] for name in ("source_ids", "target_ids"))
        assert ids[mask.bool() & ~on].tolist() == prompt
        assert module.tokenizer.decode(prompt).endswith(" =>")
        assert CORPUS[row].startswith(module.tokenizer.decode(prompt).removesuffix(" =>"))
        assert len(prompt) > 8
        assert torch.equal(labels[on], ids[on])
        assert ids[on].tolist() == target
        assert len(target) > 8


def test_training_batches_hold_no_texts(make: Make) -> None:
    assert {"source", "target"}.isdisjoint(only_batch(make(batch_size=6), "train"))


def test_a_budget_of_tokens_counts_both_sides(make: Make) -> None:
    module = make(batch_size=6, max_tokens=90)
    module.setup("fit")
    batches = list(module.train_dataloader())
    assert len(batches) > 1
    assert all(batch["input_ids"].numel() + batch["labels"].numel() <= 90 for batch in batches)


# What the module must know


def test_new_tokens_have_room_beyond_the_longest_target(make: Make) -> None:
    module = make(max_length=64)
    longest = max(len(row["target_ids"]) for row in table(module))
    assert longest < module.facts["max_new_tokens"] <= 64
    assert make(max_target_length=12).facts["max_new_tokens"] == 12
    assert TranslationDataModule(module.backbone, test="rows.jsonl").facts["max_new_tokens"] is None


def test_languages_reach_the_module_and_must_be_known(make: Make, tmp_path_factory: pytest.TempPathFactory) -> None:
    backbone = translators.save_m2m100(tmp_path_factory.mktemp("m2m100"))
    module = make(backbone, source_lang="en", target_lang="de")
    assert module.facts.items() >= {"source_lang": "en", "target_lang": "de"}.items()
    assert all(row["target_ids"][0] == module.tokenizer.get_lang_id("de") for row in table(module))
    with pytest.raises(ConfigError, match="target_lang"):
        table(make(backbone, source_lang="en", target_lang="xx"))


def test_a_prompt_is_read_before_every_source(make: Make, tmp_path_factory: pytest.TempPathFactory) -> None:
    backbone = language_models.save("t5", tmp_path_factory.mktemp("t5"))
    module = make(backbone, prompt="a film {source}")
    rows = table(module)
    assert [row["source"] for row in rows] == [row["source"] for row in table(make(backbone))]
    for row in rows:
        read = module.tokenizer.decode(row["source_ids"], skip_special_tokens=True)
        assert read == f"a film {row['source']}"
    assert module.facts["prompt"] == "a film {source}"


def test_the_data_is_json_in_the_checkpoints_sense(make: Make) -> None:
    module = make()
    assert json.loads(json.dumps(module.facts)) == module.facts


def test_files_and_languages_that_contradict_each_other_are_refused(make: Make) -> None:
    write_aligned(CORPUS, GERMAN)
    with pytest.raises(ConfigError, match=r"data.train: the braces name de first, but the source's language is en"):
        table(make(source="train.{de,en}", source_lang="en", target_lang="de"))
    with pytest.raises(ConfigError, match="source_lang and target_lang are both de"):
        make(source_lang="de", target_lang="de")


def test_two_backbones_with_one_tokenizer_do_not_share_targets(make: Make, llama: str, tmp_path: Path) -> None:
    other = Path(shutil.copytree(llama, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"eos_token_id": 7}))
    ends = [{row["target_ids"][-1] for row in table(make(folder, max_length=64))} for folder in (llama, str(other))]
    assert ends == [{1}, {7}]
