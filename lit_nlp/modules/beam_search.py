"""Beam search that writes what transformers' own writes, without the work that changes nothing."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache, EncoderDecoderCache
from transformers.generation import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_managed_module

# Tokens of the vocabulary of which the best is looked at before the others are.
_CHUNK = 128
# Processors that know each hypothesis by its row: they can't do without the rows of texts that are left out.
_BY_ROW = (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)


@dataclass
class Hypotheses:
    """What was written for some texts, and the log probability of it.

    Attributes:
        tokens: Padded to all that may be written.
        scores: Minus infinity where there is no hypothesis.
    """

    tokens: Int[Tensor, "texts hypotheses sequence"]
    scores: Float[Tensor, "texts hypotheses"]

    def best(self, count: int) -> tuple["Hypotheses", Int[Tensor, "texts count"]]:
        """Return the best of each text, the highest score first, and which they are."""
        scores, which = self.scores.topk(count)
        return Hypotheses(_picked(self.tokens, which), scores), which

    def with_others(self, others: "Hypotheses") -> "Hypotheses":
        """Return these and others of the same texts."""
        return Hypotheses(torch.cat([self.tokens, others.tokens], 1), torch.cat([self.scores, others.scores], 1))

    def of(self, texts: Bool[Tensor, " texts"]) -> "Hypotheses":
        """Return those of some texts."""
        return Hypotheses(self.tokens[texts], self.scores[texts])


def beam_search(
    model: Any,
    input_ids: Int[Tensor, "hypotheses sequence"],
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    **inputs: Any,
) -> Int[Tensor, "texts written"]:
    """Return the best hypothesis for each text, as `model.generate(…, custom_generate=beam_search)`.

    Keeps, scores and stops as `GenerationMixin._beam_search` does. Left out are texts that no hypothesis can become
    better for, the copying of what was read of a source for each step, and the sorting of whole vocabularies.

    Args:
        model: Any that generates, in evaluation mode.
        input_ids: What writing starts from, for each text as often as there are beams.
        logits_processor: A `LogitsProcessorList`: changes log probabilities `[hypotheses, vocabulary]`.
        stopping_criteria: A `StoppingCriteriaList`: says which hypotheses have come to their end.
        generation_config: A `GenerationConfig`: how many beams there are, how long texts may be, and when to stop.
        inputs: What the model reads beside, a row for each hypothesis.
    """
    # Where weights are spread over devices, all must take equally many steps.
    synced = is_fsdp_managed_module(model) or is_deepspeed_zero3_enabled()
    by_row = any(isinstance(each, _BY_ROW) for each in logits_processor)
    if synced or by_row or not isinstance(inputs.get("past_key_values"), Cache):  # or a state of another kind
        given = (logits_processor, stopping_criteria, generation_config)
        return cast(Tensor, model._beam_search(input_ids, *given, synced_gpus=synced, **inputs))
    beams, begin = generation_config.num_beams, input_ids.shape[1]
    # Enough that, where hypotheses end in each of the tokens that end a text, as many go on as there are beams.
    kept = max(2, 1 + len(generation_config._eos_token_tensor)) * beams
    running, ended = _nothing_written(input_ids.unflatten(0, (-1, beams)), generation_config)
    result, texts = ended.tokens[:, 0].clone(), torch.arange(len(ended.tokens), device=input_ids.device)
    for end in range(begin + 1, generation_config.max_length + 1):
        written = running.tokens[:, :, : end - 1].flatten(0, 1)
        first = end == begin + 1
        read = model.prepare_inputs_for_generation(
            written, next_sequence_length=None if first else 1, is_first_iteration=first, **inputs
        )
        outputs = model(**read, return_dict=True)
        inputs = model._update_model_kwargs_for_generation(outputs, inputs, model.config.is_encoder_decoder)
        logs = logits_processor(written, outputs.logits[:, -1].float().log_softmax(-1))

        scores, beam, token = continuations(logs.unflatten(0, (-1, beams)), running.scores, kept)
        tokens = _picked(running.tokens, beam)
        tokens[:, :, end - 1] = token
        stops = stopping_criteria(tokens[:, :, :end].flatten(0, 1), None).view_as(scores)
        running, which = Hypotheses(tokens, scores.masked_fill(stops, -torch.inf)).best(beams)
        beam = beam.gather(1, which)
        # One that isn't among as many as there are beams when it ends is none of the results.
        new = scores.masked_fill(~stops, -torch.inf) / (end - begin) ** generation_config.length_penalty
        ended, _ = ended.with_others(Hypotheses(tokens[:, :beams], new[:, :beams])).best(beams)

        going = ~stops.all(1) & _may_improve(running, ended, end - begin, begin, generation_config)
        if not going.all():
            result[texts[~going]] = ended.tokens[~going, 0]
            texts, running, ended = texts[going], running.of(going), ended.of(going)
        if not len(texts):
            break
        _keep(inputs, beam, going)
    return result[:, :end]


def continuations(
    log_probabilities: Float[Tensor, "texts beams vocabulary"], scores: Float[Tensor, "texts beams"], count: int
) -> tuple[Float[Tensor, "texts count"], Int[Tensor, "texts count"], Int[Tensor, "texts count"]]:
    """Return the best continuations of each text's hypotheses: their scores, the hypotheses, and the tokens.

    The best lie in as many chunks of the vocabulary, those with the highest maxima: no others are sorted.
    """
    vocabulary, beams = log_probabilities.shape[2], scores.shape[1]
    whole = vocabulary - vocabulary % _CHUNK
    highest = log_probabilities[..., :whole].unflatten(2, (whole // _CHUNK, _CHUNK)).amax(3)
    if whole < vocabulary:
        highest = torch.cat([highest, log_probabilities[..., whole:].amax(2, keepdim=True)], 2)
    chunks = highest.shape[2]
    best = (highest + scores.unsqueeze(2)).flatten(1).topk(min(count, beams * chunks)).indices.unsqueeze(2)
    token = best % chunks * _CHUNK + torch.arange(_CHUNK, device=best.device)
    beam = (best // chunks).expand_as(token)
    inside = token < vocabulary
    places = (beam * vocabulary + token.where(inside, 0)).flatten(1)
    found = log_probabilities.flatten(1).gather(1, places) + scores.gather(1, beam.flatten(1))
    values, which = found.where(inside.flatten(1), -torch.inf).topk(count)
    return values, beam.flatten(1).gather(1, which), token.flatten(1).gather(1, which)


def _nothing_written(start: Int[Tensor, "texts beams sequence"], config: Any) -> tuple[Hypotheses, Hypotheses]:
    """Return hypotheses that go on, of which only the first of each text counts, and as many that don't exist."""
    tokens = start.new_full((*start.shape[:2], config.max_length), int(config._pad_token_tensor))
    tokens[:, :, : start.shape[2]] = start
    none = torch.full(start.shape[:2], -torch.inf, device=start.device)
    scores = none.clone()
    scores[:, 0] = 0.0
    return Hypotheses(tokens, scores), Hypotheses(tokens, none)


