"""What translation and generative question answering share: the loss on a target, and writing one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torchmetrics import Metric
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedConfig

from lit_nlp.architecture import architecture
from lit_nlp.generation import PairTokenizer, default_prompt
from lit_nlp.modules.base import Batch, TransformerModule, require

_IGNORED = -100


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
        max_target_length: Tokens of a target in training. None: as many as of a source.
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
        self.model.generation_config = GenerationConfig(
            max_new_tokens=max_new_tokens or self.pairs.max_target_length,
            length_penalty=length_penalty,
            no_repeat_ngram_size=no_repeat_ngram_size,
            decoder_start_token_id=self.pairs.start,
            forced_bos_token_id=self.pairs.first,
            eos_token_id=self.pairs.end,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        self.metrics = nn.ModuleDict({"val": self.new_metrics(), "test": self.new_metrics()})

    # What a task says

    def new_metrics(self) -> nn.ModuleDict:
        """Return the metrics of a split by name."""
        raise NotImplementedError

    def update_metrics(self, metrics: dict[str, Metric], hypotheses: list[str], references: list[Any]) -> None:
        """Add what was written for some rows, and what it is measured by."""
        for metric in metrics.values():
            metric.update(hypotheses, references)

    def references(self, batch: Batch) -> list[Any]:
        """Return what each hypothesis is measured by: the target's text on one line, else its labels decoded."""
        if "target" in batch:
            return [" ".join(text.split("\n")).strip() for text in batch["target"]]
        return [self.pairs.decode(labels[labels != _IGNORED].tolist()) for labels in batch["labels"]]

    # Training

    def auto_class(self, config: PreTrainedConfig) -> Any:
        """Return the class that writes: a decoder alone, or behind an encoder."""
        return AutoModelForCausalLM if architecture(config) == "decoder" else AutoModelForSeq2SeqLM

    def forward(self, **inputs: Int[Tensor, "rows _"]) -> Float[Tensor, "rows target vocabulary"]:
        """Return the logits of each token that follows."""
        return cast(Tensor, self.model(**inputs, use_cache=False).logits)

    def forward_batch(self, batch: Batch) -> Float[Tensor, "rows target vocabulary"]:
        """Return the logits of each label, in float32, as they come from the labels before it."""
        inputs = self.inputs(batch)
        if self.pairs.start is not None:
            return self(**inputs, decoder_input_ids=self._shifted(batch["labels"])).float()
        return self(**inputs)[:, :-1].float()

    def target_tokens(self, batch: Batch) -> Int[Tensor, "rows target"]:
        """Return the labels, each where `forward_batch` has its logits; -100 where nothing is to be written."""
        labels = cast(Tensor, batch["labels"])
        return labels if self.pairs.start is not None else labels[:, 1:]

    def row_losses(self, outputs: Float[Tensor, "rows target vocabulary"], batch: Batch) -> Float[Tensor, " rows"]:
        """Return each row's cross-entropy in nats, summed over its target."""
        return self._token_losses(outputs, batch, smoothing=self.label_smoothing).sum(1)

    def loss_weight(self, batch: Batch) -> Tensor:
        """Return the number of target tokens: each counts the same, in whatever row it stands."""
        return (self.target_tokens(batch) != _IGNORED).sum().clamp_min(1)

    def score(
        self, outputs: Float[Tensor, "rows target vocabulary"], target: Int[Tensor, "rows 2"]
    ) -> Float[Tensor, " rows"]:
        """Return the log probability of a token at a place of each row's target: `target` holds place and token."""
        place, token = target.unbind(1)
        rows = torch.arange(len(outputs), device=outputs.device)
        return outputs[rows, place].log_softmax(-1).gather(1, token.unsqueeze(1)).squeeze(1)

    # Evaluation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure loss and what is written."""
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, list[Generated]]:
        """Measure a batch; returns under `rows` what was written for each row."""
        return {"rows": self._evaluate("test", batch)}

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Generated]:
        """Write for each source of a batch."""
        texts = self.generate(batch)
        sources = batch.get("source", [None] * len(texts))
        return [
            Generated(source, text, row=row)
            for source, text, row in zip(sources, texts, _rows(batch, len(texts)), strict=True)
        ]

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the validation split."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test split."""
        self._log_metrics("test")

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
            require(False, "expected a list of texts, got one text; write [text]")
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

    def _evaluate(self, split: Literal["val", "test"], batch: Batch) -> list[Generated]:
        losses = self._token_losses(self.forward_batch(batch), batch, smoothing=0.0).sum(1)
        tokens = self.loss_weight(batch)
        self.log(f"{split}/loss", losses.sum() / tokens, batch_size=int(tokens), on_epoch=True, sync_dist=True)
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        texts = self.generate(batch, num_beams=1 if fitting else None)
        references = self.references(batch)
        self.update_metrics(self._metrics_of(split), texts, references)
        sources = batch.get("source", [None] * len(texts))
        return list(map(Generated, sources, texts, references, losses.tolist(), _rows(batch, len(texts))))

    def _log_metrics(self, split: str) -> None:
        for name, metric in self._metrics_of(split).items():
            value = metric.compute()
            named = value if isinstance(value, dict) else {name: value}
            self.log_dict({f"{split}/{each}": figure.float() for each, figure in named.items()}, sync_dist=True)
            metric.reset()

    def _metrics_of(self, split: str) -> dict[str, Metric]:
        return dict(cast(nn.ModuleDict, self.metrics[split]).items())  # type: ignore[arg-type]

    def _token_losses(
        self, outputs: Float[Tensor, "rows target vocabulary"], batch: Batch, smoothing: float
    ) -> Float[Tensor, "rows target"]:
        labels = self.target_tokens(batch)
        losses = F.cross_entropy(
            outputs.flatten(0, 1), labels.flatten(), ignore_index=_IGNORED, label_smoothing=smoothing, reduction="none"
        )
        return losses.view_as(labels)

    def _shifted(self, labels: Int[Tensor, "rows target"]) -> Int[Tensor, "rows target"]:
        """Return what a decoder has read when it is to write each label: the start, and the labels before."""
        shifted = labels.roll(1, dims=1)
        shifted[:, 0] = cast(int, self.pairs.start)
        return shifted.masked_fill(shifted == _IGNORED, self.baseline_id)

    def _prompts(self, batch: Batch) -> dict[str, Int[Tensor, "rows sequence"]]:
        """Return what is read before anything is written; a decoder's prompts end together."""
        inputs = self.inputs(batch)
        if self.pairs.start is not None:
            return inputs
        is_prompt: Bool[Tensor, "rows sequence"] = inputs["attention_mask"].bool()
        if "labels" in batch:
            is_prompt = is_prompt & (batch["labels"] == _IGNORED)
        prompts = [ids[mask] for ids, mask in zip(inputs["input_ids"], is_prompt, strict=True)]
        ids = pad_sequence(prompts, batch_first=True, padding_value=self.baseline_id, padding_side="left")
        mask = pad_sequence([torch.ones_like(p) for p in prompts], batch_first=True, padding_side="left")
        return {"input_ids": ids, "attention_mask": mask}


def _rows(batch: Batch, count: int) -> list[int | None]:
    return cast(Tensor, batch["row"]).tolist() if "row" in batch else [None] * count
