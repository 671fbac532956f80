"""Explanations appear while a run goes on, of the texts that were asked for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from lit_nlp import (
    AttributionCallback,
    QuestionAnsweringDataModule,
    QuestionAnsweringModule,
    TextClassificationDataModule,
    TextClassificationModule,
    TranslationDataModule,
    TranslationModule,
)
from lit_nlp.errors import ConfigError
from tests.backbones import CORPUS
from tests.contract import plain_trainer, write_rows
from tests.modules.fitting import Watcher
from tests.translators import save_marian

LABELS = ["cold", "hot"]


@pytest.fixture
def data(bert: str, tmp_path: Path) -> TextClassificationDataModule:
    rows = [{"text": text, "label": LABELS[i % 2]} for i, text in enumerate(CORPUS)]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    return TextClassificationDataModule(bert, train=source, val=source, test=source, batch_size=4, max_length=32)


@pytest.fixture(scope="session")
def marian(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_marian(tmp_path_factory.mktemp("marian"))


def explained(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "attributions.jsonl").read_text().splitlines()]


def callback(folder: Path, **arguments: Any) -> AttributionCallback:
    return AttributionCallback(str(folder), options={"method": "input_x_gradient"}, **arguments)


def test_reports_stand_in_the_folder_after_every_nth_epoch_and_at_the_end(bert: str, data: Any, tmp_path: Path) -> None:
    module = TextClassificationModule(bert, labels=LABELS)
    trainer = plain_trainer(max_epochs=4, callbacks=[callback(tmp_path / "run", every_n_epochs=2, limit=3)])
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    written = {path.parent.name for path in (tmp_path / "run" / "attributions").glob("*/index.html")}
    assert written == {"epoch-2-step-4", "epoch-4-step-8", "fit", "test"}
    for name in written:
        rows = explained(tmp_path / "run" / "attributions" / name)
        assert len(rows) == 3
        assert all(row["text"] in CORPUS and row["label"] in LABELS for row in rows)


def test_the_texts_are_those_of_the_rows_that_were_named(bert: str, data: Any, tmp_path: Path) -> None:
    module = TextClassificationModule(bert, labels=LABELS)
    plain_trainer(callbacks=[callback(tmp_path, select=[4, 1])]).test(module, data, verbose=False)
    found = explained(tmp_path / "attributions/test")
    assert [(row["row"], row["text"]) for row in found] == [(4, CORPUS[4]), (1, CORPUS[1])]
    with pytest.raises(ConfigError, match=r"data\.test: test has rows 0 to 5, but no row 9"):
        plain_trainer(callbacks=[callback(tmp_path, select=[9])]).test(module, data, verbose=False)


def test_the_most_wrong_are_told_the_surest_first(bert: str, data: Any, tmp_path: Path) -> None:
    module = TextClassificationModule(bert, labels=LABELS)
    said = {one.text: one for one in module.predict_texts(CORPUS)}
    given = {text: LABELS[i % 2] for i, text in enumerate(CORPUS)}
    wrong = [text for text in CORPUS if said[text].label != given[text]]
    wrong.sort(key=lambda text: -said[text].probability)
    plain_trainer(callbacks=[callback(tmp_path, select="wrong", limit=2)]).test(module, data, verbose=False)
    assert [row["text"] for row in explained(tmp_path / "attributions/test")] == wrong[:2]
    told = json.loads((tmp_path / "attributions/test/report.json").read_text())
    assert told["title"] == "Where the model was most wrong: test"
    assert told["facts"]["Taken from"] == "test, the 2 most wrong of 6 rows"
    assert told["facts"]["Explained"] == "what the model says"


def test_a_run_goes_on_where_nothing_is_wrong(bert: str, tmp_path: Path) -> None:
    module = TextClassificationModule(bert, labels=LABELS)
    rows = [{"text": each.text, "label": each.label} for each in module.predict_texts(CORPUS)]
    source = write_rows(tmp_path / "right.jsonl", rows)
    data = TextClassificationDataModule(bert, test=source, labels=LABELS, batch_size=4, max_length=32)
    with pytest.warns(UserWarning, match="no report of test: none of the texts is wrong"):
        plain_trainer(callbacks=[callback(tmp_path, select="wrong")]).test(module, data, verbose=False)


def test_a_run_goes_on_where_a_word_is_not_written(marian: str, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "pairs.jsonl", [{"source": text, "target": text} for text in CORPUS])
    data = TranslationDataModule(marian, test=source, batch_size=4, max_length=32)
    watcher = AttributionCallback(str(tmp_path), options={"method": "saliency", "target": "nowhere"})
    with pytest.warns(UserWarning, match="no report of test: target: no.*was written"):
        plain_trainer(callbacks=[watcher]).test(TranslationModule(marian, max_new_tokens=5), data, verbose=False)


def test_the_most_wrong_answers_and_translations_are_explained(bert: str, marian: str, tmp_path: Path) -> None:
    asked = [
        {"id": str(i), "question": "why", "context": text, "answers": [{"text": text[:5], "answer_start": 0}]}
        for i, text in enumerate(CORPUS)
    ]
    questions = QuestionAnsweringDataModule(bert, test=write_rows(tmp_path / "asked.jsonl", asked))
    module = QuestionAnsweringModule(bert)
    sources = write_rows(tmp_path / "pairs.jsonl", [{"source": text, "target": text} for text in CORPUS])
    translations = TranslationDataModule(marian, test=sources, batch_size=4, max_length=32)
    translator = TranslationModule(marian, max_new_tokens=5)
    translator.model.final_logits_bias[0, translator.tokenizer("film").input_ids[0]] = 100.0  # so that it writes
    for one, data in (module, questions), (translator, translations):
        folder = tmp_path / type(one).__name__
        plain_trainer(callbacks=[callback(folder, select="wrong", limit=2)]).test(one, data, verbose=False)
        given = data.drawn("test", 9)
        worst = [given.rows[i] for i in one.most_wrong(given.texts, given.given)[:2]]
        assert {row["row"] for row in explained(folder / "attributions/test")} == set(worst)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"options": {"layer": "a"}}, "layer: integrated_gradients has no use for layer"),
        (
            {"options": {"metod": "lime"}},
            "AttributionCallback.options: 'metod' is not one of ",
        ),
    ],
)
def test_what_it_cannot_do_is_told_when_it_is_made(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        AttributionCallback(**arguments)
    assert str(raised.value).startswith(message)


def test_what_a_run_cannot_give_is_told_before_its_first_step(bert: str, data: Any, tmp_path: Path) -> None:
    classes = TextClassificationModule(bert, labels=LABELS)
    with pytest.raises(ConfigError, match="AttributionCallback: explanations need texts"):
        plain_trainer(callbacks=[callback(tmp_path)]).fit(classes, DataLoader([]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"select": [9]}, "9"),
        ({"options": {"target": "nonsense"}}, "nonsense"),
        ({"options": {"target": "hot", "contrast": "hot"}}, "can't be told apart from itself"),
        ({"options": {"method": "layer_integrated_gradients", "layer": "model.nope"}}, "no layer 'model.nope'"),
        ({"options": {"method": "attention", "head": 77}}, "77"),
        ({"options": {"baseline": "zero"}}, "zero"),
    ],
)
def test_what_a_model_cannot_give_is_told_before_its_first_step(
    arguments: dict[str, Any], message: str, bert: str, data: Any, tmp_path: Path
) -> None:
    module, steps = TextClassificationModule(bert, labels=LABELS), list[int]()
    watcher = Watcher(on_train_batch_start=lambda module: steps.append(module.global_step))
    with pytest.raises(ConfigError, match=message):
        plain_trainer(callbacks=[AttributionCallback(str(tmp_path), **arguments), watcher]).fit(module, data)
    assert not steps


def test_tensorboard_shows_words_whose_markup_is_text(bert: str, tmp_path: Path) -> None:
    rows = [{"text": f"<b>film</b> | {text}", "label": LABELS[i % 2]} for i, text in enumerate(CORPUS)]
    source = write_rows(tmp_path / "marked.jsonl", rows)
    data = TextClassificationDataModule(bert, train=source, test=source, batch_size=4, max_length=32)
    logger = TensorBoardLogger(str(tmp_path / "logs"))
    module = TextClassificationModule(bert, labels=LABELS)
    plain_trainer(callbacks=[callback(tmp_path, limit=2)], logger=logger).test(module, data, verbose=False)
    events = EventAccumulator(logger.log_dir).Reload()
    (tag,) = events.Tags()["tensors"]
    (text,) = events.Tensors(tag)[0].tensor_proto.string_val
    assert "attributions/test" in tag
    assert "<b>" not in text.decode()
    assert "film" in text.decode()


def test_a_fit_goes_on_as_if_nobody_had_asked(bert: str, data: Any, tmp_path: Path) -> None:
    ends = []
    for callbacks in [], [callback(tmp_path, limit=2)]:
        torch.manual_seed(0)
        module = TextClassificationModule(bert, labels=LABELS)
        plain_trainer(max_epochs=2, callbacks=callbacks).fit(module, data)
        ends.append([weight.tolist() for weight in module.parameters()])
    assert ends[0] == ends[1]