def _may_improve(
    running: Hypotheses, ended: Hypotheses, length: int, begin: int, config: Any
) -> Bool[Tensor, " texts"]:
    """Say for which texts going on may make a hypothesis that is among the best.

    Args:
        running: Those that go on.
        ended: The best of those that don't.
        length: Tokens that were written.
        begin: Tokens that writing started from.
        config: `early_stopping` says what is compared: as in `GenerationMixin._check_early_stop_heuristic`.
    """
    if config.early_stopping == "never" and config.length_penalty > 0:
        length = config.max_length - begin
    may = running.scores[:, 0] / length**config.length_penalty > ended.scores[:, -1]
    return may & ended.scores[:, -1].isneginf() if config.early_stopping is True else may


def _keep(inputs: dict[str, Any], beam: Int[Tensor, "texts beams"], going: Bool[Tensor, " texts"]) -> None:
    """Leave of what the model reads what the hypotheses that go on need: `beam` says which they continue."""
    own = torch.arange(beam.numel(), device=beam.device).view_as(beam)
    first, same = own[going, :1], own[going].flatten()
    cache, encoded = inputs["past_key_values"], inputs.get("encoder_outputs")
    read_alike = isinstance(cache, EncoderDecoderCache)
    (cache.self_attention_cache if read_alike else cache).reorder_cache((first + beam[going]).flatten())
    if len(same) == beam.numel():
        return
    if read_alike:
        cache.cross_attention_cache.reorder_cache(same)
    if encoded is not None:
        encoded.last_hidden_state = encoded.last_hidden_state[same]
    for name, value in inputs.items():  # masks and positions
        if isinstance(value, Tensor) and value.ndim > 1:
            inputs[name] = value[same]


def _picked(
    tokens: Int[Tensor, "texts hypotheses sequence"], which: Int[Tensor, "texts picked"]
) -> Int[Tensor, "texts picked sequence"]:
    return tokens.gather(1, which.unsqueeze(2).expand(-1, -1, tokens.shape[2]))
