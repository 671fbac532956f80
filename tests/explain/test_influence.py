import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F

from lit_nlp import (
    LanguageModelingDataModule,
    LanguageModelingModule,
    QuestionAnsweringDataModule,
    QuestionAnsweringModule,
    SentimentModule,
    TextClassificationDataModule,
    TextClassificationModule,
    TranslationDataModule,
    TranslationModule,
    cli,
)
from lit_nlp.errors import CheckpointError, ConfigError, UserError
from lit_nlp.explain import influence
from lit_nlp.explain.checkpoints import read_run
from lit_nlp.explain.influence import Influence, influences
from tests import translators
from tests.backbones import CORPUS
from tests.contract import plain_trainer, save, traces, write_rows

LABELS = ["cold", "mild", "hot"]
HEADS = {"bert": "model.classifier", "roberta": "model.classifier.out_proj", "llama": "model.score"}
ASKED = ["a funny film", "the plot is dull and far too long, and I would not see it again", "good"]


class Run:
    """A module, the table that it was trained on, and the checkpoints of its run."""

    def __init__(self, backbone: str, folder: Path, rows: Sequence[dict[str, Any]], **arguments: Any) -> None:
        seed_everything(0, verbose=False)
        ours = {
            name: arguments.pop(name)
            for name in ("class_weights", "label_smoothing", "layer_decay")
            if name in arguments
        }
        source = write_rows(folder / "rows.jsonl", rows)
        self.data = TextClassificationDataModule(
            backbone, train=source, val=source, batch_size=4, **{"max_length": 48, **arguments}
        )
        self.data.setup("fit")
        facts = {name: fact for name, fact in self.data.facts.items() if name != "label_counts"}
        self.module = TextClassificationModule(backbone, **facts, **ours, learning_rate=1e-2, warmup=0.0)
        with torch.no_grad():
            for weight in self.module.model.parameters():
                weight.mul_(25 if weight.ndim > 1 else 1)  # as drawn, all texts are much the same to it
        keeper = ModelCheckpoint(folder / "run", save_top_k=-1, every_n_train_steps=1, filename="{step}")
        trainer = plain_trainer(callbacks=[keeper], enable_checkpointing=True, max_epochs=2)
        trainer.fit(self.module, self.data)
        self.module.eval()
        self.checkpoints = sorted((folder / "run").glob("step=*.ckpt"))
        assert len(self.checkpoints) == 4

    def scores(self, texts: Sequence[Any], labels: Any = None, **arguments: Any) -> list[list[float]]:
        """Return the score of every row for every text."""
        table = self.data.tables["train"]
        given = {"top": len(table), "batch_size": 4, **arguments}
        found = influences(self.module, self.checkpoints, self.data, texts, labels, **given)
        by_row = [{each.row: each.score for each in some} for some in found]
        return [[some.get(row, 0.0) for row in range(len(table))] for some in by_row]


def rows_of(labels: Sequence[Any]) -> list[dict[str, Any]]:
    return [{"text": text, "label": label} for text, label in zip(CORPUS, labels, strict=True)]


def by_hand(
    run: Run, texts: Sequence[Any], targets: Tensor, names: Sequence[str], loss: Callable[[Tensor, Tensor], Tensor]
) -> list[list[float]]:
    """Return the sum of rates times products of gradients, one text at a time through transformers' own model."""
    table = run.data.tables["train"]
    pairs = zip(table["text"][:], table["text_pair"][:], strict=True)
    trained = [(text, pair) if pair else text for text, pair in pairs]
    total = torch.zeros(len(texts), len(table))
    for path in run.checkpoints:
        module = TextClassificationModule.load_from_checkpoint(path).eval()
        weights = [p for name, p in module.named_parameters() if any(name.startswith(f"{each}.") for each in names)]
        assert len(weights) >= len(names)
        one, other = (
            torch.stack([gradient(module, weights, loss, *each) for each in zip(some, labels, strict=True)])
            for some, labels in [(texts, targets), (trained, torch.tensor(table["label"][:]))]
        )
        saved = torch.load(path, weights_only=True)
        rate = max(group["lr"] for group in saved["optimizer_states"][0]["param_groups"])
        total += rate * one @ other.T
    return total.tolist()


