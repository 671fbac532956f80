"""What translation and generative question answering share: the loss on a target, and writing one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Bool, Float, Int
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchmetrics import MetricCollection
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedConfig

from lit_nlp.architecture import architecture
from lit_nlp.errors import ConfigError
from lit_nlp.generation import PairTokenizer, default_prompt, one_line
from lit_nlp.modules.base import Batch, EvaluationSplit, TransformerModule, positions_of, require, token_scores
from lit_nlp.modules.losses import cross_entropy
from lit_nlp.tokenization import IGNORED


@dataclass
class Generated:
    """What the module wrote for one source.

    Attributes:
        source: The text that it was given; None where the module saw its tokens only.
        text: What it wrote.
        reference: What the data says, where it is known; several texts where any of them counts.
        loss_nats: Of the reference, all tokens together, where it is known.
        row: The row's number in its split, where the data module told it.
    """

    source: str | None
    text: str
    reference: str | list[str] | None = None
    loss_nats: float | None = None
    row: int | None = None


class TextToTextModule(TransformerModule):
    """Writes a text for a text: an encoder-decoder, a decoder after a prompt, or an encoder in both halves.

    Trained on the cross-entropy of the target's tokens; measured by what it writes. While fitting, validation
    writes greedily, which ranks checkpoints as well in a fraction of the time; all other verbs search with beams.

    Args:
        prompt: The template around a source, with ``{source}`` in it. None: the source alone, and for a decoder
            its chat template, or a line break behind the source.
        source_lang: The source's language, for tokenizers that write it down.
        target_lang: The target's.
        max_target_length: Tokens of a target in training. None: `max_length`, for a decoder half of it.
        max_new_tokens: Where to stop writing. None: at `max_target_length`.
        num_beams: Hypotheses that are kept at each step; 1 is greedy.
        length_penalty: Above 1 favours longer texts among the beams, below 1 shorter.
        no_repeat_ngram_size: No run of so many tokens is written twice; 0 allows it.
        kwargs: The arguments of `TransformerModule`.
    """

    runtime_arguments: ClassVar[set[str]] = TransformerModule.runtime_arguments | {
        "max_new_tokens",
        "num_beams",
        "length_penalty",
        "no_repeat_ngram_size",
    }

    def __init__(
        self,
        backbone: str,
        *,
        prompt: str | None = None,
        source_lang: str | None = None,
        target_lang: str | None = None,
        max_target_length: int | None = None,
        max_new_tokens: int | None = None,
        num_beams: int = 4,
        length_penalty: float = 1.0,
        no_repeat_ngram_size: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, **kwargs)
        self.save_hyperparameters()
        require(num_beams >= 1, f"num_beams must be at least 1, got {num_beams}")
        require(no_repeat_ngram_size >= 0, f"no_repeat_ngram_size must be at least 0, got {no_repeat_ngram_size}")
        require(
            max_new_tokens is None or max_new_tokens >= 1, f"max_new_tokens must be at least 1, got {max_new_tokens}"
        )
        self.pairs = PairTokenizer(
            self.tokenizer,
            self.model.config,
            max_length=self.max_length,
            max_target_length=max_target_length,
            template=default_prompt(architecture(self.model.config), self.tokenizer) if prompt is None else prompt,
            source_lang=source_lang,
            target_lang=target_lang,
        )
        self.num_beams = num_beams
        known = self.model.generation_config or GenerationConfig()
        ends = known.eos_token_id if isinstance(known.eos_token_id, list) else [known.eos_token_id]
        known.update(
            max_length=None,
            max_new_tokens=max_new_tokens or self.pairs.max_target_length,
            do_sample=False,
            length_penalty=length_penalty,
            no_repeat_ngram_size=no_repeat_ngram_size,
            decoder_start_token_id=self.pairs.start,
            forced_bos_token_id=self.pairs.first,
            eos_token_id=sorted({self.pairs.end, *(end for end in ends if end is not None)}),
            pad_token_id=self.tokenizer.pad_token_id,
        )
        self.model.generation_config = known
        if self.pairs.start is not None:
            self.model.config.decoder_start_token_id = self.pairs.start
        self._check_room(max(known.max_new_tokens, self.pairs.max_target_length))

    # What a task says

    def update_metrics(self, metrics: MetricCollection, hypotheses: list[str], references: list[Any]) -> None:
        """Add what was written for some rows, and what it is measured by."""
        metrics.update(hypotheses, references)

    def references(self, batch: Batch) -> list[Any]:
        """Return what each hypothesis is measured by: the target's text on one line, else its labels decoded."""
        if "target" in batch:
            return [one_line(text) for text in batch["target"]]
        return [self.pairs.decode(labels[labels != IGNORED].tolist()) for labels in batch["labels"]]

    # Training

    def auto_class(self, config: PreTrainedConfig) -> Any:
        """Return the class that writes: a decoder alone, or behind an encoder."""
        return AutoModelForCausalLM if architecture(config) == "decoder" else AutoModelForSeq2SeqLM

    def forward(self, **inputs: Int[Tensor, "rows _"]) -> Float[Tensor, "rows target vocabulary"]:
        """Return the logits of each token that follows."""
        return cast(Tensor, self.model(**inputs, use_cache=False).logits)

    def forward_batch(self, batch: Batch) -> Float[Tensor, "rows target vocabulary"]:
        """Return the logits of each label, as they come from the labels before it."""
        inputs = self.inputs(batch)
        if self.pairs.start is not None:
            return self(**inputs, decoder_input_ids=self._shifted(batch["labels"]))
        return self(**inputs)[:, :-1]

    def target_tokens(self, batch: Batch) -> Int[Tensor, "rows target"]:
        """Return the labels, each where `forward_batch` has its logits; -100 where nothing is to be written."""
        labels = cast(Tensor, batch["labels"])
        return labels if self.pairs.start is not None else labels[:, 1:]

    def row_losses(self, outputs: Float[Tensor, "rows target vocabulary"], batch: Batch) -> Float[Tensor, " rows"]:
        """Return each row's cross-entropy in nats, summed over its target."""
        return self._token_losses(outputs, batch, smoothing=self.label_smoothing).sum(1)

    def loss_weight(self, batch: Batch) -> Tensor:
        """Return the number of target tokens: each counts the same, in whatever row it stands."""
        return (self.target_tokens(batch) != IGNORED).sum().clamp_min(1)

    def score(
        self, outputs: Float[Tensor, "rows target vocabulary"], target: Int[Tensor, "rows 2"]
    ) -> Float[Tensor, " rows"]:
        """Return the log probability of a token at a place of each row's target: `target` holds place and token."""
        return token_scores(outputs, target)

    # Evaluation

    def evaluate(self, split: EvaluationSplit, batch: Batch) -> list[Generated]:
        """Measure the loss of the references, without smoothing, and what is written in their place."""
        losses = self._token_losses(self.forward_batch(batch), batch, smoothing=0.0).sum(1)
        self.log_loss(split, losses, self.loss_weight(batch))
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        texts = self.generate(batch, num_beams=1 if fitting else None)
        references = self.references(batch)
        self.update_metrics(self.metrics_of(split), texts, references)
        sources = batch.get("source", [None] * len(texts))
        return list(map(Generated, sources, texts, references, losses.tolist(), _rows(batch, len(texts))))

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Generated]:
        """Write for each source of a batch."""
        texts = self.generate(batch)
        sources = batch.get("source", [None] * len(texts))
        return [
            Generated(source, text, row=row)
            for source, text, row in zip(sources, texts, _rows(batch, len(texts)), strict=True)
        ]

    # Writing

    @torch.no_grad()
    def generate(self, batch: Batch, *, num_beams: int | None = None) -> list[str]:
        """Return what the module writes for each source of a batch, whose labels it doesn't look at."""
        prompts = self._prompts(batch)
        written = cast(Any, self.model).generate(**prompts, num_beams=num_beams or self.num_beams)
        start = prompts["input_ids"].shape[1] if self.pairs.start is None else 0
        return [self.pairs.decode(ids) for ids in written[:, start:].tolist()]

    def predict_texts(self, texts: Sequence[str], batch_size: int = 32) -> list[Generated]:
        """Return what the module writes for texts, in their order.

        Args:
            texts: Sources without the template.
            batch_size: Sources that are read at once.
        """
        if isinstance(texts, str):
            raise ConfigError("expected a list of texts, got one text", where="texts", mend="write [text]")
        sources = self.pairs.sources(texts).ids if texts else []
        order = sorted(range(len(sources)), key=lambda i: -len(sources[i]))
        written = [""] * len(sources)
        with self.evaluating():
            for begin in range(0, len(order), batch_size):
                some = order[begin : begin + batch_size]
                batch = self.pad([{"input_ids": sources[i]} for i in some])
                for i, text in zip(some, self.generate(batch), strict=True):
                    written[i] = text
        return [Generated(source, text) for source, text in zip(texts, written, strict=True)]

    def _check_room(self, tokens: int) -> None:
        """Make sure that what is written has positions."""
        positions = positions_of(self.model)
        read = self.pairs.max_source_length if self.pairs.start is None else 0
        if positions is not None and read + tokens > positions:
            raise ConfigError(
                f"max_target_length or max_new_tokens asks for {read + tokens} positions, the backbone has {positions}",
                where="model",
                mend="lower them",
            )

    def _token_losses(
        self, outputs: Float[Tensor, "rows target vocabulary"], batch: Batch, smoothing: float
    ) -> Float[Tensor, "rows target"]:
        labels = self.target_tokens(batch)
        return cross_entropy(outputs.flatten(0, 1), labels.flatten(), smoothing).view_as(labels)

    def _shifted(self, labels: Int[Tensor, "rows target"]) -> Int[Tensor, "rows target"]:
        """Return what a decoder has read when it is to write each label: the start, and the labels before."""
        shifted = labels.roll(1, dims=1)
        shifted[:, 0] = cast(int, self.pairs.start)
        return shifted.masked_fill(shifted == IGNORED, self.baseline_id)

    def _prompts(self, batch: Batch) -> dict[str, Int[Tensor, "rows sequence"]]:
        """Return what is read before anything is written; a decoder's prompts end together."""
        inputs = self.inputs(batch)
        if self.pairs.start is not None:
            return inputs
        is_prompt: Bool[Tensor, "rows sequence"] = inputs["attention_mask"].bool()
        if "labels" in batch:
            is_prompt = is_prompt & (batch["labels"] == IGNORED)
        prompts = [ids[mask] for ids, mask in zip(inputs["input_ids"], is_prompt, strict=True)]
        ids = pad_sequence(prompts, batch_first=True, padding_value=self.baseline_id, padding_side="left")
        mask = pad_sequence([torch.ones_like(p) for p in prompts], batch_first=True, padding_side="left")
        return {"input_ids": ids, "attention_mask": mask}


def _rows(batch: Batch, count: int) -> list[int | None]:
    return cast(Tensor, batch["row"]).tolist() if "row" in batch else [None] * count
