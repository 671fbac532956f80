"""Translation and generative question answering: the loss on a target, and writing one."""

import copy
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from torch import Tensor
from torch.nn import functional as F
from transformers import EncoderDecoderModel, GenerationConfig

from lit_nlp import (
    GenerativeQuestionAnsweringDataModule,
    GenerativeQuestionAnsweringModule,
    TranslationDataModule,
    TranslationModule,
)
from lit_nlp.callbacks.results import ResultsWriter
from lit_nlp.errors import ConfigError
from lit_nlp.metrics.question_answering import f1
from lit_nlp.metrics.translation import SacreMetric
from lit_nlp.pretrained import load_tokenizer
from tests import language_models, translators
from tests.backbones import CORPUS
from tests.contract import Contract, outputs, plain_trainer, rows_of, save, write_rows
from tests.translators import GERMAN


@pytest.fixture(scope="session")
def marian(tmp_path_factory: pytest.TempPathFactory) -> str:
    return translators.save_marian(tmp_path_factory.mktemp("marian"))


@pytest.fixture(scope="session")
def m2m100(tmp_path_factory: pytest.TempPathFactory) -> str:
    return translators.save_m2m100(tmp_path_factory.mktemp("m2m100"))


@pytest.fixture(scope="session")
def mbart(tmp_path_factory: pytest.TempPathFactory) -> str:
    return translators.save_mbart(tmp_path_factory.mktemp("mbart"))


@pytest.fixture(scope="session")
def t5(tmp_path_factory: pytest.TempPathFactory) -> str:
    return language_models.save("t5", tmp_path_factory.mktemp("t5"))


LANGUAGES = {
    "m2m100": {"source_lang": "en", "target_lang": "de"},
    "mbart": {"source_lang": "en_XX", "target_lang": "de_DE"},
}


def translation_data(backbone: str, folder: Path, **arguments: Any) -> TranslationDataModule:
    rows = [{"source": source, "target": target} for source, target in zip(CORPUS, GERMAN, strict=True)]
    source = write_rows(folder / "rows.jsonl", rows)
    sources = dict.fromkeys(("train", "val", "test", "predict"), source)
    return TranslationDataModule(backbone, **{**sources, "batch_size": 4, "max_length": 64, **arguments})


class TextToText(Contract):
    """The contract, where what is said of a row is a text."""

    texts = CORPUS

    def explain(self, module: Any) -> None:
        for text in self.texts:
            batch = {**module.pad([{"input_ids": ids} for ids in module.pairs.sources([text]).ids])}
            labels = module.pairs.targets([text]).ids
            if module.pairs.start is None:
                batch = module.pad([{"input_ids": batch["input_ids"][0].tolist() + labels[0]}])
                labels = [[-100] * (batch["input_ids"].shape[1] - len(labels[0])) + labels[0]]
            with module.attributing():
                logits = module.forward_batch({**batch, "labels": torch.tensor(labels)})
                module.score(logits, torch.tensor([[0, 5]]))

    def test_a_checkpoint_needs_nothing_beside_it(self, backbone: str, datamodule: Any, tmp_path: Path) -> None:
        module = self.module(backbone, datamodule, learning_rate=1e-2)
        trainer = plain_trainer(limit_train_batches=1, limit_val_batches=0)
        trainer.fit(module, datamodule)
        trainer.save_checkpoint(tmp_path / "only.ckpt")
        batch = rows_of(datamodule, [0, 1, 2])
        Path(backbone).rename(tmp_path / "gone")
        assert torch.load(tmp_path / "only.ckpt", weights_only=True)
        loaded = type(module).load_from_checkpoint(tmp_path / "only.ckpt")
        assert torch.equal(outputs(loaded, batch), outputs(module, batch))
        assert self.predict(loaded) == self.predict(module)
        assert dict(loaded.hparams) == dict(module.hparams)
        assert loaded.pairs.sources(self.texts) == module.pairs.sources(self.texts)
        assert loaded.model.generation_config.to_diff_dict() == module.model.generation_config.to_diff_dict()

    def test_a_trainer_predicts_the_same_as_the_module_alone(self, task: Any, datamodule: Any) -> None:
        batches = plain_trainer().predict(task, datamodule)
        assert batches is not None
        by_trainer = sorted((row for batch in batches for row in batch), key=lambda result: result.row)
        assert [(row.source, row.text) for row in by_trainer] == [(row.source, row.text) for row in self.predict(task)]

    def test_a_batch_equals_its_single_rows(self, task: Any, datamodule: Any) -> None:
        batch = rows_of(datamodule, [0, 1, 2])
        assert not batch["attention_mask"].all(), "the rows must differ in length for this to say something"
        together, losses = outputs(task, batch), task.row_losses(outputs(task, batch), batch)
        for row in range(3):
            alone = rows_of(datamodule, [row])
            on = task.target_tokens(alone)[0] != -100
            both = task.target_tokens(batch)[row] != -100
            torch.testing.assert_close(outputs(task, alone)[0][on], together[row][both], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(task.row_losses(outputs(task, alone), alone)[0], losses[row])

    def test_the_score_is_differentiable_to_the_embeddings(self, task: Any, datamodule: Any) -> None:
        batch = rows_of(datamodule, [0, 1, 2])
        seen: list[Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda *call: seen.append(call[-1]) or call[-1].retain_grad())
            for layer in task.embedding_layers()
        ]
        place = (task.target_tokens(batch)[0] != -100).nonzero()[0].item()
        scores = task.eval().score(task.forward_batch(batch), torch.tensor([[place, 5]] * 3))
        assert scores.shape == (3,)
        scores.sum().backward()
        for hook in hooks:
            hook.remove()
        assert len(seen) == len(task.embedding_layers())
        source = seen[0].grad
        assert source is not None
        assert (source.abs().sum(-1) > 0).any(1).all(), "each row's score hangs on its source"
        assert not (source.abs().sum(-1) > 0)[batch["attention_mask"] == 0].any(), "and on no padding"