def gradient(
    module: TextClassificationModule,
    weights: list[nn.Parameter],
    loss: Callable[[Tensor, Tensor], Tensor],
    text: Any,
    target: Tensor,
) -> Tensor:
    texts = text if isinstance(text, tuple) else (text,)
    limits = {"max_length": module.max_length, "stride": module.doc_stride or 0, "truncation": "only_first"}
    read = module.tokenizer(*texts, return_overflowing_tokens=True, **limits)
    names = module.tokenizer.model_input_names
    windows = [{name: torch.tensor([read[name][i]]) for name in names} for i in range(len(read["input_ids"]))]
    assert module.doc_stride or len(windows) == 1
    logits = torch.stack([module.model(**module.inputs(window)).logits[0] for window in windows]).mean(0)
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss(logits, target), weights)])


def close(one: list[list[float]], other: list[list[float]]) -> None:
    largest = max(abs(score) for some in other for score in some)
    assert largest > 1e-4
    for some, others in zip(one, other, strict=True):
        assert some == pytest.approx(others, rel=1e-3, abs=1e-4 * largest)


@pytest.fixture(params=list(HEADS))
def backbone(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def run(bert: str, tmp_path: Path) -> Run:
    return Run(bert, tmp_path, rows_of([LABELS[i % 3] for i in range(6)]), labels=LABELS)


@pytest.fixture
def binary(bert: str, tmp_path: Path) -> Run:
    return Run(bert, tmp_path, rows_of(["good", "bad"] * 3))


# What the scores are, against gradients taken one by one


def test_a_score_is_the_rates_times_the_products_of_the_heads_gradients(
    backbone: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(backbone)
    run = Run(folder, tmp_path, rows_of([LABELS[i % 3] for i in range(6)]), labels=LABELS)
    expected = by_hand(run, ASKED, torch.tensor([2, 0, 1]), [HEADS[backbone]], F.cross_entropy)
    close(run.scores(ASKED, ["hot", "cold", "mild"]), expected)


def test_several_labels_have_their_mean_binary_cross_entropy(bert: str, tmp_path: Path) -> None:
    rows = rows_of(["|".join(LABELS[: i % 3 + 1]) for i in range(6)])
    run = Run(bert, tmp_path, rows, problem_type="multi_label", labels=LABELS)
    targets = torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0]])
    expected = by_hand(run, ASKED, targets, [HEADS["bert"]], F.binary_cross_entropy_with_logits)
    close(run.scores(ASKED, [["hot", "cold"], [], ["mild"]]), expected)


def test_a_score_has_its_squared_error(bert: str, tmp_path: Path) -> None:
    run = Run(bert, tmp_path, rows_of([i / 4 for i in range(6)]), problem_type="regression")
    expected = by_hand(run, ASKED, torch.tensor([[3.0], [-1.0], [0.25]]), [HEADS["bert"]], F.mse_loss)
    close(run.scores(ASKED, [3, -1.0, 0.25]), expected)


def test_a_text_in_windows_is_one_row_of_their_mean_logits(bert: str, tmp_path: Path) -> None:
    rows = [{"text": text, "text_pair": "a film", "label": i % 3} for i, text in enumerate(CORPUS)]
    run = Run(bert, tmp_path, rows, max_length=14, doc_stride=2)
    texts = [(text, "a story") for text in ASKED]
    assert len(run.module.encode(texts).sequences) > len(texts)
    assert max(map(len, run.data.tables["train"]["input_ids"][:])) > 1
    expected = by_hand(run, texts, torch.tensor([2, 0, 1]), [HEADS["bert"]], F.cross_entropy)
    close(run.scores(texts, ["2", "0", "1"]), expected)
    by_layers = run.scores(texts, ["2", "0", "1"], layers=[HEADS["bert"]])
    close(by_layers, expected)


