import json
import math
import random
import shutil
from collections.abc import Sequence
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from captum.attr import LayerIntegratedGradients
from torch import Tensor
from transformers import BertConfig, BertForQuestionAnswering, LlamaModel

from lit_nlp import QuestionAnsweringDataModule, QuestionAnsweringModule, attribute
from lit_nlp.callbacks.results import ResultsWriter
from lit_nlp.data.base import TextDataModule
from lit_nlp.errors import ConfigError, DataError, TargetError, UserError
from lit_nlp.modules.base import TransformerModule
from lit_nlp.modules.question_answering import Answer, Window, span_losses
from lit_nlp.targets import AttributionTarget
from lit_nlp.tokenization import context_offsets
from tests.backbones import CORPUS
from tests.contract import Contract, outputs, plain_trainer, rows_of, save, write_rows
from tests.metrics.test_question_answering import official_v2

CONTEXTS = [*CORPUS, "a film", " ".join(CORPUS[:2])]
ROWS = [
    {
        "id": f"q{i}",
        "question": "what is it" if i % 2 else "why",
        "context": context,
        "answers": []
        if i == 6
        else [{"text": (words := context.split())[3], "answer_start": len(" ".join(words[:3])) + 1}],
    }
    for i, context in enumerate(CONTEXTS)
]
PAIRS = [(row["question"], row["context"]) for row in ROWS]


class TestQuestionAnswering(Contract):
    texts = PAIRS

    def data(self, backbone: str, folder: Path) -> TextDataModule:
        return data_module(backbone, folder)

    def module(self, backbone: str, data: Any, **arguments: Any) -> TransformerModule:
        # A softmax over tokens doesn't see the head's bias: rounding alone gives it a gradient, mostly.
        torch.manual_seed(0)
        return QuestionAnsweringModule(backbone, **data.facts, **arguments)

    def explain(self, module: Any) -> None:
        """A fixed span of each window, by the hooks that any method stands on."""
        with module.attributing():
            batch = module.pad(module.encode(self.texts).sequences)
            names = [name for name in batch if name != "input_ids"]
            target = torch.tensor([[3, 4]] * len(batch["input_ids"]))

            def score(input_ids: Tensor, target: Tensor, *masks: Tensor) -> Tensor:
                return module.score(module(input_ids=input_ids, **dict(zip(names, masks, strict=True))), target)

            given = (target, *(batch[name] for name in names))
            score(batch["input_ids"], *given)
            LayerIntegratedGradients(score, module.embedding_layers()).attribute(
                batch["input_ids"],
                baselines=torch.full_like(batch["input_ids"], module.baseline_id),
                additional_forward_args=given,
                n_steps=2,
            )

    def test_a_trainer_predicts_the_same_as_the_module_alone(
        self, task: TransformerModule, datamodule: TextDataModule
    ) -> None:
        batches = plain_trainer().predict(task, datamodule)
        assert batches is not None
        by_trainer = sorted((row for batch in batches for row in batch), key=lambda answer: answer.row)
        assert [answer.id for answer in by_trainer] == [row["id"] for row in ROWS]
        for one, other in zip(by_trainer, self.predict(task), strict=True):
            assert same(one, other)

    def test_every_parameter_gets_a_gradient(self, task: Any, datamodule: Any) -> None:
        batch = rows_of(datamodule, [0, 1, 2])
        task.row_losses(task.forward_batch(batch), batch).mean().backward()
        without = {name for name, each in task.named_parameters() if each.grad is None or not each.grad.any()}
        assert without <= {"model.qa_outputs.bias"}, "a softmax over tokens doesn't see what is added to all of them"

    def test_a_batch_equals_its_single_rows(self, task: TransformerModule, datamodule: TextDataModule) -> None:
        batch = rows_of(datamodule, [0, 1, 7])
        assert not batch["attention_mask"].all(), "the rows must differ in length for this to say something"
        together, losses = outputs(task, batch), task.row_losses(outputs(task, batch), batch)
        for i, row in enumerate([0, 1, 7]):
            alone = rows_of(datamodule, [row])
            logits = outputs(task, alone)
            own = together[batch["row"] == row][:, : logits.shape[1]]
            torch.testing.assert_close(logits, own, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(task.row_losses(logits, alone)[0], losses[i])

    def test_the_score_is_differentiable_to_the_embeddings(
        self, task: TransformerModule, datamodule: TextDataModule
    ) -> None:
        batch = rows_of(datamodule, [0, 1, 7])
        seen: list[Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda *call: seen.append(call[-1]) or call[-1].retain_grad())
            for layer in task.embedding_layers()
        ]
        target = torch.stack([batch["start_positions"], batch["end_positions"]], dim=1)
        scores = task.eval().score(task.forward_batch(batch), target)
        assert scores.shape == (len(target),)
        scores.sum().backward()
        for hook in hooks:
            hook.remove()
        for embeddings in seen:
            assert embeddings.grad is not None
            reached = embeddings.grad.abs().sum(-1) > 0
            assert reached.any(1).all(), "each window's score hangs on its tokens"
            assert not reached[batch["attention_mask"] == 0].any(), "and on no padding"
        assert seen


