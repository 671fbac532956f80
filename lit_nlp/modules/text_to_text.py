"""What translation and generative question answering share: the loss on a target, and writing one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchmetrics import MetricCollection
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedConfig

from lit_nlp.architecture import architecture
from lit_nlp.errors import ConfigError, TargetError, did_you_mean, require
from lit_nlp.files import json_lines
from lit_nlp.generation import PairTokenizer, default_prompt, one_line
from lit_nlp.modules.base import (
    Batch,
    EvaluationSplit,
    Files,
    TransformerModule,
    as_json,
    positions_of,
    token_scores,
)
from lit_nlp.modules.beam_search import beam_search
from lit_nlp.modules.losses import cross_entropy
from lit_nlp.targets import RUNNER_UP, AttributionTarget, Label, Place, Reading
from lit_nlp.tokenization import IGNORED, Text, Tokens, by_length, check_as_many, check_texts, pad

# The most probable tokens that are named beside one that is explained.
_NAMED = 5
# Tokens that a message lists.
_LISTED = 20


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


class _Said(NamedTuple):
    """How probable a token was that the module wrote, and those that were the most probable in its place, by id."""

    probability: float
    most_probable: dict[int, float]


@dataclass
class _Written:
    """What was written for a source: its tokens without an end, and what the module read when it wrote them.

    The logits of the first of these tokens are at the place `first`.
    """

    source: str
    ids: list[int]
    text: str
    places: list[Place | None]
    reading: Reading
    first: int


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

    task = "text_to_text"

    # What the two texts of an explanation are called.
    parts: ClassVar[tuple[str, str]] = ("source", "translation")
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
        require(num_beams >= 1, f"num_beams must be at least 1, got {num_beams}", "model")
        require(
            no_repeat_ngram_size >= 0, f"no_repeat_ngram_size must be at least 0, got {no_repeat_ngram_size}", "model"
        )
        require(
            max_new_tokens is None or max_new_tokens >= 1,
            f"max_new_tokens must be at least 1, got {max_new_tokens}",
            "model",
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
        self.num_beams, self.length_penalty = num_beams, length_penalty
        new_tokens = max_new_tokens or self.pairs.max_target_length
        self.model.generation_config = self._rules(max_new_tokens=new_tokens, no_repeat_ngram_size=no_repeat_ngram_size)
        if self.pairs.start is not None:
            self.model.config.decoder_start_token_id = self.pairs.start
        self._check_room(max(new_tokens, self.pairs.max_target_length))

    # What a task says

    def source_of(self, text: Text) -> str:
        """Return what the module reads of a text, without the template."""
        if not isinstance(text, str):
            raise ConfigError("expected a text, got a pair", where="texts", mend="give what is to be read as one text")
        return text

    def update_metrics(self, metrics: MetricCollection, hypotheses: list[str], references: list[Any]) -> None:
        """Add what was written for some rows, and what it is measured by."""
        metrics.update(hypotheses, references)

    def references(self, batch: Batch) -> list[Any]:
        """Return what each hypothesis is measured by: the target's text on one line, else its labels decoded."""
        if "target" in batch:
            return [one_line(text) for text in batch["target"]]
        return [self.pairs.decode(labels[labels != IGNORED].tolist()) for labels in batch["labels"]]

    def evaluation_files(self, rows: Sequence[Any]) -> Files:
        """Return all that was written, that of the highest loss first."""
        ranked = sorted((-(row.loss_nats or 0.0), i) for i, row in enumerate(rows))
        return {"worst_predictions.jsonl": json_lines(as_json(rows[i]) for _, i in ranked)}

    # Training

    def auto_class(self, config: PreTrainedConfig) -> Any:
        """Return the class that writes: a decoder alone, or behind an encoder."""
        return AutoModelForCausalLM if architecture(config) == "decoder" else AutoModelForSeq2SeqLM

    def forward(self, **inputs: Int[Tensor, "rows _"]) -> Float[Tensor, "rows target vocabulary"]:
        """Return the logits of each token that follows."""
        with _without_cudnn():
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

    def own_losses(self, outputs: Float[Tensor, "rows target vocabulary"], batch: Batch) -> Float[Tensor, " rows"]:
        """Return each row's cross-entropy without smoothing."""
        return self._token_losses(outputs, batch, smoothing=0.0).sum(1)

    def loss_weight(self, batch: Batch) -> Tensor:
        """Return the number of target tokens: each counts the same, in whatever row it stands."""
        return (self.target_tokens(batch) != IGNORED).sum().clamp_min(1)

    def score(
        self, outputs: Float[Tensor, "rows target vocabulary"], target: Int[Tensor, "rows 2"]
    ) -> Float[Tensor, " rows"]:
        """Return the log probability of a token at a place of each row's target: `target` holds place and token."""
        return token_scores(outputs, target)

    @property
    def differs_in_width_alone(self) -> bool:
        """False: sources and targets each have their width."""
        return False

    # Evaluation

    def evaluate(self, split: EvaluationSplit, batch: Batch) -> list[Generated]:
        """Measure the loss of the references, without smoothing, and what is written in their place."""
        losses = self.own_losses(self.forward_batch(batch), batch)
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

    def generate(self, batch: Batch, *, num_beams: int | None = None) -> list[str]:
        """Return what the module writes for each source of a batch, whose labels it doesn't look at.

        For a source of which the batch shows that it is blank, that is nothing.
        """
        written = [self.pairs.decode(ids) for ids in self._generated(batch, num_beams)]
        sources = batch.get("source", [None] * len(written))
        return [
            "" if source is not None and not source.strip() else text
            for source, text in zip(sources, written, strict=True)
        ]

    def predict_texts(self, texts: Sequence[Text], batch_size: int = 32) -> list[Generated]:
        """Return what the module writes for texts, in their order.

        Args:
            texts: Sources without the template; for questions with a context tuples of both.
            batch_size: Sources that are read at once.
        """
        read = self._sources(texts)
        return [
            Generated(source, self.pairs.decode(ids))
            for source, ids in zip(read, self._outputs(read, batch_size), strict=True)
        ]

    # Explaining

    def pad(self, sequences: Sequence[Tokens]) -> dict[str, Int[Tensor, "batch _"]]:
        """Pad sequences on the right to a batch on the module's device, those of a decoder by themselves."""
        read, name = [dict(tokens) for tokens in sequences], "decoder_input_ids"
        written = [{"input_ids": tokens.pop(name)} for tokens in read if name in tokens]
        # No mask for the decoder: none of its tokens sees the padding behind it.
        decoder = {name: pad(written, self.baseline_id)["input_ids"].to(self.device)} if written else {}
        return super().pad(read) | decoder

    def attribution_targets(
        self,
        texts: Sequence[Text],
        *,
        target: str | None = None,
        contrast: str | None = None,
        outputs: Sequence[Label] | None = None,
        batch_size: int = 16,
    ) -> list[AttributionTarget]:
        """Return one target for each token that is written for each text, in their order.

        What is explained is a token's log probability given the source and what was written before it. Special
        tokens, among them the end, are none of the targets.

        Args:
            texts: Sources, as `predict_texts` takes them.
            target: Explain only tokens of this text.
            contrast: Explain why a token was written rather than this one: the difference of log probabilities;
                `runner-up`: the most probable of the others in its place.
            outputs: What is taken as written for each text, as the tokenizer reads it. None: what the module writes.
            batch_size: Sequences that are run at once.

        Raises:
            ConfigError: `contrast` takes several tokens, or there are more or fewer outputs than texts.
            TargetError: No token has the text of `target`, or `contrast` is all that was written.
        """
        read = self._sources(texts)
        check_as_many(texts, outputs=outputs)
        given = None if outputs is None else self._tokens_of(outputs, "outputs")
        with self.evaluating():
            written = self._written(read, self._outputs(read, batch_size) if given is None else given)
            said = self._said(written, batch_size)
        self._warn_of_unknown(written)
        found, names, wanted = list[AttributionTarget](), dict[str, None](), target and target.strip()
        for row, (one, of_tokens) in enumerate(zip(written, said, strict=True)):
            for i, (token, place) in enumerate(zip(one.ids, one.places, strict=True)):
                if place is None:
                    continue
                name = self.pairs.name(token, one.text[place.start : place.end])
                names[name] = None
                if wanted not in (None, name):
                    continue
                other, told = (None, "") if contrast is None else self._other(contrast, token, of_tokens[i])
                if token == other:
                    continue
                at = one.first + i
                terms = [(1.0, [at, token])] + ([] if other is None else [(-1.0, [at, other])])
                found.append(
                    AttributionTarget(
                        row=row,
                        name=name if other is None else f"{name} rather than {told}",
                        text=one.source,
                        text_pair=one.text,
                        parts=self.parts if outputs is None else (self.parts[0], f"given {self.parts[1]}"),
                        kind="token",
                        prediction=one.text,
                        probability=of_tokens[i].probability,
                        probabilities=self._by_name(of_tokens[i].most_probable, {token: name}),
                        readings=[_until(at, replace(one.reading, terms=terms))],
                        span=(place.start, place.end),
                    )
                )
        if wanted is not None and wanted not in names:
            shown = ", ".join([*list(names)[:_LISTED], *["…"][: len(names) > _LISTED]])
            problem = f"no token that was written is {wanted!r}; they are {shown}" if names else "nothing was written"
            raise TargetError(problem, where="target", mend=did_you_mean(wanted, names))
        if names and not found:
            raise TargetError(f"{contrast!r} is itself what was written", where="contrast", mend="name another token")
        return found

    def asked(
        self, texts: Sequence[Text], labels: Sequence[Label] | None = None, *, batch_size: int = 16
    ) -> list[Batch]:
        """Return the tokens that are written for each text, or those of `labels`, which are taken as written.

        Special tokens, among them the end, aren't accounted for.

        Raises:
            ConfigError: A label is no text.
        """
        read = self._sources(texts)
        with self.evaluating():
            outputs = self._outputs(read, batch_size) if labels is None else self._tokens_of(labels, "labels")
            written = self._written(read, outputs)
        lengths = [sum(map(len, one.reading.inputs.values())) if any(one.places) else 0 for one in written]
        return [self._asked([written[i] for i in some], some) for some in by_length(lengths, batch_size)]

    def asked_losses(self, batch: Batch) -> Float[Tensor, " texts"]:
        """Return the cross-entropy of what is written for each text, over all its tokens."""
        targets = batch["targets"]
        logits = self(**self.inputs(batch))[:, : targets.shape[1]]
        return cross_entropy(logits.flatten(0, 1), targets.flatten()).view_as(targets).sum(1)

    @torch.no_grad()
    def most_wrong(self, texts: Sequence[Text], labels: Sequence[Label]) -> list[int]:
        """Return the texts with something to write, that of the highest loss per token first."""
        losses: dict[int, float] = {}
        with self.evaluating():
            for batch in self.asked(texts, labels):
                means = self.asked_losses(batch) / (batch["targets"] != IGNORED).sum(1)
                losses.update(zip(batch["row"].tolist(), means.tolist(), strict=True))
        return sorted(losses, key=losses.__getitem__, reverse=True)

    def _tokens_of(self, given: Sequence[Label], where: str) -> list[list[int]]:
        texts = [text for text in given if isinstance(text, str)]
        if len(texts) < len(given):
            problem = f"expected texts, got {next(text for text in given if not isinstance(text, str))!r}"
            raise ConfigError(problem, where=where, mend="leave them out to account for what the module writes")
        return self.pairs.targets(texts).ids if texts else []

    def _asked(self, written: Sequence[_Written], rows: list[int]) -> Batch:
        """Return what a teacher lets the module read, and each token where its logits are."""
        targets = [
            [IGNORED] * one.first
            + [token if place is not None else IGNORED for token, place in zip(one.ids, one.places, strict=True)]
            for one in written
        ]
        padded = pad([{"input_ids": ids} for ids in targets], IGNORED)["input_ids"].to(self.device)
        return {**self.pad([one.reading.inputs for one in written]), "row": torch.tensor(rows), "targets": padded}

    def _sources(self, texts: Sequence[Text]) -> list[str]:
        check_texts(texts)
        return [self.source_of(text) for text in texts]

    def _outputs(self, sources: Sequence[str], batch_size: int) -> list[list[int]]:
        """Return the tokens that the module writes for each source; of a blank one, nothing."""
        read = self.pairs.sources(sources).ids if sources else []
        written: list[list[int]] = [[] for _ in read]
        lengths = [len(ids) if source.strip() else 0 for source, ids in zip(sources, read, strict=True)]
        with self.evaluating():
            for some in by_length(lengths, batch_size):
                batch = self.pad([{"input_ids": read[i]} for i in some])
                for i, ids in zip(some, self._generated(batch), strict=True):
                    written[i] = ids
        return written

    def _written(self, sources: Sequence[str], outputs: Sequence[list[int]]) -> list[_Written]:
        """Return what a teacher who knows the outputs lets the module read."""
        found = []
        tokens, places = (self.pairs.sources(sources).ids, self.pairs.source_places(sources)) if sources else ([], [])
        for source, read, stand, ids in zip(sources, tokens, places, outputs, strict=True):
            text_ids = self._without_end(ids)
            text, behind = self.pairs.written(text_ids)
            if self.pairs.start is None:
                inputs = {"input_ids": read + text_ids}
                reading, first = Reading(inputs, {"input_ids": stand + behind}, []), len(read) - 1
            else:
                inputs = {"input_ids": read, "decoder_input_ids": [self.pairs.start, *text_ids[:-1]]}
                shifted: list[Place | None] = [None, *behind[:-1]]
                reading, first = Reading(inputs, {"input_ids": stand, "decoder_input_ids": shifted}, []), 0
            found.append(_Written(source, text_ids, text, behind, reading, first))
        return found

    def _warn_of_unknown(self, written: Sequence[_Written]) -> None:
        """Say that there are tokens of which no text is left: the others are explained with them, and they are not."""
        unknown = self.tokenizer.unk_token_id
        lost = sum((unknown, None) in zip(one.ids, one.places, strict=True) for one in written)
        if lost:
            rank_zero_warn(
                f"{lost} of {len(written)} outputs hold characters that the tokenizer doesn't know: they were read as"
                f" {self.tokenizer.unk_token}, and aren't shown."
            )

    @torch.no_grad()
    def _said(self, written: Sequence[_Written], batch_size: int) -> list[list[_Said]]:
        """Return what the module says in the place of each token, given what stands before it."""
        found: list[list[_Said]] = [[] for _ in written]
        lengths = [sum(map(len, one.reading.inputs.values())) if one.ids else 0 for one in written]
        for some in by_length(lengths, batch_size):
            logits = self(**self.pad([written[i].reading.inputs for i in some]))
            for i, of_row in zip(some, logits, strict=True):
                one = written[i]
                probabilities = of_row[one.first : one.first + len(one.ids)].float().softmax(-1)
                of_tokens = probabilities.gather(1, torch.tensor(one.ids, device=self.device).unsqueeze(1)).squeeze(1)
                best = probabilities.topk(min(_NAMED, probabilities.shape[1]))
                found[i] = [
                    _Said(probability, dict(zip(tokens, highest, strict=True)))
                    for probability, tokens, highest in zip(
                        of_tokens.tolist(), best.indices.tolist(), best.values.tolist(), strict=True
                    )
                ]
        return found

    @torch.no_grad()
    def _generated(self, batch: Batch, num_beams: int | None = None) -> list[list[int]]:
        """Return the tokens that the module writes for each source of a batch, up to the first that ends a text."""
        prompts, model = self._prompts(batch), cast(Any, self.model)
        if not prompts["input_ids"].shape[1]:
            return [[] for _ in prompts["input_ids"]]
        beams = num_beams or self.num_beams
        search = beam_search if beams > 1 else None
        with _without_cudnn():
            written = model.generate(
                **prompts, num_beams=beams, length_penalty=self._penalty(beams), custom_generate=search
            )
        begin = prompts["input_ids"].shape[1] if self.pairs.start is None else 1
        ends = model.generation_config.eos_token_id
        return [
            ids[: next((i + 1 for i, token in enumerate(ids) if token in ends), None)]
            for ids in written[:, begin:].tolist()
        ]

    def _rules(self, **given: int) -> GenerationConfig:
        """Return how texts are written, on top of what the backbone says."""
        known = self.model.generation_config or GenerationConfig()
        ends = known.eos_token_id if isinstance(known.eos_token_id, list) else [known.eos_token_id]
        known.update(
            max_length=None,
            do_sample=False,
            num_beams=self.num_beams,
            length_penalty=self._penalty(self.num_beams),
            decoder_start_token_id=self.pairs.start,
            forced_bos_token_id=self.pairs.first,
            eos_token_id=sorted({self.pairs.end, *(end for end in ends if end is not None)}),
            pad_token_id=self.tokenizer.pad_token_id,
            **given,
        )
        return known

    def _penalty(self, num_beams: int) -> float:
        """Return the length penalty of so many beams; transformers warns of one where there is nothing to rank."""
        return self.length_penalty if num_beams > 1 else 1.0

    def _other(self, contrast: str, token: int, said: _Said) -> tuple[int, str]:
        """Return the token that a written one is told apart from, and what it is called."""
        if contrast != RUNNER_UP:
            return self.pairs.token(contrast, like=token), contrast.strip()
        other = next(other for other in said.most_probable if other != token)
        return other, self.pairs.name(other)

    def _by_name(self, probabilities: dict[int, float], known: dict[int, str]) -> dict[str, float]:
        """Return tokens' probabilities by their names; of two with one name, that of the more probable."""
        found: dict[str, float] = {}
        for token, probability in probabilities.items():
            found.setdefault(known.get(token) or self.pairs.name(token), probability)
        return found

    def _without_end(self, ids: list[int]) -> list[int]:
        """Return the tokens up to the last that stands for text."""
        return ids[: 1 + max((i for i, token in enumerate(ids) if token not in self.pairs.special), default=-1)]

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


def _until(place: int, reading: Reading) -> Reading:
    """Return a reading without what stands behind a place of its logits, where nothing is looked at."""
    name = "decoder_input_ids" if "decoder_input_ids" in reading.inputs else "input_ids"
    inputs = reading.inputs | {name: reading.inputs[name][: place + 1]}
    return replace(reading, inputs=inputs, places=reading.places | {name: reading.places[name][: place + 1]})


def _rows(batch: Batch, count: int) -> list[int | None]:
    return cast(Tensor, batch["row"]).tolist() if "row" in batch else [None] * count


@contextmanager
def _without_cudnn() -> Iterator[None]:
    """Let others attend: cuDNN plans anew for each shape, and hardly two batches of pairs have the same."""
    attends = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(attends)