def test_other_layers_count_where_they_are_named(backbone: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = request.getfixturevalue(backbone)
    run = Run(folder, tmp_path, rows_of([LABELS[i % 3] for i in range(6)]), labels=LABELS)
    (embeddings,) = (name for name, part in run.module.named_modules() if part is run.module.embedding_layers()[0])
    layers = [embeddings, HEADS[backbone]]
    expected = by_hand(run, ASKED, torch.tensor([2, 0, 1]), layers, F.cross_entropy)
    close(run.scores(ASKED, ["hot", "cold", "mild"], layers=layers), expected)


def test_the_head_by_its_name_gives_what_it_gives_by_default(run: Run) -> None:
    close(run.scores(ASKED, layers=[HEADS["bert"]]), run.scores(ASKED))


def test_class_weights_smoothing_and_slower_layers_count_nothing(bert: str, tmp_path: Path) -> None:
    rows = rows_of([LABELS[i % 3] for i in range(6)])
    ours = {"class_weights": [1.0, 5.0, 0.2], "label_smoothing": 0.2, "layer_decay": 0.5}
    run = Run(bert, tmp_path, rows, labels=LABELS, **ours)
    expected = by_hand(run, ASKED, torch.tensor([2, 0, 1]), [HEADS["bert"]], F.cross_entropy)
    close(run.scores(ASKED, ["hot", "cold", "mild"]), expected)


def test_the_module_accounts_for_its_prediction_where_no_label_is_given(run: Run) -> None:
    said = [prediction.label for prediction in run.module.predict_texts(ASKED)]
    assert run.scores(ASKED) == run.scores(ASKED, said)
    others = [LABELS[LABELS.index(str(label)) - 1] for label in said]
    assert run.scores(ASKED) != run.scores(ASKED, others)


def test_the_rate_is_the_modules_own_where_the_checkpoint_has_none(run: Run, tmp_path: Path) -> None:
    weights_only = tmp_path / "weights.ckpt"
    checkpoint = torch.load(run.checkpoints[0], weights_only=True)
    rate = checkpoint["optimizer_states"][0]["param_groups"][0]["lr"]
    torch.save(checkpoint | {"optimizer_states": []}, weights_only)
    run.checkpoints = [weights_only]
    without = run.scores(ASKED)
    run.checkpoints = [tmp_path / "run" / "step=1.ckpt"]
    close(without, [[score * run.module.learning_rate / rate for score in some] for some in run.scores(ASKED)])


def test_checkpoints_add_up(run: Run) -> None:
    both, run.checkpoints = run.checkpoints[:2], run.checkpoints[:1]
    first = run.scores(ASKED)
    run.checkpoints = both[1:]
    second = run.scores(ASKED)
    run.checkpoints = both
    close(run.scores(ASKED), [[a + b for a, b in zip(*each, strict=True)] for each in zip(first, second, strict=True)])


# What the scores say


def test_the_same_text_with_the_same_label_is_the_top_proponent(binary: Run) -> None:
    labels = ["good", "bad"] * 3
    found = influences(
        binary.module,
        binary.checkpoints,
        binary.data,
        CORPUS,
        labels,
        top=1,
        layers=["model.bert.embeddings.word_embeddings"],
    )
    assert [(some[0].row, some[0].text, some[0].label) for some in found] == list(
        zip(range(6), CORPUS, labels, strict=True)
    )
    assert all(some[0].score > 0 for some in found)


def test_the_scores_of_the_training_rows_themselves_are_products_of_vectors(binary: Run) -> None:
    scores = torch.tensor(binary.scores(CORPUS, ["good", "bad"] * 3), dtype=torch.double)
    torch.testing.assert_close(scores, scores.T, rtol=1e-3, atol=1e-7)
    assert (scores.diagonal() > 0).all()
    cosines = scores / scores.diagonal().sqrt().outer(scores.diagonal().sqrt())
    assert (cosines.abs() < 1 + 1e-5).all()


def test_with_the_other_label_proponents_become_opponents(binary: Run) -> None:
    (good,), (bad,) = binary.scores(ASKED[:1], ["good"]), binary.scores(ASKED[:1], ["bad"])
    assert any(score > 0 for score in good)
    assert any(score < 0 for score in good)
    assert [score > 0 for score in good] == [score < 0 for score in bad]
    # No bias of the table: whatever its label, a row of the same text stands on the side of its own label.
    for row, text in enumerate(CORPUS):
        (scores,) = binary.scores([text], [["bad", "good"][row % 2]])
        assert scores[row] < 0


def test_training_on_a_proponent_lowers_the_loss_of_the_text_and_on_an_opponent_raises_it(binary: Run) -> None:
    path, table = binary.checkpoints[0], binary.data.tables["train"]
    binary.checkpoints = [path]
    (scores,) = binary.scores(["a warm story"], ["good"], layers=["model.bert", "model.classifier"])
    rate = torch.load(path, weights_only=True)["optimizer_states"][0]["param_groups"][0]["lr"]

    def loss(module: Any, text: str, label: int) -> Tensor:
        logits = module(**module.pad(module.encode([text]).sequences))
        return F.cross_entropy(logits.double(), torch.tensor([label]))

    asked = binary.module.labels.index("good")
    for row, score in enumerate(scores):
        module = TextClassificationModule.load_from_checkpoint(path).eval().double()
        before = loss(module, "a warm story", asked).item()
        loss(module, table[row]["text"], table[row]["label"]).backward()
        with torch.no_grad():
            for weight in module.parameters():
                weight -= rate * 1e-4 * weight.grad
        assert (before - loss(module, "a warm story", asked).item()) / 1e-4 == pytest.approx(score, rel=1e-2, abs=1e-6)


@pytest.mark.parametrize("top", [2, 6])
def test_proponents_come_before_opponents_and_the_strongest_first(run: Run, top: int) -> None:
    for all_scores, found in zip(
        run.scores(ASKED), influences(run.module, run.checkpoints, run.data, ASKED, top=top), strict=True
    ):
        ranked = sorted(range(6), key=lambda row: -all_scores[row])
        proponents = [row for row in ranked if all_scores[row] > 0][:top]
        opponents = [row for row in ranked[::-1] if all_scores[row] < 0][:top]
        assert [each.row for each in found] == proponents + opponents
        assert [each.score for each in found] == pytest.approx([all_scores[each.row] for each in found], rel=1e-3)


def test_an_example_is_told_with_its_label_and_its_line(run: Run, tmp_path: Path) -> None:
    (found,) = influences(run.module, run.checkpoints, run.data, ASKED[:1], top=6)
    assert found
    for each in found:
        assert each == Influence(
            row=each.row,
            text=CORPUS[each.row],
            text_pair=None,
            label=LABELS[each.row % 3],
            score=each.score,
            where=f"{tmp_path / 'rows.jsonl'}, line {each.row + 1}",
        )


def test_rows_may_be_selected_beforehand(run: Run) -> None:
    (everything,) = run.scores(ASKED[:1])
    run.data.tables["train"] = run.data.tables["train"].select([5, 1, 2])
    (some,) = run.scores(ASKED[:1])
    assert some == pytest.approx([everything[5], everything[1], everything[2]], rel=1e-3, abs=1e-8)


def test_checkpoints_of_one_step_count_once(run: Run, tmp_path: Path) -> None:
    run.checkpoints = run.checkpoints[:2]
    once = run.scores(ASKED)
    again = tmp_path / "best.ckpt"
    again.write_bytes(run.checkpoints[1].read_bytes())
    run.checkpoints = [again, *run.checkpoints]
    close(run.scores(ASKED), once)


def test_no_text_has_no_influence(run: Run) -> None:
    assert influences(run.module, run.checkpoints, run.data, []) == []


# What is left behind


@pytest.mark.parametrize("layers", [None, ["model.classifier", "model.bert.embeddings.word_embeddings"]])
@pytest.mark.parametrize("fails_at", [None, 1, 2, 4, 7])
def test_the_module_is_left_as_it_was_also_when_something_fails_inside(
    run: Run, layers: list[str] | None, fails_at: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.module.train()
    run.module.model.bert.encoder.eval()
    run.module.model.get_input_embeddings().requires_grad_(False)
    with torch.no_grad():
        run.module.model.classifier.weight.add_(0.5)  # so that no checkpoint holds these weights
    before, random = traces(run.module), torch.get_rng_state()
    places = {name: weight.data_ptr() for name, weight in run.module.named_parameters()}
    original, calls = nn.Linear.forward, 0

    def failing(layer: nn.Linear, read: Tensor) -> Tensor:
        nonlocal calls
        calls += layer is run.module.model.classifier
        if calls == fails_at:
            raise RuntimeError("out of memory")
        return original(layer, read)

    monkeypatch.setattr(nn.Linear, "forward", failing)
    if fails_at is None:
        run.scores(ASKED, layers=layers)
    else:
        with pytest.raises(RuntimeError, match="out of memory"):
            run.scores(ASKED, layers=layers)
    assert calls >= (fails_at or 1)
    assert traces(run.module) == before
    assert {name: weight.data_ptr() for name, weight in run.module.named_parameters()} == places
    assert torch.equal(torch.get_rng_state(), random)


# What is refused


def refused(run: Run, kind: type[UserError], **changes: Any) -> str:
    arguments = {
        "module": run.module,
        "checkpoints": run.checkpoints,
        "data": run.data,
        "texts": ASKED,
        **changes,
    }
    with pytest.raises(kind) as caught:
        influences(**arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_checkpoints_of_another_module_are_refused(run: Run, bert: str, roberta: str, tmp_path: Path) -> None:
    before = traces(run.module)
    mend = "; give checkpoints of the run that trained the module"
    other = save(SentimentModule(bert), tmp_path / "sentiment.ckpt")
    problem = "it was written by SentimentModule, not by TextClassificationModule"
    assert refused(run, CheckpointError, checkpoints=[run.checkpoints[0], other]) == f"{other}: {problem}{mend}"

    other = save(TextClassificationModule(roberta, labels=LABELS), tmp_path / "roberta.ckpt")
    assert f"{other}: its weights are of another module: " in refused(run, CheckpointError, checkpoints=[other])

    other = save(TextClassificationModule(bert, labels=LABELS[:2]), tmp_path / "two.ckpt")
    assert "model.classifier.weight differs in shape" in refused(run, CheckpointError, checkpoints=[other])

    other = save(TextClassificationModule(bert, labels=LABELS[::-1], pairs=False), tmp_path / "reversed.ckpt")
    problem = f"it was trained with labels={LABELS[::-1]}, the module with {LABELS}"
    assert refused(run, CheckpointError, checkpoints=[other]) == f"{other}: {problem}{mend}"
    assert traces(run.module) == before


def test_no_checkpoint_at_all_is_refused(run: Run, tmp_path: Path) -> None:
    assert refused(run, CheckpointError, checkpoints=[]) == (
        "no checkpoint was given; give those that `fit` wrote into checkpoints/"
    )
    assert "there is no such checkpoint file" in refused(run, CheckpointError, checkpoints=[tmp_path / "none.ckpt"])
    torch.save({"state_dict": run.module.state_dict()}, tmp_path / "foreign.ckpt")
    told = refused(run, CheckpointError, checkpoints=[tmp_path / "foreign.ckpt"])
    assert "this file is no checkpoint of lit_nlp" in told
    assert "expected a list of checkpoints, got one" in refused(run, ConfigError, checkpoints=str(run.checkpoints[0]))


def test_the_end_of_the_schedule_alone_counts_with_the_modules_rate(run: Run, tmp_path: Path) -> None:
    last = torch.load(run.checkpoints[-1], weights_only=True)
    assert last["optimizer_states"][0]["param_groups"][0]["lr"] == 0
    torch.save(last | {"optimizer_states": []}, tmp_path / "without.ckpt")
    run.checkpoints = [run.checkpoints[-1]]
    at_end = run.scores(ASKED)
    run.checkpoints = [tmp_path / "without.ckpt"]
    close(at_end, run.scores(ASKED))


def test_weights_that_are_no_numbers_are_refused(run: Run, tmp_path: Path) -> None:
    checkpoint = torch.load(run.checkpoints[0], weights_only=True)
    checkpoint["state_dict"]["model.classifier.bias"][0] = torch.nan
    torch.save(checkpoint, tmp_path / "diverged.ckpt")
    before = traces(run.module)
    assert "not finite" in refused(run, UserError, checkpoints=[tmp_path / "diverged.ckpt"])
    assert traces(run.module) == before


def test_what_is_no_training_data_of_the_module_is_refused(
    run: Run, bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a user's Python checks no types
    source = run.data.sources["train"]
    made = TextClassificationDataModule(bert, train=source, val=source)
    for data in None, run.data.tables["train"], made:
        told = refused(run, ConfigError, data=data)
        assert told == 'data: influence needs the training data; give the data module, after setup("fit")'
    several = TextClassificationDataModule(bert, train=source, val=source, labels=LABELS, problem_type="multi_label")
    renamed = TextClassificationDataModule(bert, train=source, val=source, labels=LABELS[::-1])
    question = {"question": "what", "context": "a film", "answers": ["film"]}
    answers = QuestionAnsweringDataModule(bert, train=write_rows(tmp_path / "questions.jsonl", [question]), val=source)
    problems = (
        (several, "data.problem_type: the data has 'multi_label', the module 'single_label'"),
        (renamed, f"data.labels: the data has {LABELS[::-1]}, the module {LABELS}"),
        (answers, "data: QuestionAnsweringDataModule makes batches for question_answering, Text"),
    )
    for data, problem in problems:
        data.tables["train"] = data._open("train")
        assert refused(run, ConfigError, data=data).startswith(problem)
    run.data.tables["train"] = run.data.tables["train"].select([])
    assert "no training rows with labels" in refused(run, ConfigError)


def test_a_module_that_decides_nothing_is_refused(run: Run, llama: str, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in CORPUS])
    data = LanguageModelingDataModule(llama, train=source, val=source, objective="causal")
    data.setup("fit")
    told = refused(run, ConfigError, module=LanguageModelingModule(llama, objective="causal"), data=data)
    assert told == "explain: LanguageModelingDataModule has no texts that could be explained"


def test_layers_that_are_none_are_refused_with_some_that_are(run: Run) -> None:
    told = refused(run, ConfigError, layers=["model.clasifier"])
    assert told == "layers: the model has no layer 'model.clasifier'; did you mean 'model.classifier'?"
    assert refused(run, ConfigError, layers=["?"]).endswith("model.bert.pooler.dense, model.classifier")
    assert "expected a list of layers" in refused(run, ConfigError, layers=[])
    overlapping = ["model.bert.encoder.layer.0", "model.bert"]
    assert "some weights belong to two of" in refused(run, ConfigError, layers=overlapping)


@pytest.mark.parametrize("width", [3, 7])
def test_a_last_linear_layer_that_gives_no_logits_is_refused(run: Run, tmp_path: Path, width: int) -> None:
    run.module.model.auxiliary = nn.Linear(16, width)
    path = save(run.module, tmp_path / "auxiliary.ckpt")
    before = traces(run.module)
    told = refused(run, ConfigError, checkpoints=[path])
    assert told.startswith("layers: the logits are not what the last linear layer makes of what it reads; name layers")
    assert told.endswith("model.classifier, model.auxiliary")
    assert traces(run.module) == before
    assert influences(run.module, [path], run.data, ASKED, layers=["model.classifier"])


def test_logits_that_are_bent_behind_the_last_layer_are_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.module, "forward", lambda **inputs: run.module.model(**inputs).logits.mul(9).tanh())
    assert "the logits are not what the last linear layer makes" in refused(run, ConfigError)


def test_arguments_that_dont_go_together_are_refused(run: Run) -> None:
    assert refused(run, ConfigError, labels=["hot"]) == "labels: there are 3 texts but 1 labels"
    assert "did you mean 'cold'" in refused(run, ConfigError, labels=["colt", "hot", "hot"])
    assert "expected one class, got ['hot', 'cold']" in refused(
        run, ConfigError, labels=["hot", ["hot", "cold"], "hot"]
    )
    assert "expected a list of texts" in refused(run, ConfigError, texts="a film")
    assert refused(run, ConfigError, top=0) == "top: expected a number above 0, got 0"
    assert refused(run, ConfigError, batch_size=0) == "batch_size: expected a number above 0, got 0"


# Other tasks


@pytest.fixture
def answering(bert: str, tmp_path: Path) -> tuple[Any, Any, list[Path]]:
    rows = []
    for i, text in enumerate(CORPUS):
        word = text.split()[i % 3]
        rows.append({"question": "what", "context": text, "answers": [{"text": word, "answer_start": text.find(word)}]})
    source = write_rows(tmp_path / "rows.jsonl", rows)
    data = QuestionAnsweringDataModule(bert, train=source, val=source, batch_size=4, max_length=48)
    return fitted(QuestionAnsweringModule, data, bert, tmp_path)


@pytest.fixture
def translating(tmp_path: Path) -> tuple[Any, Any, list[Path]]:
    (tmp_path / "marian").mkdir()
    marian = translators.save_marian(tmp_path / "marian")
    rows = [{"source": text, "target": " ".join(text.split()[:3])} for text in CORPUS]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    data = TranslationDataModule(marian, train=source, val=source, batch_size=4, max_length=48)
    return fitted(TranslationModule, data, marian, tmp_path)


def fitted(kind: Any, data: Any, backbone: str, folder: Path) -> tuple[Any, Any, list[Path]]:
    seed_everything(0, verbose=False)
    data.setup("fit")
    # Smoothing, since a score is to know nothing of it.
    module = kind(backbone, **data.facts, learning_rate=1e-2, warmup=0.0, label_smoothing=0.2)
    keeper = ModelCheckpoint(folder / "run", save_top_k=-1, every_n_train_steps=1, filename="{step}")
    plain_trainer(callbacks=[keeper], enable_checkpointing=True, max_epochs=1).fit(module, data)
    return module.eval(), data, sorted((folder / "run").glob("step=*.ckpt"))


def products(module: Any, name: str, checkpoints: list[Path], asked: Any, rows: Any) -> Tensor:
    """Return the sum over checkpoints of rates times products of gradients of losses, one loss at a time."""
    total = torch.zeros(len(asked), len(rows))
    for path in checkpoints:
        other = type(module).load_from_checkpoint(path).eval()
        weights = list(other.get_submodule(name).parameters())

        def gradients(losses: Any, other: Any = other, weights: Any = weights) -> Tensor:
            found = [torch.autograd.grad(loss(other), weights) for loss in losses]
            return torch.stack([torch.cat([each.flatten() for each in some]) for some in found])

        rate = torch.load(path, weights_only=True)["optimizer_states"][0]["param_groups"][0]["lr"]
        total += rate * gradients(asked) @ gradients(rows).T
    return total


def told(found: list[list[Influence]], rows: int) -> list[list[float]]:
    by_row = [{each.row: each.score for each in some} for some in found]
    return [[some.get(row, 0.0) for row in range(rows)] for some in by_row]


def test_an_answer_is_accounted_for_by_the_span_that_was_given(answering: Any) -> None:
    module, data, checkpoints = answering
    texts = [("what", "a warm film"), ("why", CORPUS[1])]
    answers = module.predict_texts(texts)
    found = influences(module, checkpoints, data, texts, top=99, batch_size=4)

    def of_answer(text: tuple[str, str], answer: Any) -> Any:
        read = module.tokenizer(*text, return_tensors="pt", return_offsets_mapping=True)
        offsets, parts = read.pop("offset_mapping")[0].tolist(), read.sequence_ids()
        inside = [i for i, part in enumerate(parts) if part == 1]
        first = next(i for i in inside if offsets[i][1] > answer.start)
        last = next(i for i in reversed(inside) if offsets[i][0] < answer.end)
        # transformers' loss is the mean of both ends'.
        return lambda other: (
            2 * other.model(**read, start_positions=torch.tensor([first]), end_positions=torch.tensor([last])).loss
        )

    def of_row(row: int) -> Any:
        batch = data.batch_of("train", [row])
        names = {"input_ids", "attention_mask", "token_type_ids", "start_positions", "end_positions"}
        return lambda other: other.model(**{name: batch[name] for name in names & batch.keys()}).loss

    asked = [of_answer(*each) for each in zip(texts, answers, strict=True)]
    expected = products(module, "model.qa_outputs", checkpoints, asked, [of_row(row) for row in range(len(CORPUS))])
    torch.testing.assert_close(torch.tensor(told(found, len(CORPUS))), expected, rtol=1e-3, atol=1e-6)
    assert found[0][0].text_pair in CORPUS
    assert found[0][0].where.startswith(f"{data.sources['train']}, line ")


def of_pair(ids: list[int], labels: list[int]) -> Any:
    return lambda other: len(labels) * other.model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss


def test_what_is_written_is_accounted_for_by_all_its_tokens(translating: Any) -> None:
    module, data, checkpoints = translating
    before = traces(module)
    texts = [CORPUS[0], "a film"]
    written = [module._without_end(ids) for ids in module._outputs(texts, 1)]
    assert all(written), "there must be something to account for"
    found = influences(module, checkpoints, data, texts, top=99, batch_size=4)
    assert traces(module) == before

    asked = [of_pair(ids, labels) for ids, labels in zip(module.pairs.sources(texts).ids, written, strict=True)]
    rows = [of_pair(row["source_ids"], row["target_ids"]) for row in data.tables["train"]]
    name = influence._last_linear(module)
    assert name == "model.model.decoder.layers.1.fc2"
    expected = products(module, name, checkpoints, asked, rows)
    torch.testing.assert_close(torch.tensor(told(found, len(CORPUS))), expected, rtol=1e-3, atol=1e-5)
    assert {each.label for each in found[0]} <= {" ".join(text.split()[:3]) for text in CORPUS}


def test_what_is_taken_as_written_may_be_given(translating: Any) -> None:
    module, data, checkpoints = translating
    texts, table = [CORPUS[0], "a film"], data.tables["train"]
    given = [CORPUS[2], CORPUS[3]]
    found = influences(module, checkpoints, data, texts, given, top=99)
    shapes = zip(module.pairs.sources(texts).ids, module.pairs.targets(given).ids, strict=True)
    asked = [of_pair(ids, module._without_end(labels)) for ids, labels in shapes]
    rows = [of_pair(row["source_ids"], row["target_ids"]) for row in table]
    expected = products(module, influence._last_linear(module), checkpoints, asked, rows)
    torch.testing.assert_close(torch.tensor(told(found, len(CORPUS))), expected, rtol=1e-3, atol=1e-5)


@pytest.fixture(params=["answering", "translating"])
def other(request: pytest.FixtureRequest) -> tuple[Any, Any, list[Path], list[Any]]:
    texts = {"answering": [("what", "a warm film"), ("why", CORPUS[1])], "translating": [CORPUS[0], "a film"]}
    return (*request.getfixturevalue(request.param), texts[request.param])


def test_rows_of_other_tasks_may_be_selected_beforehand(other: Any) -> None:
    module, data, checkpoints, texts = other
    table = data.tables["train"]
    everything = told(influences(module, checkpoints, data, texts, top=99), len(table))
    data.tables["train"] = table.select([5, 1, 2])
    found = influences(module, checkpoints, data, texts, top=99)
    for some, scores, whole in zip(found, told(found, 3), everything, strict=True):
        assert scores == pytest.approx([whole[5], whole[1], whole[2]], rel=1e-3, abs=1e-6)
        assert {each.where for each in some} <= {table[row]["where"] for row in (5, 1, 2)}


def test_each_row_is_counted_once_for_each_checkpoint(other: Any, capsys: pytest.CaptureFixture[str]) -> None:
    module, data, checkpoints, texts = other
    influences(module, checkpoints, data, texts, progress=True)
    rows = len(data.tables["train"]) * len(read_run(checkpoints, module))
    assert f" {rows}/{rows} " in capsys.readouterr().err.split("\r")[-1]


def test_what_other_tasks_dont_take_is_refused(other: Any) -> None:
    module, data, checkpoints, texts = other

    def refusal(**changes: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            influences(module, checkpoints, **{"data": data, "texts": texts, **changes})
        return str(caught.value)

    before = traces(module)
    assert refusal(batch_size=0) == "batch_size: expected a number above 0, got 0"
    assert refusal(top=0) == "top: expected a number above 0, got 0"
    assert refusal(labels=["one"]) == "labels: there are 2 texts but 1 labels"
    assert refusal(labels=[1.0, 2.0]).startswith("labels: ")
    if isinstance(module, QuestionAnsweringModule):
        assert refusal(labels=["warm", "film"]).endswith("is accounted for, and no other; leave them out")
    data.tables["train"] = data.tables["train"].select([])
    assert "no training rows with labels" in refusal()
    assert traces(module) == before


def test_a_batch_of_training_rows_is_forgotten_before_the_next_but_one(
    other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, data, checkpoints, texts = other
    collate, made = data.collate, []

    def counting(rows: Any) -> Any:
        assert sum(ids() is not None for ids in made) <= 1
        batch = collate(rows)
        made.append(weakref.ref(batch["input_ids"]))
        return batch

    monkeypatch.setattr(data, "collate", counting)
    influences(module, checkpoints, data, texts, batch_size=1)
    assert len(made) == len(CORPUS) * len(checkpoints)


# What the command asks for


def test_rows_that_a_checkpoint_was_not_trained_on_are_refused(other: Any) -> None:
    module, data, checkpoints, _ = other
    assert cli._run_of(module, data, str(checkpoints[0]))[0] is data
    data.tables["train"] = data.tables["train"].select([0, 1])
    data.setup = lambda stage: None
    with pytest.raises(
        ConfigError, match=f"trained on {len(CORPUS)} rows, these are 2; give --data.train, --data.val and"
    ):
        cli._run_of(module, data, str(checkpoints[0]))


def test_the_error_of_a_score_is_that_from_what_the_data_says(bert: str, tmp_path: Path) -> None:
    run = Run(bert, tmp_path, rows_of([i / 4 for i in range(6)]), problem_type="regression")
    drawn = run.data.drawn("val", 2)
    of_run = cli._run_of(run.module, run.data, str(run.checkpoints[0]))
    found = cli._influences(run.module, *of_run, drawn, batch_size=4)
    expected = influences(run.module, run.checkpoints, run.data, drawn.texts, drawn.given)
    assert list(found) == drawn.rows
    for some, others in zip(found.values(), expected, strict=True):
        assert [each["row"] for each in some] == [each.row for each in others]
        assert [each["score"] for each in some] == pytest.approx([each.score for each in others], rel=1e-3)