class TestWindows(TestQuestionAnswering):
    def data(self, backbone: str, folder: Path) -> TextDataModule:
        return data_module(backbone, folder, max_length=24, doc_stride=4)


def data_module(
    backbone: str, folder: Path, rows: Sequence[dict[str, Any]] = ROWS, **arguments: Any
) -> QuestionAnsweringDataModule:
    source = write_rows(folder / "rows.jsonl", rows)
    return QuestionAnsweringDataModule(
        backbone,
        **{
            "train": source,
            "val": source,
            "test": source,
            "predict": source,
            "batch_size": 4,
            "max_length": 48,
            "doc_stride": 4,
            **arguments,
        },
    )


def same(one: Answer, other: Answer) -> bool:
    """Whether two answers agree, whatever the module was told of their rows."""
    figures = [(each.start, each.end, pytest.approx(each.probability, abs=1e-6)) for each in one.candidates[:3]]
    return (
        [(each.start, each.end, each.probability) for each in other.candidates[:3]] == figures
        and (one.text, one.start, one.end, one.question, one.context)
        == (other.text, other.start, other.end, other.question, other.context)
        and other.null_odds == pytest.approx(one.null_odds, abs=1e-5)
        and other.no_answer_score == pytest.approx(one.no_answer_score, abs=1e-6)
    )


# Losses


def log_softmax(row: Sequence[float]) -> list[float]:
    return [value - math.log(math.fsum(map(math.exp, row))) for value in row]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_mean_of_two_cross_entropies_in_which_padding_has_no_part(smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 2, generator=generator, dtype=torch.float64)
    logits[1, 3:] = -torch.inf
    logits.requires_grad_()
    target = torch.tensor([[0, 4], [2, 2], [1, 3]])
    losses = span_losses(logits, target, smoothing=smoothing)
    for window, tokens in enumerate((5, 3, 5)):
        expected = 0.0
        for side in (0, 1):
            logs = log_softmax(logits[window, :tokens, side].tolist())
            expected -= ((1 - smoothing) * logs[target[window, side]] + smoothing * math.fsum(logs) / tokens) / 2
        assert losses[window].item() == pytest.approx(expected, rel=1e-12)
    losses.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[1, 3:] == 0).all()


def test_a_rows_loss_is_the_sum_over_its_windows_and_a_batchs_the_mean_over_all(bert: str, tmp_path: Path) -> None:
    data = data_module(bert, tmp_path, max_length=24)
    module = QuestionAnsweringModule(bert, **data.facts).eval()
    batch = rows_of(data, [0, 7, 1])
    logits = module.forward_batch(batch)
    target = torch.stack([batch["start_positions"], batch["end_positions"]], dim=1)
    each = span_losses(logits, target, smoothing=0.0)
    losses = module.row_losses(logits, batch)
    expected = [each[batch["row"] == row].sum() for row in (0, 7, 1)]
    assert len(batch["row"]) > 3
    torch.testing.assert_close(losses, torch.stack(expected))
    torch.testing.assert_close(losses.sum() / module.loss_weight(batch), each.mean())
    alone = rows_of(data, [1])
    torch.testing.assert_close(module.row_losses(module.forward_batch(alone), alone)[0], losses[2])


def test_without_padding_the_loss_is_transformers(bert: str, tmp_path: Path) -> None:
    data = data_module(bert, tmp_path)
    module = QuestionAnsweringModule(bert, **data.facts).eval()
    batch = rows_of(data, [0])
    positions = {name: batch[name] for name in ("start_positions", "end_positions")}
    reference = module.model(**module.inputs(batch), **positions).loss
    torch.testing.assert_close(module.row_losses(module.forward_batch(batch), batch)[0], reference)


def test_the_score_of_a_span_is_the_sum_of_its_ends_log_probabilities(bert: str) -> None:
    logits = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(0))
    scores = QuestionAnsweringModule(bert).score(logits, torch.tensor([[1, 3], [2, 2]]))
    for window, (start, end) in enumerate([(1, 3), (2, 2)]):
        starts, ends = (log_softmax(logits[window, :, side].tolist()) for side in (0, 1))
        assert scores[window].item() == pytest.approx(starts[start] + ends[end], rel=1e-5)


