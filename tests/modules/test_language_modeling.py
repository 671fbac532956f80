import math
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer, MambaConfig, MambaForCausalLM

from lit_nlp import LanguageModelingDataModule, LanguageModelingModule, SentimentModule
from lit_nlp.errors import BackboneError, ConfigError, DataError
from lit_nlp.modules import language_modeling
from lit_nlp.objectives import IGNORED, Objective
from tests import language_models
from tests.backbones import CORPUS
from tests.contract import Contract, outputs, plain_trainer, rows_of, save

OBJECTIVES: dict[str, Objective] = {
    "bert": "masked",
    "roberta_to_pretrain": "masked",
    "llama": "causal",
    "gpt2": "causal",
    "t5": "denoising",
}
TEXTS = [*CORPUS, " ".join(CORPUS[:4])]


@pytest.fixture(scope="session")
def roberta_to_pretrain(tmp_path_factory: pytest.TempPathFactory) -> str:
    return language_models.save("roberta", tmp_path_factory.mktemp("roberta"))


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    return language_models.save("gpt2", tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def t5(tmp_path_factory: pytest.TempPathFactory) -> str:
    return language_models.save("t5", tmp_path_factory.mktemp("t5"))


def data_module(backbone: str, folder: Path, objective: Objective, **arguments: Any) -> LanguageModelingDataModule:
    source = folder / "texts.txt"
    source.write_text("".join(f"{text}\n" for text in TEXTS))
    given = {split: str(source) for split in ("train", "val", "test", "predict")}
    return LanguageModelingDataModule(
        backbone, objective=objective, **{**given, "max_length": 24, "batch_size": 4, **arguments}
    )


class LanguageModeling(Contract):
    """The contract, where a row has a loss for each of its tokens and no label."""

    texts = TEXTS
    objective: Objective

    def data(self, backbone: str, folder: Path) -> LanguageModelingDataModule:
        return data_module(backbone, folder, self.objective)

    def module(self, backbone: str, data: Any, **arguments: Any) -> LanguageModelingModule:
        return LanguageModelingModule(backbone, objective=data.objective, max_length=data.max_length, **arguments)

    def explain(self, module: Any) -> None:
        for text in self.texts:
            (tokens,) = module.encode([text]).sequences
            batch = module.pad([tokens])
            with module.attributing():
                logits = module(**module.inputs({**batch, "labels": batch["input_ids"]}))
                module.score(logits, torch.tensor([[2, 7]]))

    def test_a_trainer_predicts_the_same_as_the_module_alone(self, task: Any, datamodule: Any) -> None:
        batches = plain_trainer().predict(task, datamodule)
        assert batches is not None
        by_trainer = sorted((row for batch in batches for row in batch), key=lambda prediction: prediction.row)
        for one, other in zip(by_trainer, self.predict(task), strict=True):
            assert (one.text, one.tokens) == (other.text, other.tokens)
            assert one.loss_nats == pytest.approx(other.loss_nats, abs=1e-4)

    def test_a_batch_equals_its_single_rows(self, task: Any, datamodule: Any) -> None:
        rows = [0, 1, len(datamodule.tables["val"]) - 1] if datamodule.setup("fit") is None else []
        batch = rows_of(datamodule, rows)
        assert len(set(batch["length"].tolist())) > 1, "the rows must differ in length for this to say something"
        together = outputs(task, batch).split(task.places(batch).sum(1).tolist())
        losses = task.eval().row_losses(outputs(task, batch), batch)
        for i, row in enumerate(rows):
            alone = rows_of(datamodule, [row])
            torch.testing.assert_close(outputs(task, alone), together[i], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(task.row_losses(outputs(task, alone), alone)[0], losses[i])

    def test_the_score_is_differentiable_to_the_embeddings(self, task: Any, datamodule: Any) -> None:
        datamodule.setup("fit")
        batch = rows_of(datamodule, [0, 1, len(datamodule.tables["val"]) - 1])
        seen: list[Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda *call: seen.append(call[-1]) or call[-1].retain_grad())
            for layer in task.embedding_layers()
        ]
        logits = task.eval()(**task.inputs(batch))
        scores = task.score(logits, torch.tensor([[1, 0], [2, len(task.targets()) - 1], [3, 0]]))
        assert scores.shape == (3,)
        assert scores.tolist() == pytest.approx(
            [logits[i].log_softmax(-1)[i + 1, token].item() for i, token in enumerate([0, len(task.targets()) - 1, 0])]
        )
        scores.sum().backward()
        for hook in hooks:
            hook.remove()
        for embeddings in seen:
            assert embeddings.grad is not None
            assert (embeddings.grad.abs().sum(-1) > 0).any(1).all(), "each row's score hangs on its tokens"
        if "attention_mask" in batch:
            assert not seen[0].grad.abs().sum(-1)[batch["attention_mask"] == 0].any(), "and on no padding"
        assert len(seen) == (2 if self.objective == "denoising" else 1)


class TestMasked(LanguageModeling):
    objective = "masked"

    @pytest.fixture(params=["bert", "roberta_to_pretrain"])
    def backbone(self, request: pytest.FixtureRequest, tmp_path: Path) -> str:
        return str(shutil.copytree(request.getfixturevalue(request.param), tmp_path / "backbone"))


class TestCausal(LanguageModeling):
    objective = "causal"

    @pytest.fixture(params=["llama", "gpt2"])
    def backbone(self, request: pytest.FixtureRequest, tmp_path: Path) -> str:
        return str(shutil.copytree(request.getfixturevalue(request.param), tmp_path / "backbone"))


class TestDenoising(LanguageModeling):
    objective = "denoising"

    @pytest.fixture
    def backbone(self, t5: str, tmp_path: Path) -> str:
        return str(shutil.copytree(t5, tmp_path / "backbone"))


Make = Callable[..., tuple[LanguageModelingModule, LanguageModelingDataModule]]


@pytest.fixture
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Make a module and the data module that goes with it, with equal weights each time."""

    def pair(kind: str, **arguments: Any) -> tuple[LanguageModelingModule, LanguageModelingDataModule]:
        backbone = request.getfixturevalue(kind)
        data = data_module(backbone, tmp_path, OBJECTIVES[kind], **arguments)
        torch.manual_seed(0)
        module = LanguageModelingModule(backbone, objective=data.objective, max_length=24, learning_rate=1e-2)
        return module, data

    return pair


# Packed documents


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_document_reads_the_same_behind_any_other_as_alone(
    kind: str, attention: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    module = LanguageModelingModule(folder, attn_implementation=attention, max_length=24).eval()
    examples = module.examples
    second = [20, 21, 22, 23, 24]

    def logits(*pieces: list[int]) -> Tensor:
        batch = examples.pad([examples.example(pieces, np.random.default_rng())])
        with torch.no_grad():
            return module(**module.inputs(batch))[0]

    alone = logits(second)
    for first in ([10, 11, 12, 13], [14, 15, 16, 17], [18]):
        behind = logits(first, second)[len(first) :]
        torch.testing.assert_close(behind, alone, rtol=0, atol=1e-6)
    assert torch.equal(logits([10, 11], second)[2:], logits([12, 13], second)[2:]), "bit by bit, at the same place"
    assert not torch.allclose(logits([10, 11, *second])[2:], alone, atol=1e-4), "what it would be without"


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_documents_loss_sends_no_gradient_to_another(kind: str, make: Make) -> None:
    module, data = make(kind, max_length=64)
    batch = rows_of(data, [0, 1])
    starts = torch.nonzero(batch["position_ids"][0] == 0).flatten().tolist()
    embeddings: list[Tensor] = []
    module.eval().embedding_layers()[0].register_forward_hook(
        lambda *call: embeddings.append(call[-1]) or call[-1].retain_grad()
    )
    logits = module(**module.inputs(batch))[0]
    F.cross_entropy(logits[starts[1] : -1], batch["labels"][0, starts[1] + 1 :]).backward()
    gradient = embeddings[0].grad[0].abs().sum(-1)
    assert not gradient[: starts[1]].any()
    assert gradient[starts[1] :].any()


def test_packing_is_checked_where_the_weights_lie_and_not_where_they_will_be(
    llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = LanguageModelingModule(llama, objective="causal")
    # As a Trainer says in `setup` of a module that it will bring to a GPU.
    monkeypatch.setattr(module, "_device", torch.device("meta"))
    module.trainer = plain_trainer()
    module.setup("fit")


def test_an_architecture_that_reads_across_documents_is_refused(llama: str, tmp_path: Path) -> None:
    AutoTokenizer.from_pretrained(llama).save_pretrained(tmp_path / "mamba")
    config = MambaConfig(vocab_size=300, hidden_size=16, state_size=4, num_hidden_layers=2)
    MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    module = LanguageModelingModule(str(tmp_path / "mamba"), max_length=24)
    for stage in ("fit", "validate", "test"):
        with pytest.raises(BackboneError, match="mamba reads across documents that stand in one block; choose one"):
            module.setup(stage)
    module.trainer = plain_trainer()
    module.setup("predict")  # where each document has a block of its own


def test_who_broke_off_may_go_on(make: Make) -> None:
    module, data = make("llama")

    class BreaksOff(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        plain_trainer(callbacks=[BreaksOff()]).fit(module, data)
    plain_trainer(limit_val_batches=0).fit(module, data)
    assert module.model.config._attn_implementation == "sdpa"


# Losses, against formulas written out


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_losses_and_gradients_are_those_of_transformers(kind: str, make: Make) -> None:
    module, data = make(kind)
    batch = rows_of(data, [0, 1, 2])
    module.eval()
    taken = {name: batch[name] for name in ("attention_mask", "position_ids") if name in batch}
    cached = {} if module.objective == "masked" else {"use_cache": False}
    theirs = module.model(input_ids=batch["input_ids"], labels=batch["labels"], **taken, **cached).loss
    theirs.backward()
    expected = [parameter.grad.clone() for parameter in module.parameters()]
    module.zero_grad()
    ours = module.row_losses(module.forward_batch(batch), batch).sum() / module.loss_weight(batch)
    ours.backward()
    torch.testing.assert_close(ours, theirs)
    for parameter, gradient in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
    assert not module.model.get_output_embeddings()._forward_pre_hooks


def test_a_split_of_which_nothing_can_be_masked_has_no_loss(make: Make, tmp_path: Path) -> None:
    module, data = make("bert")
    (tmp_path / "unknown.txt").write_text("\u2603 \u2603\n")
    data.sources["test"] = str(tmp_path / "unknown.txt")
    with pytest.raises(DataError, match=r"^data.test: no text has a token that could be found"):
        plain_trainer().test(module, data, verbose=False)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_long_text_is_run_in_parts_and_its_loss_is_the_same(kind: str, make: Make) -> None:
    module, _ = make(kind)
    texts = [" ".join(CORPUS * 5), CORPUS[1]]
    seen: list[int] = []
    module.model.register_forward_pre_hook(lambda _, __, given: seen.append(len(given["input_ids"])), with_kwargs=True)
    together, alone = module.predict_texts(texts), [module.predict_texts([text])[0] for text in texts]
    assert max(seen) <= 2
    for one, other in zip(together, alone, strict=True):
        assert one.tokens == other.tokens
        assert one.loss_nats == pytest.approx(other.loss_nats, rel=1e-5)


def test_a_batch_without_a_finite_loss_leaves_no_finite_figure(make: Make) -> None:
    module, data = make("llama", batch_size=1)
    losses = module.row_losses
    calls = count()
    module.row_losses = lambda *given: losses(*given) * (torch.nan if next(calls) == 1 else 1.0)
    (tested,) = plain_trainer().test(module, data, verbose=False)
    assert next(calls) > 2
    assert math.isnan(tested["test/loss"])


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_perplexity_is_exp_of_the_mean_nats_of_all_tokens_whatever_the_batches(kind: str, make: Make) -> None:
    module, data = make(kind, batch_size=1)
    data.setup("test")
    nats, tokens = 0.0, 0
    for batch in data.test_dataloader():
        labels = batch["labels"].roll(-1, 1) if module.objective == "causal" else batch["labels"]
        labels = labels.clone()
        if module.objective == "causal":
            labels[:, -1] = IGNORED
        with torch.no_grad():
            logs = module.eval()(**module.inputs(batch)).double().log_softmax(-1)
        for place, label in enumerate(labels[0].tolist()):
            if label != IGNORED:
                nats, tokens = nats - logs[0, place, label].item(), tokens + 1
    for batch_size in (1, 3, 99):
        module, data = make(kind, batch_size=batch_size)
        (tested,) = plain_trainer().test(module, data, verbose=False)
        assert tested["test/loss"] == pytest.approx(nats / tokens, rel=1e-5)
        assert tested["test/perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
        (validated,) = plain_trainer().validate(module, data, verbose=False)
        assert validated["val/loss"] == pytest.approx(nats / tokens, rel=1e-5)


def test_label_smoothing_is_for_training_alone(bert: str, tmp_path: Path) -> None:
    batch = rows_of(data_module(bert, tmp_path, "masked"), [0, 1, 2])
    losses = []
    for smoothing in (0.0, 0.2):
        module = LanguageModelingModule(bert, label_smoothing=smoothing).eval()
        logits = torch.linspace(-1, 1, int(module.loss_weight(batch)) * 200).reshape(-1, 200)
        losses.append((module.row_losses(logits, batch), module.train().row_losses(logits, batch)))
    assert torch.equal(losses[0][0], losses[0][1])
    assert torch.equal(losses[0][0], losses[1][0])
    assert not torch.allclose(losses[0][1], losses[1][1])


def test_a_batch_in_which_nothing_is_to_be_found_has_no_loss(bert: str) -> None:
    module = LanguageModelingModule(bert)
    batch = {"input_ids": torch.tensor([[2, 9, 3]]), "labels": torch.full((1, 3), IGNORED)}
    assert module.row_losses(module.forward_batch(batch), batch).tolist() == [0.0]
    assert module.loss_weight(batch) == 1


# Fitting


class Seen(Callback):
    """Keeps what each step was given."""

    def __init__(self) -> None:
        self.batches: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_a_resumed_run_ends_with_the_weights_of_the_unbroken_one_bit_by_bit(
    kind: str, make: Make, tmp_path: Path
) -> None:
    module, data = make(kind, batch_size=2)
    seen, rest = Seen(), Seen()
    keeping = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    unbroken = plain_trainer(max_epochs=3, callbacks=[seen, keeping], enable_checkpointing=True)
    unbroken.fit(module, data)
    steps = unbroken.num_training_batches
    assert steps > 2

    resumed, again = make(kind, batch_size=2)
    middle = tmp_path / f"step={steps + 2}.ckpt"
    plain_trainer(max_epochs=3, callbacks=[rest]).fit(resumed, again, ckpt_path=middle, weights_only=True)
    assert len(rest.batches) == 2 * steps - 2
    for one, other in zip(rest.batches, seen.batches[steps + 2 :], strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    for one, other in zip(resumed.parameters(), module.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_tokens_of_a_second_are_told_without_padding(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    module, data = make("bert")
    clock = iter(range(0, 1_000, 2))
    monkeypatch.setattr(language_modeling, "perf_counter", lambda: float(next(clock)))
    seen = Seen()
    trainer = plain_trainer(max_epochs=1, callbacks=[seen])
    trainer.fit(module, data)
    tokens = int(seen.batches[-1]["attention_mask"].sum())
    assert tokens < seen.batches[-1]["attention_mask"].numel()
    assert trainer.callback_metrics["train/tokens_per_second"].item() == tokens / 2


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5"])
def test_a_few_epochs_lower_the_perplexity(kind: str, make: Make) -> None:
    module, data = make(kind)
    before = plain_trainer().validate(module, data, verbose=False)[0]["val/perplexity"]
    plain_trainer(max_epochs=10).fit(module, data)
    after = plain_trainer().validate(module, data, verbose=False)[0]["val/perplexity"]
    assert after < before / 2


# Predictions


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_texts_loss_is_its_own_wherever_it_stands(kind: str, make: Make) -> None:
    module, _ = make(kind)
    texts = [*TEXTS, "good", TEXTS[0]]
    alone = [module.predict_texts([text])[0] for text in texts]
    for batch_size in (1, 3, 32):
        found = module.predict_texts(texts, batch_size=batch_size)
        assert [each.text for each in found] == texts
        for each, expected in zip(found, alone, strict=True):
            assert each.tokens == expected.tokens
            assert each.loss_nats == pytest.approx(expected.loss_nats, rel=1e-5)
            assert each.perplexity == pytest.approx(math.exp(each.loss_nats / each.tokens))
    assert alone[0] == alone[-1]
    assert module.training


def test_a_decoders_loss_is_that_of_each_token_given_those_before_it(llama: str) -> None:
    module = LanguageModelingModule(llama).eval()
    ids = torch.tensor([[*module.tokenizer("a good film")["input_ids"], module.tokenizer.eos_token_id]])
    with torch.no_grad():
        expected = module.model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
    (found,) = module.predict_texts(["a good film"])
    assert found.loss_nats == pytest.approx(expected, rel=1e-5)
    assert found.tokens == ids.shape[1] - 1


def test_a_text_without_tokens_has_no_perplexity(bert: str, llama: str) -> None:
    for backbone in (bert, llama):
        (found,) = LanguageModelingModule(backbone).predict_texts([""])
        assert (found.loss_nats, found.tokens, found.perplexity) == (0.0, 0, None)
    assert LanguageModelingModule(bert).predict_texts([]) == []


# The backbone that comes of it


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_the_backbone_folder_is_transformers_own_and_holds_the_trained_weights(
    kind: str, make: Make, tmp_path: Path
) -> None:
    module, data = make(kind)
    plain_trainer(max_steps=2).fit(module, data)
    for _ in range(2):  # a second time over the first
        module.save_backbone(tmp_path / "run" / "backbone")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["backbone"]
    again = LanguageModelingModule(str(tmp_path / "run" / "backbone"), max_length=24)
    batch = rows_of(data, [0, 1, 2])
    assert torch.equal(outputs(again, batch), outputs(module, batch))
    assert again.tokenizer(CORPUS)["input_ids"] == module.tokenizer(CORPUS)["input_ids"]


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_another_task_goes_on_from_the_folder_or_from_the_checkpoint(kind: str, make: Make, tmp_path: Path) -> None:
    module, data = make(kind)
    plain_trainer(max_steps=2).fit(module, data)
    module.save_backbone(tmp_path / "backbone")
    checkpoint = save(module, tmp_path / "x.ckpt")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "backbone", num_labels=2)
    trained = {name: weight for name, weight in module.model.base_model.named_parameters() if "pooler" not in name}
    assert trained
    for backbone in (str(tmp_path / "backbone"), checkpoint):
        fitted = dict(SentimentModule(backbone).model.base_model.named_parameters())
        for name, weight in trained.items():
            assert torch.equal(fitted[name], weight)
    for name, weight in theirs.base_model.named_parameters():
        assert name not in trained or torch.equal(weight, trained[name])


# Mistakes


@pytest.mark.parametrize(
    ("kind", "objective", "message"),
    [
        ("bert", "causal", "bert is an encoder, which the objective causal doesn't fit; set data.objective to masked"),
        ("llama", "masked", "llama is a decoder, which the objective masked doesn't fit; set data.objective to causal"),
        ("t5", "masked", "t5 is an encoder-decoder, which the objective masked doesn't fit; set data.objective to den"),
    ],
)
def test_an_objective_that_does_not_fit_the_backbone_is_refused(
    kind: str, objective: Objective, message: str, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(BackboneError) as raised:
        LanguageModelingModule(request.getfixturevalue(kind), objective=objective)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_without_an_objective_it_is_the_architectures(kind: str, request: pytest.FixtureRequest) -> None:
    assert LanguageModelingModule(request.getfixturevalue(kind)).objective == OBJECTIVES[kind]


def test_one_text_is_no_list(bert: str) -> None:
    with pytest.raises(ConfigError, match=r"texts: expected a list of texts, got one text; write \[text\]"):
        LanguageModelingModule(bert).predict_texts("good")


def test_a_pair_is_no_text(bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a user's Python checks no types
    with pytest.raises(ConfigError, match=r"^texts: expected texts, got a pair; give one text in its place$"):
        LanguageModelingModule(bert).predict_texts(["a film", ("a", "film")])