class TestTranslation(TextToText):
    @pytest.fixture(params=["marian", "t5", "bert", "llama"])
    def backbone(self, request: pytest.FixtureRequest, tmp_path: Path) -> str:
        return str(shutil.copytree(request.getfixturevalue(request.param), tmp_path / "backbone"))

    def data(self, backbone: str, folder: Path) -> TranslationDataModule:
        return translation_data(backbone, folder)

    def module(self, backbone: str, data: Any, **arguments: Any) -> TranslationModule:
        known = {name: fact for name, fact in data.facts.items() if name != "max_new_tokens"}
        return TranslationModule(backbone, **known, max_new_tokens=6, num_beams=2, **arguments)


class TestAnswers(TestTranslation):
    @pytest.fixture(params=["t5", "llama", "mbart"])
    def backbone(self, request: pytest.FixtureRequest, tmp_path: Path) -> str:
        return str(shutil.copytree(request.getfixturevalue(request.param), tmp_path / "backbone"))

    def data(self, backbone: str, folder: Path) -> Any:
        rows = [{"question": question, "answer": answer} for question, answer in zip(CORPUS, GERMAN, strict=True)]
        sources = dict.fromkeys(("train", "val", "test", "predict"), write_rows(folder / "rows.jsonl", rows))
        speaks = json.loads(Path(backbone, "config.json").read_text())["model_type"] == "mbart"
        languages = dict.fromkeys(("source_lang", "target_lang"), "en_XX") if speaks else {}
        return GenerativeQuestionAnsweringDataModule(backbone, **sources, batch_size=4, max_length=64, **languages)

    def module(self, backbone: str, data: Any, **arguments: Any) -> Any:
        known = {name: fact for name, fact in data.facts.items() if name != "max_new_tokens"}
        return GenerativeQuestionAnsweringModule(backbone, **known, max_new_tokens=6, num_beams=2, **arguments)


@pytest.mark.parametrize("other", [{"target_lang": "fr_XX"}, {"prompt": "translate: {source}"}])
def test_a_module_that_writes_another_language_or_reads_another_prompt_is_refused(
    mbart: str, tmp_path: Path, other: dict[str, str]
) -> None:
    data = translation_data(mbart, tmp_path, **LANGUAGES["mbart"])
    data.check_module(TranslationModule(mbart, **LANGUAGES["mbart"]))
    with pytest.raises(ConfigError, match=f"^data.{next(iter(other))}: the data has '"):
        data.check_module(TranslationModule(mbart, **{**LANGUAGES["mbart"], **other}))


# The loss