@pytest.mark.parametrize("unanswerable", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_an_answer_is_the_best_of_all_windows_and_its_score_a_softmax(seed: int, unanswerable: bool, bert: str) -> None:
    module = QuestionAnsweringModule(
        bert, unanswerable=unanswerable, max_answer_length=4, n_best=7, max_length=14, doc_stride=3
    )
    context, question = CONTEXTS[-1], "why"
    encoded = module.encode([(question, context)])
    generator = torch.Generator().manual_seed(seed)
    assert len(encoded.sequences) > 2
    width = max(len(tokens["input_ids"]) for tokens in encoded.sequences)
    said = torch.randn(len(encoded.sequences), width, 2, generator=generator) * 3

    every: dict[tuple[int, int], float] = {}
    nothing = math.inf
    for window, spans in enumerate(encoded.offsets):
        inside = [i for i, part in enumerate(encoded.part[window]) if part == 1]
        nothing = min(nothing, float(said[window, 0].sum()))
        for start in inside:
            for end in inside:
                if start <= end < start + 4:
                    span = (spans[start][0], spans[end][1])
                    figure = float(said[window, start, 0] + said[window, end, 1])
                    every[span] = max(figure, every.get(span, -math.inf))
    ranked = sorted(every.items(), key=lambda item: -item[1])[:7]

    tokens = [len(sequence["input_ids"]) for sequence in encoded.sequences]
    offsets = torch.full((len(tokens), width, 2), -1)
    for window, parts in enumerate(encoded.part):
        for i, part in enumerate(parts):
            if part == 1:
                offsets[window, i] = torch.tensor(encoded.offsets[window][i])
    mask = offsets[..., 0] < offsets[..., 1]
    windows = module._windows(said, offsets, mask, torch.zeros(len(tokens), dtype=torch.long))
    answer = module._answer(windows, question, context)
    found = [each for each in answer.candidates if each.start is not None]
    assert [(each.start, each.end) for each in found] == [span for span, _ in ranked]
    assert [each.start_logit + each.end_logit for each in found] == pytest.approx([score for _, score in ranked])
    assert [each.text for each in found] == [context[start:end] for (start, end), _ in ranked]
    scores = [score for _, score in ranked]
    total = math.fsum(map(math.exp, [*scores, nothing]))
    assert answer.no_answer_score == pytest.approx(math.exp(nothing) / total, rel=1e-5)
    assert answer.null_odds == pytest.approx(nothing - scores[0], rel=1e-4)
    share = total if unanswerable else total - math.exp(nothing)
    assert [each.probability for each in found] == pytest.approx([math.exp(s) / share for s in scores], rel=1e-5)
    silent = unanswerable and nothing > scores[0]
    assert answer.text == ("" if silent else found[0].text)
    assert (len(answer.candidates) - len(found)) == unanswerable


def test_no_answer_is_given_where_its_odds_are_above_the_threshold(bert: str) -> None:
    windows = [Window([(0, 1, 1.0, 1.0)], (2.0, 2.0)), Window([(2, 3, 0.5, 1.0)], (1.0, 1.5))]
    for threshold, text in (0.0, ""), (0.49, ""), (0.5, "a"), (0.6, "a"):
        module = QuestionAnsweringModule(bert, unanswerable=True, null_threshold=threshold)
        answer = module._answer(windows, "q", "a b")
        assert answer.null_odds == pytest.approx(0.5)
        assert (answer.text, answer.start) == (text, 0 if text else None)
        assert answer.score == pytest.approx(answer.no_answer_score if text == "" else answer.candidates[1].probability)
    assert QuestionAnsweringModule(bert)._answer(windows, "q", "a b").text == "a"


def test_a_context_of_which_no_token_is_left_has_no_answer(bert: str) -> None:
    for unanswerable in (False, True):
        answer = QuestionAnsweringModule(bert, unanswerable=unanswerable).answer("why", "\u200b")
        assert (answer.text, answer.start) == ("", None)
        assert math.isfinite(answer.null_odds)
        assert json.loads(json.dumps(answer.as_json()))


# Answers


def test_one_question_has_an_answer_and_several_have_several(bert: str) -> None:
    module = QuestionAnsweringModule(bert, max_length=24, doc_stride=4)
    one = module.answer(*PAIRS[0])
    assert isinstance(one, Answer)
    assert one.context[one.start : one.end] == one.text != ""
    assert 0 < one.score <= 1
    several = module.answer([question for question, _ in PAIRS], [context for _, context in PAIRS])
    assert same(several[0], one)
    assert [answer.question for answer in several] == [question for question, _ in PAIRS]
    shared = module.answer(["why", "what"], CORPUS[0])
    assert [answer.context for answer in shared] == [CORPUS[0]] * 2
    assert module.answer([], []) == module.predict_texts([]) == []


def test_answers_come_in_the_order_of_the_questions_whatever_the_batches(bert: str) -> None:
    module = QuestionAnsweringModule(bert, max_length=24, doc_stride=4, unanswerable=True)
    alone = [module.predict_texts([pair])[0] for pair in PAIRS]
    for batch_size in (1, 3, 32):
        for one, other in zip(module.predict_texts(PAIRS, batch_size), alone, strict=True):
            assert same(one, other)


def test_answering_leaves_the_module_as_it_was(bert: str) -> None:
    module = QuestionAnsweringModule(bert).train()
    modes = [part.training for part in module.modules()]
    assert module.predict_texts(PAIRS) == module.predict_texts(PAIRS), "dropout is off"
    assert [part.training for part in module.modules()] == modes
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["why"], ["a", "b"]), "1 questions, but 2 contexts; give each question its context, or one to all"),
        (("why", ["a"]), "one question, but a list of contexts; give a list of questions, too"),
        (("", "a"), r"question 0 \(counted from 0\): the question or its context is blank"),
        (("why", " "), r"question 0 \(counted from 0\): the question or its context is blank"),
        (("why", "a \ud83d"), r"text 0 \(counted from 0\): a lone surrogate, half of a character"),
        ((["why", "good " * 70], "a"), r"question 1 \(counted from 0\): the question's 70 tokens and 3 special tokens"),
    ],
)
def test_what_can_not_be_answered_is_refused(arguments: Any, message: str, bert: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        QuestionAnsweringModule(bert).answer(*arguments)


def test_single_texts_are_refused(bert: str) -> None:
    for texts, expected in (["why"], "pairs of a question and a context"), ("why", "a list of texts, got one text"):
        with pytest.raises(ConfigError, match=f"texts: expected {expected}"):
            QuestionAnsweringModule(bert).encode(texts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"doc_stride": -1}, "doc_stride must be at least 0, got -1"),
        ({"max_answer_length": 0}, "max_answer_length must be at least 1, got 0"),
        ({"n_best": 0}, "n_best must be at least 1, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, int], message: str, bert: str) -> None:
    with pytest.raises(ConfigError, match=f"model: {message}"):
        QuestionAnsweringModule(bert, **arguments)


def padded_left(backbone: str, folder: Path) -> str:
    shutil.copytree(backbone, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    sides = {"padding_side": "left", "truncation_side": "left"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | sides))
    return str(folder)


def test_a_tokenizer_that_pads_left_gives_the_same_answers(bert: str, tmp_path: Path) -> None:
    left = padded_left(bert, tmp_path / "left")
    modules = []
    for backbone in (bert, left):
        torch.manual_seed(0)
        modules.append(QuestionAnsweringModule(backbone, max_length=24, doc_stride=4))
    assert modules[0].predict_texts(PAIRS) == modules[1].predict_texts(PAIRS)


def test_a_batch_that_is_padded_left_gives_the_same_answers_and_losses(bert: str, tmp_path: Path) -> None:
    data = data_module(bert, tmp_path, max_length=24)
    module = QuestionAnsweringModule(bert, **data.facts).eval()
    batch = rows_of(data, [0, 6, 7])
    lengths = batch["attention_mask"].sum(1)
    width = batch["input_ids"].shape[1]
    moved = dict(batch)
    for name in ("input_ids", "attention_mask", "token_type_ids", "offsets", "context_mask"):
        moved[name] = torch.stack([each.roll(width - int(n), 0) for each, n in zip(batch[name], lengths, strict=True)])
    for name in ("start_positions", "end_positions", "no_answer_position"):
        moved[name] = batch[name] + width - lengths
    # What a model makes of the places that its tokens move to isn't asked here.
    logits = module.forward_batch(batch).detach()
    same_logits = torch.stack([each.roll(width - int(n), 0) for each, n in zip(logits, lengths, strict=True)])
    assert not torch.equal(logits, same_logits)
    assert module._answers(same_logits, moved) == module._answers(logits, batch)
    torch.testing.assert_close(module.row_losses(same_logits, moved), module.row_losses(logits, batch))


@pytest.mark.parametrize("left", [False, True])
def test_windows_are_read_a_few_at_a_time_and_without_the_padding_of_longer_ones(
    left: bool, bert: str, tmp_path: Path
) -> None:
    data = data_module(bert, tmp_path, max_length=24)
    module = QuestionAnsweringModule(bert, **data.facts).eval()
    batch = rows_of(data, list(range(len(ROWS))))
    if left:
        batch |= {name: batch[name].flip(1) for name in ("input_ids", "attention_mask", "token_type_ids")}
    shapes: list[tuple[int, ...]] = []
    module.model.register_forward_pre_hook(
        lambda model, _, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    whole = module.forward_batch(batch).detach()
    with torch.inference_mode():
        torch.testing.assert_close(module.forward_batch(batch), whole)
    (all_at_once, *few), windows = shapes, len(batch["input_ids"])
    assert sum(rows for rows, _ in few) == all_at_once[0] == windows > 8
    assert max(rows for rows, _ in few) == 8
    assert (min(width for _, width in few) < all_at_once[1]) == (not left)


# Decoders


def test_a_decoder_keeps_its_pretrained_weights(llama: str) -> None:
    module = QuestionAnsweringModule(llama)
    pretrained = LlamaModel.from_pretrained(llama).state_dict()
    own = {name.removeprefix("model."): weight for name, weight in module.model.state_dict().items()}
    assert all(torch.equal(own[name], weight) for name, weight in pretrained.items())
    assert type(module.model).__name__ == "LlamaForQuestionAnswering"


# What a run measures and leaves


class Told(QuestionAnsweringModule):
    """Says of each token what its number in the context tells it to say."""

    def forward_batch(self, batch: Any) -> Tensor:
        wanted = {"q0": "and", "q1": "and far", "q6": "film"}
        logits = torch.zeros(*batch["input_ids"].shape, 2)
        for window, row in enumerate(batch["row"].tolist()):
            (i,) = (i for i, name in enumerate(batch["id"]) if name == f"q{row}")
            text = wanted.get(f"q{row}")
            if text is None:
                logits[window, int(batch["no_answer_position"][window])] = 5.0
                continue
            begin = batch["context"][i].index(text)
            starts = batch["offsets"][window, :, 0].tolist()
            ends = batch["offsets"][window, :, 1].tolist()
            logits[window, starts.index(begin), 0] = logits[window, ends.index(begin + len(text)), 1] = 4.0 + row
        return logits


def test_a_run_measures_by_the_official_rules_and_leaves_the_official_files(bert: str, tmp_path: Path) -> None:
    data = data_module(bert, tmp_path)
    module = Told(bert, **data.facts)
    trainer = plain_trainer(callbacks=[ResultsWriter(tmp_path / "run")])
    (metrics,) = trainer.test(module, data, verbose=False)
    predictions = json.loads((tmp_path / "run/predictions.json").read_text())
    assert predictions == {f"q{i}": {0: "and", 1: "and far", 6: "film"}.get(i, "") for i in range(8)}
    # Seven questions have answers, of which one is given and one half; of the one without, something is said.
    assert metrics["test/HasAns_exact"] == pytest.approx(100 / 7)
    assert metrics["test/HasAns_f1"] == pytest.approx(100 * (1 + 2 / 3) / 7)
    assert metrics["test/NoAns_exact"] == metrics["test/NoAns_f1"] == 0.0
    assert metrics["test/exact_match"] == pytest.approx(100 / 8)
    assert metrics["test/f1"] == pytest.approx(100 * (1 + 2 / 3) / 8)
    assert (metrics["test/HasAns_total"], metrics["test/NoAns_total"]) == (7, 1)

    odds = json.loads((tmp_path / "run/null_odds.json").read_text())
    official = official_v2({row["id"]: [each["text"] for each in row["answers"]] for row in ROWS}, predictions, odds)
    assert {name: metrics[f"test/{name}"] for name in official} == pytest.approx(official, rel=1e-6)
    assert odds["q0"] == pytest.approx(-8.0)
    assert odds["q2"] == pytest.approx(10.0)
    ranked = json.loads((tmp_path / "run/nbest_predictions.json").read_text())
    assert ranked.keys() == predictions.keys() == odds.keys()
    assert all(ranked[name][0]["text"] == text for name, text in predictions.items())
    assert all(set(each) == {"text", "probability", "start_logit", "end_logit"} for each in ranked["q0"])
    assert sum(each["probability"] for each in ranked["q0"]) == pytest.approx(1.0)
    wrong = [json.loads(line) for line in (tmp_path / "run/wrong_predictions.jsonl").read_text().splitlines()]
    assert [row["f1"] for row in wrong] == sorted(row["f1"] for row in wrong)
    assert {row["id"] for row in wrong} == {f"q{i}" for i in range(1, 8)}
    assert wrong[-1]["answers"] == ["far"]
    assert (wrong[-1]["text"], wrong[-1]["f1"]) == ("and far", pytest.approx(2 / 3))


def test_predicting_leaves_the_answers_and_the_official_files(bert: str, tmp_path: Path) -> None:
    data = data_module(bert, tmp_path, [{k: v for k, v in row.items() if k != "answers"} for row in ROWS], train=None)
    module = Told(bert, unanswerable=True)
    plain_trainer(callbacks=[ResultsWriter(tmp_path / "run")]).predict(module, data)
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {"predictions.jsonl", "predictions.json", "nbest_predictions.json", "null_odds.json"}
    rows = [json.loads(line) for line in (tmp_path / "run/predictions.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rows] == list(range(8))
    assert rows[0].keys() == {"id", "row", "question", "text", "start", "end", "score", "no_answer_score", "null_odds"}
    assert (rows[0]["text"], rows[0]["start"]) == ("and", 14)
    assert (rows[2]["text"], "start" in rows[2]) == ("", False)


def test_a_question_in_windows_counts_once_and_its_best_window_speaks(bert: str, tmp_path: Path) -> None:
    data = data_module(bert, tmp_path, max_length=24)
    (metrics,) = plain_trainer().test(Told(bert, **data.facts), data, verbose=False)
    assert metrics["test/HasAns_total"] + metrics["test/NoAns_total"] == len(ROWS)


@pytest.mark.parametrize("rows", [ROWS[:2], ROWS[6:7], ROWS])
def test_the_sanity_check_passes_whatever_its_batches_hold(
    rows: list[dict[str, Any]], bert: str, tmp_path: Path
) -> None:
    data = data_module(bert, tmp_path, rows, batch_size=1)
    module = QuestionAnsweringModule(bert, **data.facts)
    trainer = plain_trainer(num_sanity_val_steps=2, limit_train_batches=1)
    trainer.fit(module, data)
    assert {"val/f1", "val/exact_match", "val/loss"} <= trainer.callback_metrics.keys()
    assert module.monitor == ("val/f1", "max")


def test_a_checkpoint_may_be_asked_with_another_threshold(bert: str, tmp_path: Path) -> None:
    module = QuestionAnsweringModule(bert, unanswerable=True)
    path, text = save(module, tmp_path / "x.ckpt"), [("why", CORPUS[0])]
    for threshold, answered in ((-1000.0, False), (1000.0, True)):
        loaded = QuestionAnsweringModule.load_from_checkpoint(path, null_threshold=threshold)
        assert bool(loaded.predict_texts(text)[0].text) == answered


def test_windows_are_as_long_as_the_backbone_reads_and_no_longer_than_384(bert: str, tmp_path: Path) -> None:
    assert QuestionAnsweringModule(bert).max_length == 64
    wide = Path(shutil.copytree(bert, tmp_path / "wide"))
    for name, key in ("tokenizer_config.json", "model_max_length"), ("config.json", "max_position_embeddings"):
        settings = json.loads((wide / name).read_text())
        (wide / name).write_text(json.dumps(settings | {key: 1000}))
    (wide / "model.safetensors").unlink()
    BertForQuestionAnswering(BertConfig.from_pretrained(wide)).save_pretrained(wide)
    assert QuestionAnsweringModule(str(wide)).max_length == 384
    assert QuestionAnsweringModule(str(wide), max_length=500).max_length == 500


def test_fitting_learns_to_point_to_the_answer(bert: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    generator = random.Random(0)
    words = ["good", "bad", "dull", "warm", "funny", "film", "story"]
    rows = []
    for i in range(64):
        context = generator.sample(words, 5)
        at = generator.randrange(5)
        context[at] = "ending"
        none = i % 4 == 0
        if none:
            context[at] = "plot"
        text = " ".join(context)
        answers = [] if none else [{"text": "ending", "answer_start": text.index("ending")}]
        rows.append({"id": i, "question": "what", "context": text, "answers": answers})
    data = data_module(bert, tmp_path, rows, batch_size=8, max_length=32)
    module = QuestionAnsweringModule(bert, **data.facts, learning_rate=1e-2)
    trainer = plain_trainer(max_epochs=8)
    trainer.fit(module, data)
    assert trainer.callback_metrics["val/f1"] > 95
    assert trainer.callback_metrics["val/NoAns_f1"] > 90


def test_shapes_are_checked_where_a_plain_python_would_not(bert: str) -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        QuestionAnsweringModule(bert).score(torch.randn(2, 4, 2), torch.tensor([1, 2]))


# What is explained


def test_the_answer_is_explained_by_the_tokens_at_its_ends(bert: str) -> None:
    module = QuestionAnsweringModule(bert)
    texts = [("what is it", "the acting saves a thin story"), ("why", CORPUS[0])]
    for target, answer in zip(module.attribution_targets(texts), module.predict_texts(texts), strict=True):
        (reading,) = target.readings
        ((weight, (first, last)),) = reading.terms
        places = reading.places["input_ids"]
        assert (weight, target.name, target.span) == (1.0, answer.text, (answer.start, answer.end))
        assert (places[first].part, places[first].start) == (1, answer.start)
        assert (places[last].part, places[last].end) == (1, answer.end)
        logits = module.eval()(**module.pad([reading.inputs]))[0].double().log_softmax(0)
        log = module.score(logits.float()[None], torch.tensor([[first, last]]))
        assert log.item() == pytest.approx((logits[first, 0] + logits[last, 1]).item(), abs=1e-4)


def test_an_answer_that_stands_twice_is_as_probable_as_its_more_probable_place(bert: str) -> None:
    module, text = QuestionAnsweringModule(bert), ("why", "good good good good")
    (target,), (answer,) = module.attribution_targets([text]), module.predict_texts([text])
    texts = [each.text for each in answer.candidates]
    repeated = next(text for text in texts if texts.count(text) > 1)
    places = [each.probability for each in answer.candidates if each.text == repeated]
    assert target.probabilities[repeated] == max(places) > min(places)
    assert target.probabilities[answer.text] == answer.score


def test_start_and_end_stand_apart_and_add_up(bert: str) -> None:
    module = QuestionAnsweringModule(bert)
    logits = torch.randn(2, 7, 2)
    whole, start, end = (
        module.score(logits, torch.tensor(target)) for target in ([[1, 3]] * 2, [[1, -1]] * 2, [[-1, 3]] * 2)
    )
    torch.testing.assert_close(start + end, whole)
    torch.testing.assert_close(start, logits[:, :, 0].log_softmax(1)[:, 1])


def test_the_decision_for_no_answer_is_the_difference_of_the_logits(bert: str) -> None:
    module = QuestionAnsweringModule(bert, unanswerable=True).eval()
    text = ("why", "the acting saves a thin story")
    (target,) = module.attribution_targets([text], target="no answer", contrast="answer")
    (reading,) = target.readings
    logits = module(**module.pad([reading.inputs]))
    odds = sum(weight * module.score(logits, torch.tensor([place])).item() for weight, place in reading.terms)
    answer = module.answer(*text)
    assert odds == pytest.approx(answer.null_odds, abs=1e-4)
    assert target.name == f"no answer rather than {answer.candidates[answer.candidates[0].start is None].text}"


def test_an_answer_in_several_windows_is_explained_where_it_scores_highest(bert: str) -> None:
    module = QuestionAnsweringModule(bert, max_length=16, doc_stride=6).eval()
    context = " ".join(CORPUS)
    (target,) = module.attribution_targets([("why", context)])
    (reading,) = target.readings
    ((_, (first, last)),) = reading.terms
    logits = module(**module.pad([reading.inputs]))[0]
    best = module.answer("why", context).candidates[0]
    assert (logits[first, 0].item(), logits[last, 1].item()) == pytest.approx(
        (best.start_logit, best.end_logit), abs=1e-4
    )
    assert context[slice(*target.span)] == best.text


def told(module: QuestionAnsweringModule, target: AttributionTarget) -> float:
    """What is explained, in float64 from the logits of the sequence that is read."""
    (reading,) = target.readings
    logs = module.eval()(**module.pad([reading.inputs]))[0].double().log_softmax(0)
    total = 0.0
    for weight, (first, last) in reading.terms:
        total += weight * sum(logs[place, side].item() for side, place in enumerate((first, last)) if place >= 0)
    return total


def every_span(module: QuestionAnsweringModule, text: tuple[str, str]) -> dict[str, float]:
    """Log p(start) + log p(end) of each text of a context that is read in one window, where it stands best."""
    encoded = module.encode([text])
    (tokens,), (offsets,) = encoded.sequences, context_offsets(encoded)
    logs = module.eval()(**module.pad([tokens]))[0].double().log_softmax(0)
    found: dict[str, float] = {}
    inside = [i for i, (start, end) in enumerate(offsets) if start < end]
    for first, last in combinations_with_replacement(inside, 2):
        if last - first < module.max_answer_length:
            span = text[1][offsets[first][0] : offsets[last][1]]
            found[span] = max(found.get(span, -math.inf), (logs[first, 0] + logs[last, 1]).item())
    return found


def test_any_text_of_a_context_is_explained_and_told_apart_from_another_where_each_stands_best(bert: str) -> None:
    module = QuestionAnsweringModule(bert)
    text = ("why", "the film is good but the story of the film is bad")
    every = every_span(module, text)
    (target,) = module.attribution_targets([text], target="the film", contrast="story")
    assert target.name == "the film rather than story"
    assert told(module, target) == pytest.approx(every["the film"] - every["story"], abs=1e-4)
    assert text[1][slice(*target.span)] == "the film"
    (none,) = module.attribution_targets([text], target="the film", contrast="no answer")
    assert none.name == "the film rather than no answer"
    answer = module.answer(*text).text
    other = next(word for word in ("story", "bad") if not answer.startswith(word))
    (start,) = module.attribution_targets([text], target="start", contrast=other)
    assert start.name == f"the start of {answer} rather than the start of {other}"
    assert [places[1] for _, places in start.readings[0].terms] == [-1, -1]


@pytest.mark.parametrize("unanswerable", [False, True])
def test_the_runner_up_is_the_best_of_all_that_has_nothing_of_the_answer(bert: str, unanswerable: bool) -> None:
    for text in PAIRS:
        module = QuestionAnsweringModule(bert, unanswerable=unanswerable, null_threshold=1000.0, max_answer_length=2)
        answer, encoded = module.answer(*text), module.encode([text])
        (target,) = module.attribution_targets([text], contrast="runner-up")
        logs = module.eval()(**module.pad(encoded.sequences))[0].double().log_softmax(0)
        (offsets,) = context_offsets(encoded)
        others = {
            text[1][offsets[i][0] : offsets[j][1]]: (logs[i, 0] + logs[j, 1]).item()
            for i, j in combinations_with_replacement(range(len(offsets)), 2)
            if j - i < 2
            and all(a < b for a, b in (offsets[i], offsets[j]))
            and (offsets[j][1] <= answer.start or offsets[i][0] >= answer.end)
            and text[1][offsets[i][0] : offsets[j][1]] != answer.text
        }
        if unanswerable:
            others["no answer"] = logs[0].sum().item()
        best = max(others, key=others.__getitem__)
        assert target.name == f"{answer.text} rather than {best}"
        own = every_span(module, text)[answer.text]
        assert told(module, target) == pytest.approx(own - others[best], abs=1e-4)


def test_a_context_of_one_word_has_no_runner_up_and_yet_all_else(bert: str) -> None:
    module = QuestionAnsweringModule(bert)
    with pytest.raises(ConfigError, match="contrast: nothing can be told apart from 'runner-up'"):
        module.attribution_targets([("why", "film")], contrast="runner-up")
    names = [each.target for each in attribute(module, [("why", "film")], target="all", method="saliency")]
    assert names == ["film", "the start of film", "the end of film", "no answer", "film rather than no answer"]


def test_answers_that_are_given_are_explained_in_place_of_the_models(bert: str) -> None:
    module = QuestionAnsweringModule(bert)
    texts = [PAIRS[0], PAIRS[1], PAIRS[2], PAIRS[3]]
    given = ["moving film", [], ["no such words", "acting", "story"], "no such words"]
    found = module.attribution_targets(texts, outputs=given)
    every = every_span(module, texts[2])
    assert [each.row for each in found] == [0, 1, 2]
    assert [each.name for each in found[:2]] == ["moving film", "no answer"]
    assert found[2].name == max("acting", "story", key=every.__getitem__)
    assert [each.prediction for each in found] == [each.text for each in module.predict_texts(texts[:3])]
    (start,) = module.attribution_targets(texts[:1], target="start", outputs=["moving film"])
    assert start.name == "the start of moving film"
    (why,) = module.attribution_targets(texts[:1], outputs=["moving film"], contrast="runner-up")
    assert why.name.startswith("moving film rather than ")
    for nothing in "", [], "No answer":
        (none,) = module.attribution_targets(texts[:1], outputs=[nothing])
        assert none.name == "no answer"
        with pytest.raises(TargetError, match="target: there is no answer to explain; leave the target out, or name"):
            module.attribution_targets(texts[:1], outputs=[nothing], target="answer")
    for asked in {}, {"contrast": "runner-up"}:
        with pytest.raises(TargetError, match="outputs: no context holds what is given as the answer; give a text of"):
            module.attribution_targets(texts[:1], outputs=["no such words"], **asked)
    with pytest.warns(UserWarning, match="1 of 4 texts are left out: they hold nothing of what is to be explained"):
        attribute(module, texts, outputs=given, method="saliency")
    with pytest.raises(ConfigError, match="outputs: there are 4 texts but 1 outputs"):
        module.attribution_targets(texts, outputs=["moving"])


def test_that_there_is_no_answer_is_read_where_the_models_answer_stands(bert: str) -> None:
    module = QuestionAnsweringModule(bert, max_length=16, doc_stride=6, unanswerable=True).eval()
    text = ("why", " ".join(CORPUS))
    best = next(each.text for each in module.answer(*text).candidates if each.text)
    for asked in {"outputs": [[]]}, {"outputs": [" "]}, {"target": "no answer"}:
        (found,) = module.attribution_targets([text], contrast="runner-up", **asked)
        assert found.name == f"no answer rather than {best}"


def test_all_targets_of_a_question_are_different(bert: str) -> None:
    module = QuestionAnsweringModule(bert, unanswerable=True, null_threshold=1000.0)
    names = [
        [each.target for each in attribute(module, [text], target="all", method="saliency")]
        for text in (PAIRS[0], ("why", "film"))
    ]
    assert len(set(names[0])) == len(names[0]) == 6
    # Of one word, the runner-up is that there is no answer.
    assert names[1] == ["film", "the start of film", "the end of film", "no answer", "film rather than no answer"]


def test_what_stands_in_different_windows_can_not_be_told_apart(bert: str) -> None:
    module = QuestionAnsweringModule(bert, max_length=16, doc_stride=6).eval()
    text = ("why", " ".join(CORPUS))
    (far,) = module.attribution_targets([text], target="awful ending")
    (near,) = module.attribution_targets([text], target="awful ending", contrast="plot")
    assert text[1][slice(*far.span)] == text[1][slice(*near.span)] == "awful ending"
    with pytest.raises(
        ConfigError, match=r"contrast: nothing can be told apart from 'moving': .* no window holds both"
    ):
        module.attribution_targets([text], target="awful ending", contrast="moving")


def test_the_most_wrong_answers_share_least_with_the_right_ones(bert: str) -> None:
    module = QuestionAnsweringModule(bert, max_answer_length=4)
    said = module.predict_texts(PAIRS[:4])
    labels = [[said[0].text], ["something else"], [said[2].text + " indeed"], ["or else"]]
    surest = sorted((1, 3), key=lambda i: -said[i].score)
    assert module.most_wrong(PAIRS[:4], labels) == [*surest, 2]


def test_an_unknown_target_is_told(bert: str) -> None:
    module = QuestionAnsweringModule(bert)
    known = "is not one of answer, start, end, no answer"
    with pytest.raises(ConfigError, match=f"target: 'anser' {known}, and stands in no context; did you mean 'answer'"):
        module.attribution_targets([("why", "a film")], target="anser")
    with pytest.raises(ConfigError, match=f"contrast: 'runer-up' {known}, runner-up, and stands in no context; did"):
        module.attribution_targets([("why", "a film")], contrast="runer-up")
    with pytest.raises(TargetError, match=f"target: 'runner-up' {known}, and stands in no context"):
        module.attribution_targets([("why", "a film")], target="runner-up")
    with pytest.raises(ConfigError, match="contrast: 'film' can't be told apart from itself"):
        module.attribution_targets([("why", "a film")], target="film", contrast="film")


def test_what_is_no_number_is_not_told(bert: str) -> None:
    module = QuestionAnsweringModule(bert)
    with torch.no_grad():
        module.model.qa_outputs.bias[0] = torch.nan
    with pytest.raises(UserError, match=r"^what the model says is no finite number"):
        module.answer("Who?", "Ada wrote it.")
