"""Language modelling: what comes before fine-tuning, for encoders, decoders and encoder-decoders."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, PreTrainedConfig

from lit_nlp.architecture import Architecture, architecture
from lit_nlp.errors import BackboneError, ConfigError, DataError
from lit_nlp.files import folder_written_whole
from lit_nlp.modules.attention import restore_attention
from lit_nlp.modules.base import Batch, EvaluationSplit, TransformerModule, token_scores
from lit_nlp.modules.losses import cross_entropy
from lit_nlp.objectives import Examples, Objective, causal
from lit_nlp.tokenization import IGNORED, by_length, check_texts

_OBJECTIVE_OF: dict[Architecture, Objective] = {
    "encoder": "masked",
    "decoder": "causal",
    "encoder_decoder": "denoising",
}
_AUTO_CLASSES = {
    "masked": AutoModelForMaskedLM,
    "causal": AutoModelForCausalLM,
    "denoising": AutoModelForSeq2SeqLM,
}
# Of the logits' spread: far above what rounding does, far below what a token of another document does.
_SAME_LOGITS = 1e-3


# Not frozen: Lightning copies what predict_step returns field by field.
@dataclass
class TextLoss:
    """How well the module foresees one text.

    Attributes:
        text: The text; None where the module saw its tokens only.
        loss_nats: Of all tokens that were to be found, together.
        tokens: How many these were: a masked language model finds none that is special or unknown.
        perplexity: exp(loss_nats / tokens); None where there were no tokens.
        row: The row's number in its split, where the data module told it.
    """

    text: str | None
    loss_nats: float
    tokens: int
    perplexity: float | None
    row: int | None = None


class LanguageModelingModule(TransformerModule):
    """A backbone that learns to find tokens: masked ones, the next one, or those of hidden spans.

    `val/loss` and `test/loss` are nats a token over all tokens of the split that are to be found, and perplexity is
    exp of it; both without label smoothing. Of a masked language model it is a pseudo-perplexity: of the masked tokens
    alone, given the others.

    Args:
        objective: `masked` for encoders, `causal` for decoders, `denoising` for encoder-decoders. None: the one of
            the backbone's architecture.
        mask_probability: Share of the tokens to be found, when the module tokenises texts by itself.
        span_length: Mean tokens of a hidden span, likewise.
        kwargs: The arguments of `TransformerModule`.

    Raises:
        BackboneError: The backbone isn't made for the objective, or reads across packed documents.
    """

    task = "language_modeling"

    def __init__(
        self,
        backbone: str,
        *,
        objective: Objective | None = None,
        mask_probability: float = 0.15,
        span_length: float = 3.0,
        **kwargs: Any,
    ) -> None:
        self.objective = objective
        super().__init__(backbone, **kwargs)
        self.save_hyperparameters()
        self.save_hyperparameters({"objective": self.objective})
        self.mask_probability, self.span_length = mask_probability, span_length
        self._since = perf_counter()

    # Training

    def auto_class(self, config: PreTrainedConfig) -> Any:
        """Return the class with the head of the objective.

        Raises:
            BackboneError: The backbone isn't made for the objective.
        """
        kind = architecture(config)
        fitting = _OBJECTIVE_OF[kind]
        if self.objective not in (None, fitting):
            raise BackboneError(
                f"{config.model_type} is an {kind.replace('_', '-')}".replace("an decoder", "a decoder")
                + f", which the objective {self.objective} doesn't fit",
                where=f"backbone {config.name_or_path}" if config.name_or_path else "model.backbone",
                mend=f"set data.objective to {fitting}, or choose another backbone",
            )
        self.objective = fitting
        return _AUTO_CLASSES[fitting]

    def setup(self, stage: str) -> None:
        """Make sure that packed documents don't see each other, and do what every module does.

        Raises:
            BackboneError: They do.
        """
        if stage != "predict" and self.objective == "causal":
            self._check_packing()
        super().setup(stage)

    def forward(self, **inputs: Tensor) -> Float[Tensor, "*places vocabulary"]:
        """Return the logits at each token: `[batch, sequence, vocabulary]`."""
        # With a cache, transformers wouldn't look for packed documents.
        cached = {} if self.objective == "masked" else {"use_cache": False}
        return cast(Tensor, self.model(**inputs, **cached).logits)

    def forward_batch(self, batch: Batch) -> Float[Tensor, "found vocabulary"]:
        """Return the logits of the tokens to be found, row by row; while a decoder is trained, those of all.

        Of its packed blocks nearly all tokens are to be found, and to pick them a GPU would have to be waited for.
        """
        if self.training and self.objective == "causal":
            return self(**self.inputs(batch)).flatten(0, 1)
        where = self.places(batch)
        head = self.model.get_output_embeddings()
        if head is None or self.hparams["compile"]:
            return self(**self.inputs(batch))[where]
        with _only_at(where, head):
            return cast(Tensor, self(**self.inputs(batch)))

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Return what of a batch the model's forward takes; a decoder behind an encoder reads the labels before."""
        inputs = super().inputs(batch)
        if self.objective == "denoising" and "labels" in batch:
            model = cast(Any, self.model)
            inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
        return inputs

    def labels(self, batch: Batch) -> Int[Tensor, "batch sequence"]:
        """Return what is to be found at each place of the logits; -100 where nothing is."""
        labels = cast(Tensor, batch["labels"])
        return F.pad(labels[:, 1:], (0, 1), value=IGNORED) if self.objective == "causal" else labels

    def places(self, batch: Batch) -> Bool[Tensor, "batch sequence"]:
        """Return at which places of the logits something is to be found."""
        return self.labels(batch) != IGNORED

    def row_losses(self, outputs: Float[Tensor, "found vocabulary"], batch: Batch) -> Float[Tensor, " batch"]:
        """Return the loss of each sequence, all its tokens together, in nats."""
        labels = self.labels(batch)
        smoothing = self.label_smoothing if self.training else 0.0
        if len(outputs) == labels.numel():
            return cross_entropy(outputs, labels.flatten(), smoothing).unflatten(0, labels.shape).sum(1)
        where = labels != IGNORED
        losses = cross_entropy(outputs, labels[where], smoothing)
        return losses.new_zeros(len(labels)).index_add(0, where.nonzero()[:, 0], losses)

    def loss_weight(self, batch: Batch) -> Tensor:
        """Return the number of tokens to be found: each counts the same, in whatever row it stands."""
        return self.places(batch).sum().clamp_min(1)

    @property
    def differs_in_width_alone(self) -> bool:
        """Whether a batch of as many rows as another differs from it in one width; `denoising` has two."""
        return self.objective != "denoising"

    def on_train_epoch_start(self) -> None:
        """Start the clock."""
        self._since = perf_counter()

    def on_validation_end(self) -> None:
        """Start the clock anew: a validation inside an epoch doesn't count."""
        super().on_validation_end()
        self._since = perf_counter()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log how many tokens a second were learnt from, padding not counted, on all devices together."""
        tokens = batch["length"].sum() if "length" in batch else batch["input_ids"].numel()
        before, self._since = self._since, perf_counter()
        rate = tokens * self.trainer.world_size / (self._since - before)
        self.log("train/tokens_per_second", rate, batch_size=len(batch["input_ids"]))

    # Evaluation

    def new_metrics(self) -> MetricCollection:
        """Return none: the mean loss of a token tells all."""
        return MetricCollection({})

    def evaluate(self, split: EvaluationSplit, batch: Batch) -> list[Any]:
        """Measure a batch's tokens; there is nothing to tell of each row."""
        losses = self.row_losses(self.forward_batch(batch), batch)
        if tokens := int(self.places(batch).sum()):
            self.log_loss(split, losses, tokens)
        return []

    def figures(self, measured: dict[str, Any]) -> dict[str, Tensor]:
        """Add the perplexity, e to the loss in nats.

        Raises:
            DataError: There was nothing to be found in a whole split.
        """
        if measured["loss"].isnan() and not self.trainer.sanity_checking:
            split: EvaluationSplit = "test" if self.trainer.testing else "val"
            if not cast(MeanMetric, self.losses[split]).weight:
                problem = "no text has a token that could be found: all are special or unknown"
                raise DataError(problem, where=f"data.{split}", mend="name texts that the tokenizer knows")
        return {**measured, "perplexity": measured["loss"].exp()}

    def predict_step(self, batch: Batch, batch_idx: int) -> list[TextLoss]:
        """Return the loss of each text of a batch, whose sequences stand together.

        A text may take many sequences: as many of these are run at once as there are texts.
        """
        numbers, text = torch.unique_consecutive(batch["row"], return_inverse=True)
        parts = list(_parts(batch, len(numbers)))
        losses = torch.cat([self.row_losses(self.forward_batch(part), part) for part in parts])
        counts = torch.cat([self.places(part).sum(1) for part in parts])
        sums = losses.new_zeros(len(numbers)).index_add(0, text, losses).tolist()
        tokens = counts.new_zeros(len(numbers)).index_add(0, text, counts).tolist()
        texts = batch.get("text", [None] * len(numbers))
        return [
            TextLoss(each, nats, count, math.exp(nats / count) if count else None, row)
            for each, nats, count, row in zip(texts, sums, tokens, numbers.tolist(), strict=True)
        ]

    # Predictions

    def predict_texts(self, texts: Sequence[str], batch_size: int = 32) -> list[TextLoss]:
        """Return how well the module foresees texts, in their order.

        Each token of a text counts once. A masked language model finds it among other masked ones, as in training,
        and the text's tokens in several passes.

        Args:
            texts: Of any length; longer ones are cut into blocks of `max_length`.
            batch_size: Texts that are read at once.
        """
        check_texts(texts)
        if any(isinstance(text, tuple) for text in texts):
            raise ConfigError("expected texts, got a pair", where="texts", mend="give one text in its place")
        documents = self.examples.documents(texts).ids if texts else []
        found = [TextLoss(text, 0.0, 0, None) for text in texts]
        with self.evaluating(), torch.inference_mode():
            for some in by_length(map(len, documents), batch_size):
                examples = [(i, example) for i in some for example in self.examples.complete(documents[i])]
                batch: dict[str, Any] = dict(self.examples.pad([example for _, example in examples]))
                batch["row"] = torch.tensor([i for i, _ in examples])
                batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
                for each in self.predict_step(batch | {"text": [texts[i] for i in some]}, 0):
                    found[cast(int, each.row)] = replace(each, row=None)
        return found

    @cached_property
    def examples(self) -> Examples:
        """What makes examples of texts, as in training."""
        return Examples(
            self.tokenizer,
            cast(Objective, self.objective),
            max_length=self.max_length,
            mask_probability=self.mask_probability,
            span_length=self.span_length,
        )

    # Attribution

    def targets(self) -> list[str]:
        """Return the tokens, in the order of the logits."""
        return cast(list[str], self.tokenizer.convert_ids_to_tokens(list(range(len(self.tokenizer)))))

    def score(
        self, outputs: Float[Tensor, "batch sequence vocabulary"], target: Int[Tensor, "batch 2"]
    ) -> Float[Tensor, " batch"]:
        """Return the log probability of a token at a place of each row: `target` holds place and token.

        The place is one of the logits: for `causal` that of the token before.
        """
        return token_scores(outputs, target)

    def save_backbone(self, folder: str | Path) -> None:
        """Write a folder as transformers reads it: configuration, weights and tokenizer; whole or not at all."""
        with folder_written_whole(Path(folder), replace=True) as partial:
            self.model.save_pretrained(partial)
            self.tokenizer.save_pretrained(partial)

    def _check_packing(self) -> None:
        """Make sure that a document reads the same behind another as alone."""
        restore_attention(self.model)  # a run that broke off may have left ours
        if self.model.config._attn_implementation not in ("sdpa", "eager"):
            raise BackboneError(
                f"packed documents would see each other under {self.model.config._attn_implementation}",
                where="model.attn_implementation",
                mend="leave it out, or set sdpa or eager",
            )
        first, second = ([i % self.model.config.vocab_size for i in range(start, start + 4)] for start in (5, 11))
        alone, packed = self._logits([second]), self._logits([first, second])
        if (packed[:, 4:] - alone).abs().max() > _SAME_LOGITS * alone.std():
            raise BackboneError(
                f"{self.model.config.model_type} reads across documents that stand in one block",
                where=f"backbone {self.hparams['backbone']}",
                mend="choose one whose attention takes documents apart by position_ids, such as Llama or GPT-2",
            )

    def _logits(self, pieces: list[list[int]]) -> Float[Tensor, "1 sequence vocabulary"]:
        # Before fitting, Lightning says that the module lies where it is going to be.
        device = self.model.device
        batch = {name: tensor.to(device) for name, tensor in self.examples.pad([causal(pieces)]).items()}
        with self.evaluating(), torch.no_grad():
            return self(**self.inputs(batch)).float()


def _parts(batch: Batch, sequences: int) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors of a batch, at most so many sequences at a time."""
    tensors = {name: each.split(sequences) for name, each in batch.items() if isinstance(each, Tensor)}
    for some in zip(*tensors.values(), strict=True):
        yield dict(zip(tensors, some, strict=True))


@contextmanager
def _only_at(places: Bool[Tensor, "batch sequence"], head: nn.Module) -> Iterator[None]:
    """Let the head see the chosen places alone: of a masked language model's, six in seven would be for nothing."""
    with head.register_forward_pre_hook(lambda _, given: (given[0][places], *given[1:])):
        yield