@pytest.mark.parametrize("kind", ["marian", "t5", "m2m100", "mbart"])
def test_the_loss_is_transformers_own(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    languages = LANGUAGES.get(kind, {})
    data = translation_data(request.getfixturevalue(kind), tmp_path, **languages)
    module = TranslationModule(data.backbone, **data.facts).eval()
    batch = rows_of(data, [0, 1, 2, 3])
    theirs = module.model(**module.inputs(batch), labels=batch["labels"]).loss
    ours = module.row_losses(module.forward_batch(batch), batch).sum() / module.loss_weight(batch)
    torch.testing.assert_close(ours, theirs)


def test_a_decoders_loss_is_that_of_the_target_after_the_prompt(llama: str, tmp_path: Path) -> None:
    data = translation_data(llama, tmp_path)
    module = TranslationModule(llama, **data.facts).eval()
    batch = rows_of(data, [0, 1])
    losses = module.row_losses(module.forward_batch(batch), batch)
    for row in range(2):
        prompt, target = (data.tables["val"][row][name] for name in ("source_ids", "target_ids"))
        logits = module.model(torch.tensor([prompt + target])).logits[0].log_softmax(-1)
        by_hand = -sum(logits[len(prompt) + i - 1, token].item() for i, token in enumerate(target))
        assert losses[row].item() == pytest.approx(by_hand, rel=1e-5)


def test_smoothing_is_torchs_and_leaves_the_measured_loss_alone(marian: str, tmp_path: Path) -> None:
    data = translation_data(marian, tmp_path)
    module = TranslationModule(marian, label_smoothing=0.2, **data.facts).eval()
    batch = rows_of(data, [0, 1, 2])
    logits = module.forward_batch(batch)
    expected = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), label_smoothing=0.2)
    torch.testing.assert_close(module.row_losses(logits, batch).sum() / module.loss_weight(batch), expected)
    (measured,) = plain_trainer().validate(module, data, verbose=False)
    plain = [
        F.cross_entropy(outputs(module, b).flatten(0, 1), b["labels"].flatten(), reduction="sum")
        for b in data.val_dataloader()
    ]
    tokens = sum(int((b["labels"] != -100).sum()) for b in data.val_dataloader())
    assert measured["val/loss"] == pytest.approx(sum(map(float, plain)) / tokens, rel=1e-4)


# Writing


def greedy(module: Any, source: list[int], steps: int) -> list[int]:
    """Write the most probable token again and again, reading all from the start each time."""
    written = [module.pairs.start] + ([module.pairs.first] if module.pairs.first is not None else [])
    forced = module.model.generation_config.forced_eos_token_id is not None
    for step in range(steps):
        if forced and step == steps - 1:
            break  # what stands last is the end, whatever the model says
        logits = module.model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([written])).logits
        written.append(int(logits[0, -1].argmax()))
        if written[-1] == module.pairs.end:
            break
    return written[1:]


@pytest.mark.parametrize("kind", ["marian", "t5", "m2m100", "mbart"])
def test_greedy_writing_is_the_most_probable_token_each_time(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    languages = LANGUAGES.get(kind, {})
    torch.manual_seed(0)
    module = TranslationModule(request.getfixturevalue(kind), num_beams=1, max_new_tokens=7, **languages).eval()
    for text in CORPUS[:3]:
        (source,) = module.pairs.sources([text]).ids
        first = module.pairs.first is not None
        assert module.predict_texts([text])[0].text == module.pairs.decode(greedy(module, source, 7 - first))


def test_a_decoder_writes_the_same_whatever_stands_beside_it_in_the_batch(llama: str) -> None:
    module = TranslationModule(llama, num_beams=1, max_new_tokens=8)
    alone = [module.predict_texts([text])[0].text for text in CORPUS]
    assert [result.text for result in module.predict_texts(CORPUS, batch_size=6)] == alone


def test_a_decoder_does_not_see_the_target_that_it_is_to_write(llama: str, tmp_path: Path) -> None:
    data = translation_data(llama, tmp_path)
    module = TranslationModule(llama, num_beams=1, max_new_tokens=8, prompt=data.prompt, max_length=64).eval()
    data.setup("test")
    for batch in data.test_dataloader():
        assert module.generate(batch) == [result.text for result in module.predict_texts(batch["source"])]


def test_writing_stops_at_max_new_tokens_and_never_at_twenty_by_itself(marian: str) -> None:
    module = TranslationModule(marian, num_beams=1, max_length=48)
    assert module.model.generation_config.max_new_tokens == 48
    module = TranslationModule(marian, num_beams=1, max_new_tokens=5)
    with module.evaluating():
        written = module.model.generate(**module.pad([{"input_ids": [5, 6, 0]}]), min_new_tokens=5)
    assert written.shape[1] == 1 + 5


def test_while_fitting_validation_writes_greedily_and_after_it_with_beams(
    marian: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, beams = translation_data(marian, tmp_path), []
    module = TranslationModule(marian, num_beams=3, max_new_tokens=4)
    written = module.generate

    def generate(batch: Any, *, num_beams: int | None = None) -> list[str]:
        beams.append(num_beams)
        return written(batch, num_beams=num_beams)

    monkeypatch.setattr(module, "generate", generate)
    plain_trainer().fit(module, data)
    assert set(beams) == {1}
    beams.clear()
    plain_trainer().validate(module, data, verbose=False)
    assert set(beams) == {None}


# Results


def test_cudnn_does_not_plan_how_to_attend_for_each_batch(marian: str, tmp_path: Path) -> None:
    data, module, seen = translation_data(marian, tmp_path), TranslationModule(marian, max_new_tokens=2), set[bool]()
    for part in module.model.model.encoder.layers[0], module.model.model.decoder.layers[0]:
        part.register_forward_pre_hook(lambda *_: seen.add(torch.backends.cuda.cudnn_sdp_enabled()))
    before = torch.backends.cuda.cudnn_sdp_enabled()
    plain_trainer().fit(module, data)
    module.predict_texts(["a film"])
    assert seen == {False}
    module.model.model.decoder.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        module.predict_texts(["a film"])
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


def test_sacrebleu_itself_scores_the_files_to_the_same_figures(marian: str, tmp_path: Path) -> None:
    data = translation_data(marian, tmp_path)
    module = TranslationModule(marian, num_beams=2, max_new_tokens=12)
    module.predict_texts(CORPUS)
    # Words that a random model would hardly write.
    module.generate = lambda batch, **_: [f"{text[:12]} {text[-9:]}" for text in batch["target"]]
    trainer = plain_trainer(callbacks=[ResultsWriter(tmp_path / "run")])
    (measured,) = trainer.test(module, data, verbose=False)
    run = tmp_path / "run"
    assert (run / "sources.txt").read_text().splitlines() == CORPUS
    assert (run / "references.txt").read_text().splitlines() == GERMAN
    command = [sys.executable, "-m", "sacrebleu", str(run / "references.txt"), "-i", str(run / "hypotheses.txt")]
    said = subprocess.run(
        [*command, "-m", "bleu", "chrf", "ter", "-w", "6"], capture_output=True, text=True, check=True
    )
    signatures = dict(line.split("|", 1) for line in (run / "signatures.txt").read_text().splitlines())
    for each in json.loads(said.stdout):
        name = each["name"].lower().removesuffix("2")
        assert measured[f"test/{name}"] == pytest.approx(each["score"], rel=1e-5)
        assert set(each["signature"].split("|")) == set(signatures[name].split("|"))


def test_translated_lines_are_lines_again_blank_ones_among_them(marian: str, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text(f"{CORPUS[0]}\n\n{CORPUS[1]}\n")
    data = TranslationDataModule(marian, predict=str(tmp_path / "lines.txt"), max_length=32)
    module = TranslationModule(marian)
    module._generated = lambda batch, _: [[7, 8] for _ in batch["source"]]  # also of nothing
    plain_trainer(callbacks=[ResultsWriter(tmp_path)]).predict(module, data, return_predictions=False)
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [(row["row"], row["source"]) for row in rows] == [(0, CORPUS[0]), (1, ""), (2, CORPUS[1])]
    assert (tmp_path / "predictions.txt").read_text().split("\n") == [row["text"] for row in rows] + [""]
    assert [bool(row["text"]) for row in rows] == [True, False, True]
    module._generated = lambda batch: [[7, 8] for _ in batch["input_ids"]]
    assert [each.text for each in module.predict_texts([CORPUS[0], " ", CORPUS[1]])] == [row["text"] for row in rows]


@pytest.mark.parametrize("of_backbone", ["backbone", "checkpoint"])
def test_an_encoder_decoder_of_two_encoders_may_be_the_backbone(bert: str, of_backbone: str, tmp_path: Path) -> None:
    joined = EncoderDecoderModel.from_encoder_decoder_pretrained(bert, bert)
    tokenizer = load_tokenizer(bert)
    joined.config.decoder_start_token_id, joined.config.pad_token_id = tokenizer.cls_token_id, tokenizer.pad_token_id
    joined.save_pretrained(tmp_path / "joined")
    tokenizer.save_pretrained(tmp_path / "joined")
    module = TranslationModule(str(tmp_path / "joined"), max_length=32)
    if of_backbone == "checkpoint":
        module = TranslationModule.load_from_checkpoint(save(module, tmp_path / "x.ckpt"))
    for name, weight in joined.state_dict().items():
        assert "pooler" in name or torch.equal(module.model.state_dict()[name], weight), name


@pytest.mark.parametrize(("language", "asked"), [("jpn_Jpan", "ja"), ("ja_XX", "ja"), ("ko", "ko")])
def test_a_language_without_blanks_needs_mecab_or_another_tokenizer(
    language: str, asked: str, marian: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_mecab(name: str, **arguments: Any) -> Any:
        if arguments.get("trg_lang") == asked and arguments["tokenize"] is None:
            raise RuntimeError("please install mecab")
        return SacreMetric(name)

    monkeypatch.setattr("lit_nlp.modules.translation.SacreMetric", without_mecab)
    with pytest.raises(ConfigError, match=rf"pip install 'sacrebleu\[{asked}\]', or set it to char"):
        TranslationModule(marian, target_lang=language)
    TranslationModule(marian, target_lang=language, bleu_tokenizer="char")


def test_javanese_is_not_japanese(marian: str) -> None:
    assert TranslationModule(marian, target_lang="jav_Latn").signatures["bleu"].split("|")[3] == "tok:13a"


def test_answers_are_measured_by_their_words(t5: str, tmp_path: Path) -> None:
    rows = [
        {
            "question": "a",
            "context": "b",
            "answers": [{"text": "the good film", "answer_start": 0}, {"text": "film", "answer_start": 0}],
        },
        {"question": "c", "context": "d", "answers": [{"text": "bad", "answer_start": 0}]},
        {"question": "e", "context": "f", "answers": []},
    ]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    data = GenerativeQuestionAnsweringDataModule(t5, test=source, max_length=64)
    module = GenerativeQuestionAnsweringModule(t5, max_new_tokens=4)
    said = {"question: a context: b": "a film", "question: c context: d": "a very bad film"}
    module.generate = lambda batch, **_: [said[text] for text in batch["source"]]
    for again in data, GenerativeQuestionAnsweringDataModule(t5, test=source, max_length=64):  # from the cache
        with pytest.warns(UserWarning, match="test: 1 questions without an answer are left out"):
            (measured,) = plain_trainer().test(module, again, verbose=False)
    rouge = RougeScorer(["rougeL"])
    best = [
        max(rouge.score(answer["text"], text)["rougeL"].fmeasure for answer in row["answers"])
        for row, text in zip(rows, said.values(), strict=False)
    ]
    assert measured["test/exact_match"] == 50
    assert measured["test/f1"] == pytest.approx(100 * (1 + f1("a very bad film", ["bad"])) / 2)
    assert measured["test/rouge_l"] == pytest.approx(100 * math.fsum(best) / 2, rel=1e-5)


def test_a_model_learns_what_it_is_shown(t5: str, tmp_path: Path) -> None:
    data = translation_data(t5, tmp_path, batch_size=6)
    torch.manual_seed(0)
    module = TranslationModule(t5, learning_rate=0.03, num_beams=1, warmup=0.0, **data.facts | {"max_new_tokens": 30})
    before = plain_trainer().validate(module, data, verbose=False)[0]["val/loss"]
    plain_trainer(max_epochs=80, limit_val_batches=0).fit(module, data)
    after = plain_trainer().validate(module, data, verbose=False)[0]["val/loss"]
    assert after < before / 2


def test_a_slow_tokenizer_from_a_checkpoint_can_be_copied_with_its_module(marian: str, tmp_path: Path) -> None:
    module = TranslationModule(marian, num_beams=1, max_new_tokens=6)
    loaded = TranslationModule.load_from_checkpoint(save(module, tmp_path / "x.ckpt"))
    assert copy.deepcopy(loaded).predict_texts(CORPUS) == module.predict_texts(CORPUS)


def test_a_question_with_a_context_is_asked_as_in_training(t5: str, tmp_path: Path) -> None:
    rows = [{"question": "who?", "context": "a film", "answer": "film"}]
    data = GenerativeQuestionAnsweringDataModule(t5, test=write_rows(tmp_path / "x.jsonl", rows), max_length=64)
    data.setup("test")
    module = GenerativeQuestionAnsweringModule(t5, num_beams=1, max_new_tokens=6)
    (asked,) = module.predict_texts([("who?", "a film")])
    assert asked.source == data.tables["test"][0]["source"] == "question: who? context: a film"


def test_lengths_beyond_the_decoders_positions_are_refused(marian: str, llama: str, bert: str) -> None:
    for backbone, arguments in (
        (marian, {"max_new_tokens": 100}),
        (marian, {"max_target_length": 100}),
        (llama, {"max_new_tokens": 60, "max_length": 64}),
        (bert, {"max_new_tokens": 100}),
    ):
        with pytest.raises(ConfigError, match=r"asks for \d+ positions, the backbone has 64; lower them"):
            TranslationModule(backbone, **arguments)


def test_a_backbones_own_rules_of_writing_stay_also_in_the_checkpoint(marian: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(marian, tmp_path / "backbone"))
    GenerationConfig(bad_words_ids=[[7]], eos_token_id=[0, 9]).save_pretrained(folder)
    module = TranslationModule(str(folder))
    loaded = TranslationModule.load_from_checkpoint(save(module, tmp_path / "x.ckpt"))
    for writing in (module.model.generation_config, loaded.model.generation_config):
        assert (writing.bad_words_ids, writing.eos_token_id) == ([[7]], [0, 9])


# Explaining


FAMILIES = ["marian", "t5", "m2m100", "mbart", "bert", "llama"]


@pytest.fixture(params=FAMILIES)
def writer(request: pytest.FixtureRequest) -> TranslationModule:
    prompt = "<user>{source}<assistant>" if request.param == "llama" else None
    arguments = {"num_beams": 2, "max_new_tokens": 24, "prompt": prompt, **LANGUAGES.get(request.param, {})}
    return TranslationModule(request.getfixturevalue(request.param), max_length=64, **arguments)


def scored(module: Any, targets: list[Any]) -> list[float]:
    """The weighted sum of a target's scores, read from its own readings."""
    found = []
    with module.evaluating():
        for target in targets:
            (reading,) = target.readings
            outputs = module(**module.pad([reading.inputs]))
            found.append(sum(weight * module.score(outputs, torch.tensor([t])).item() for weight, t in reading.terms))
    return found


def test_what_is_explained_is_what_was_written(writer: Any) -> None:
    texts = CORPUS[:3]
    written = [result.text for result in writer.predict_texts(texts)]
    assert any(written), "something must be written for this to say something"
    targets = writer.attribution_targets(texts, batch_size=2)
    for target in targets:
        assert target.text == texts[target.row]
        assert target.prediction == target.text_pair == written[target.row]
        assert (target.kind, target.parts) == ("token", ("source", "translation"))
    assert {target.row for target in targets} == {row for row, text in enumerate(written) if text}


def test_a_token_stands_where_its_characters_are(writer: Any) -> None:
    for target in writer.attribution_targets(CORPUS, outputs=GERMAN):
        start, end = target.span
        characters = target.text_pair[start:end].removeprefix("##")
        assert target.name == characters or not characters.strip()
        (reading,) = target.readings
        for name, places in reading.places.items():
            assert len(places) == len(reading.inputs[name])
            for token, place in zip(reading.inputs[name], places, strict=True):
                piece = writer.tokenizer.convert_ids_to_tokens(token).lstrip("▁Ġ").removeprefix("##")
                if place is not None and piece.isascii() and piece.isalnum():
                    # A tokenizer may take accents and capitals away.
                    stands = (target.text, target.text_pair)[place.part][place.start : place.end]
                    assert stands.lower().removeprefix("##") == piece.lower()


def test_given_outputs_are_explained_token_by_token(writer: Any) -> None:
    targets = writer.attribution_targets(CORPUS, outputs=GERMAN, batch_size=4)
    for row, output in enumerate(GERMAN):
        of_row = [target for target in targets if target.row == row]
        (ids,) = writer.pairs.targets([output]).ids
        assert [target.readings[0].terms[0][1][1] for target in of_row] == [
            token for token in ids if token not in writer.pairs.special
        ]
        assert {target.text_pair for target in of_row} == {writer.pairs.decode(ids)}
        for target in of_row:
            (reading,) = target.readings
            ((_, (place, _)),) = reading.terms
            name = "input_ids" if writer.pairs.start is None else "decoder_input_ids"
            assert len(reading.inputs[name]) == len(reading.places[name]) == place + 1  # nothing that comes later


def test_characters_that_the_tokenizer_does_not_know_are_told(marian: str) -> None:
    module = TranslationModule(marian)
    with pytest.warns(UserWarning, match="1 of 2 outputs hold characters that the tokenizer doesn't know"):
        module.attribution_targets(["a film", "a film"], outputs=["ein \N{SNOWMAN} Film", "ein Film"])


def test_the_log_probabilities_of_the_tokens_add_up_to_the_loss(writer: Any) -> None:
    targets = writer.attribution_targets(CORPUS, outputs=GERMAN, batch_size=4)
    sources, outputs = writer.pairs.sources(CORPUS).ids, writer.pairs.targets(GERMAN).ids
    for row, (source, output) in enumerate(zip(sources, outputs, strict=True)):
        labels = torch.tensor([output])
        if writer.pairs.start is None:
            source, labels = source + output, torch.tensor([[-100] * len(source) + output])
        batch = {**writer.pad([{"input_ids": source}]), "labels": labels}
        unexplained = torch.isin(labels, torch.tensor(sorted(writer.pairs.special)))
        explained = {**batch, "labels": labels.masked_fill(unexplained, -100)}
        losses = writer.eval().row_losses(writer.forward_batch(batch), explained)
        of_row = [target for target in targets if target.row == row]
        assert math.fsum(math.log(target.probability) for target in of_row) == pytest.approx(-losses.item(), rel=1e-4)
        assert scored(writer, of_row) == pytest.approx([math.log(target.probability) for target in of_row], rel=1e-4)


def test_what_is_accounted_for_of_a_text_is_what_is_explained_of_it(writer: Any) -> None:
    for given in (GERMAN, None):
        targets = writer.attribution_targets(CORPUS, outputs=given, batch_size=4)
        expected = torch.zeros(len(CORPUS))
        for target in targets:
            expected[target.row] -= math.log(target.probability)
        batches = writer.asked(CORPUS, given, batch_size=4)
        found = torch.zeros(len(CORPUS))
        for batch in batches:
            with writer.attributing():
                found[batch["row"]] = writer.asked_losses(batch).detach()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert sorted(row for batch in batches for row in batch["row"].tolist()) == sorted({t.row for t in targets})
    with pytest.raises(ConfigError, match=r"labels: expected texts, got 3; leave them out"):
        writer.asked(["a", "b"], ["c", 3])


def test_the_most_wrong_is_what_is_least_probable_by_its_tokens(writer: Any) -> None:
    means = []
    for source, output in zip(CORPUS, GERMAN, strict=True):
        targets = writer.attribution_targets([source], outputs=[output])
        means.append(sum(-math.log(target.probability) for target in targets) / len(targets))
    assert writer.most_wrong(CORPUS, GERMAN) == sorted(range(len(CORPUS)), key=lambda i: -means[i])


def test_the_five_most_probable_tokens_are_named_with_their_probabilities(writer: Any) -> None:
    for target in writer.attribution_targets(CORPUS[:2], outputs=GERMAN[:2]):
        (reading,) = target.readings
        ((_, (place, token)),) = reading.terms
        with torch.no_grad():
            expected = writer.eval()(**writer.pad([reading.inputs]))[0, place].softmax(-1)
        named = list(target.probabilities.values())
        assert named == sorted(named, reverse=True)
        assert 1 <= len(named) <= 5
        assert named[0] == pytest.approx(expected.max().item(), rel=1e-4)
        assert all(min(abs(p - e) for e in expected.topk(5).values.tolist()) < 1e-5 for p in named)
        assert target.probability == pytest.approx(expected[token].item(), rel=1e-4)


def test_padded_readings_score_as_single_ones(writer: Any) -> None:
    texts, outputs = ["a", *CORPUS[:2]], [*GERMAN[:2], "e"]
    targets = writer.attribution_targets(texts, outputs=outputs)
    picked = [[target for target in targets if target.row == row][-1] for row in range(3)]
    readings = [target.readings[0] for target in picked]
    with writer.attributing():
        logits = writer(**writer.pad([reading.inputs for reading in readings]))
        together = writer.score(logits, torch.tensor([reading.terms[0][1] for reading in readings]))
    assert len({len(reading.inputs["input_ids"]) for reading in readings}) > 1
    assert together.tolist() == pytest.approx(scored(writer, picked), rel=1e-4)


def test_a_token_hangs_on_what_was_written_before_it_and_on_nothing_after(writer: Any) -> None:
    targets = writer.attribution_targets(CORPUS[:1], outputs=GERMAN[:1])
    for target in targets[:: len(targets) // 3]:
        (reading,) = target.readings
        ((_, (place, _)),) = reading.terms
        seen: list[Tensor] = []
        with writer.attributing():
            hook = writer.embedding_layers()[-1].register_forward_hook(
                lambda *call, seen=seen: seen.append(call[-1].detach().requires_grad_()) or seen[-1]
            )
            outputs = writer(**writer.pad([reading.inputs]))
            hook.remove()
            writer.score(outputs, torch.tensor([reading.terms[0][1]])).sum().backward()
        (gradient,) = (each.grad for each in seen)
        assert gradient is not None
        assert (gradient[0, : place + 1].abs().sum(-1) > 0).all()
        assert (gradient[0, place + 1 :] == 0).all()


def test_a_contrast_is_the_difference_of_two_log_probabilities(t5: str) -> None:
    module = TranslationModule(t5, num_beams=1, max_length=64)
    (plain,) = module.attribution_targets(["a film"], outputs=["a good film"], target="good")
    (against,) = module.attribution_targets(["a film"], outputs=["a good film"], target="good", contrast="bad")
    assert (plain.name, against.name) == ("good", "good rather than bad")
    (reading,) = against.readings
    logs = module.eval()(**module.pad([reading.inputs]))[0, 1].log_softmax(-1)
    good, bad = module.tokenizer.convert_tokens_to_ids(["▁good", "▁bad"])
    assert reading.terms == [(1.0, [1, good]), (-1.0, [1, bad])]
    assert scored(module, [against]) == pytest.approx([(logs[good] - logs[bad]).item()], rel=1e-4)
    assert against.probability == plain.probability == pytest.approx(logs[good].exp().item(), rel=1e-4)


def test_the_runner_up_of_a_token_is_the_most_probable_other_in_its_place(writer: Any) -> None:
    found = writer.attribution_targets(CORPUS[:2], outputs=GERMAN[:2], contrast="runner-up")
    for target in found:
        (reading,) = target.readings
        (_, (place, token)), (weight, (same_place, other)) = reading.terms
        logits = writer.eval()(**writer.pad([reading.inputs]))[0, place]
        ranked = [each for each in logits.argsort(descending=True).tolist() if each != token]
        assert (weight, same_place, other) == (-1.0, place, ranked[0])
        assert target.name.endswith(f" rather than {writer.pairs.name(other)}")


def test_a_target_that_was_not_written_and_a_contrast_of_several_tokens_are_refused(t5: str) -> None:
    module = TranslationModule(t5, num_beams=1, max_length=64)
    arguments: dict[str, Any] = {"texts": ["a film"], "outputs": ["a good film"]}
    with pytest.raises(
        ConfigError, match="target: no token that was written is 'goo'; they are a, good, film; did you"
    ):
        module.attribution_targets(**arguments, target="goo")
    with pytest.raises(ConfigError, match="contrast: expected one token, got 'very bad film'"):
        module.attribution_targets(**arguments, contrast="very bad film")
    with pytest.raises(ConfigError, match="contrast: 'good' is itself what was written"):
        module.attribution_targets(**arguments, target="good", contrast="good")
    with pytest.raises(ConfigError, match="outputs: there are 1 texts but 2 outputs"):
        module.attribution_targets(["a film"], outputs=["a", "b"])
    with pytest.raises(ConfigError, match="texts: expected a text, got a pair"):
        module.attribution_targets([("a", "film")])


def test_nothing_written_leaves_nothing_to_explain(t5: str) -> None:
    module = TranslationModule(t5, num_beams=1, max_length=64)
    assert module.attribution_targets([]) == []
    targets = module.attribution_targets(["a film", "a plot"], outputs=["", "bad"])
    assert {target.row for target in targets} == {1}


def test_an_answer_is_explained_over_the_question_as_it_is_read(t5: str) -> None:
    module = GenerativeQuestionAnsweringModule(t5, num_beams=1, max_length=64, max_new_tokens=6)
    target, *_ = module.attribution_targets([("who?", "a film")], outputs=["film"])
    assert (target.text, target.text_pair) == ("question: who? context: a film", "film")
    assert target.parts == ("question", "given answer")


def test_a_chat_template_is_credited_with_nothing(llama: str) -> None:
    module = TranslationModule(llama, num_beams=1, max_length=64, prompt="<s>user: {source}\nassistant:")
    *_, target = module.attribution_targets(["a film"], outputs=["ein Film"])
    (reading,) = target.readings
    ((_, (_, last)),) = reading.terms
    ids, places = reading.inputs["input_ids"], reading.places["input_ids"]
    credited = [token for token, place in zip(ids, places, strict=True) if place is not None]
    assert module.tokenizer.decode([*credited, last]).replace(" ", "") == "afilmeinFilm"
    assert module.tokenizer.decode([*ids, last]) == "<s>user: a film\nassistant:ein Film"


@pytest.mark.parametrize("tokens", [0, -1, 1])
def test_a_target_needs_room_for_a_token_and_its_end(t5: str, tokens: int) -> None:
    with pytest.raises(ConfigError, match=f"max_target_length must be at least 2, got {tokens}"):
        TranslationModule(t5, max_target_length=tokens)
