"""Some sequences as the methods see them: a scalar of embeddings, or of words that are there or not."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from lit_nlp.explain.explainable import Explainable
from lit_nlp.explain.path import Lines
from lit_nlp.explain.words import find_words, shares
from lit_nlp.targets import AttributionTarget, Reading


@dataclass(frozen=True)
class Features:
    """The words of a text and of its pair, in one row: what scores are given to.

    Attributes:
        spans: The characters of each word of the text, and of each of the pair.
        texts: Both texts.
    """

    texts: tuple[str, str]
    spans: tuple[list[tuple[int, int]], list[tuple[int, int]]]

    @classmethod
    def of(cls, target: AttributionTarget) -> "Features":
        """Find the words of a target's texts."""
        texts = target.text, target.text_pair or ""
        return cls(texts, (find_words(texts[0]), find_words(texts[1])))

    def __len__(self) -> int:
        return sum(map(len, self.spans))

    def membership(self, reading: Reading, name: str) -> list[dict[int, float]]:
        """Return for each token of a sequence its share in each word."""
        found: list[dict[int, float]] = [{} for _ in reading.places[name]]
        for part, first in (0, 0), (1, len(self.spans[0])):
            offsets = [
                (place.start, place.end) if place is not None and place.part == part else None
                for place in reading.places[name]
            ]
            for token, share in enumerate(shares(self.texts[part], self.spans[part], offsets)):
                found[token] |= {first + word: weight for word, weight in share.items()}
        return found

    def read(self, reading: Reading) -> list[int]:
        """Return the numbers of the words that a sequence holds, rising: none of another window, or written later."""
        return _numbers(self.membership(reading, name) for name in reading.places)

    def with_token(self, reading: Reading, token: int | None) -> list[int]:
        """Return the numbers of the words in which a token has a share, rising."""
        return _numbers(
            [
                words
                for words, each in zip(self.membership(reading, name), reading.inputs[name], strict=True)
                if each == token
            ]
            for name in reading.places
            if token in reading.inputs[name]
        )


def _numbers(memberships: Iterable[Sequence[dict[int, float]]]) -> list[int]:
    """Return the numbers of the words in which some tokens have a share, rising."""
    return sorted({word for tokens in memberships for token in tokens for word in token})


class Batch:
    """Some readings, padded, what is asked of them, and their words.

    Args:
        module: The module to explain.
        readings: The sequences.
        features: The words of each.
        absence: The token whose embedding stands for a word that isn't there.
        rows: How many sequences may go through the module at once.

    Attributes:
        read: For each sequence the numbers of the words that it reads, rising: the places that these have in all
            that follows, here called `words`.
        words: The most words that one of them reads.
    """

    def __init__(
        self,
        module: Explainable,
        readings: Sequence[Reading],
        features: Sequence[Features],
        *,
        absence: int,
        rows: int,
    ) -> None:
        self.module, self.readings, self.features, self.absence, self.rows = module, readings, features, absence, rows
        self.inputs = module.pad([reading.inputs for reading in readings])
        device = self.inputs["input_ids"].device
        self.weights, self.targets = pad_terms(readings, device)
        of_tokens = {
            name: [words.membership(reading, name) for reading, words in zip(readings, features, strict=True)]
            for name in readings[0].places
        }
        self.read = list(map(_numbers, zip(*of_tokens.values(), strict=True)))
        self.words = max(map(len, self.read))
        self._memberships = {name: self._membership(name, rows).to(device) for name, rows in of_tokens.items()}

    def __len__(self) -> int:
        return len(self.readings)

    @property
    def fixed(self) -> tuple[Tensor, ...]:
        """What `score_at` takes after the embeddings and no method varies: what is asked, token ids and masks."""
        return self.weights, self.targets, *self.inputs.values()

    @cached_property
    def embedding_layers(self) -> list[nn.Module]:
        """The layers that look tokens up."""
        return self.module.embedding_layers()

    @cached_property
    def embeddings(self) -> tuple[Float[Tensor, "batch _ hidden"], ...]:
        """What each embedding layer gives for the texts."""
        return tuple(self._lookups[layer][1] for layer in self.embedding_layers)

    @cached_property
    def baselines(self) -> tuple[Float[Tensor, "batch _ hidden"], ...]:
        """What they would give if there were no words; special tokens stay."""
        absent = {
            name: self.inputs[name].masked_fill(self._memberships[name].sum(2) > 0, self.absence)
            for name in self._memberships
        }
        found = self._look_up({**self.inputs, **absent})
        return tuple(found[layer][1] for layer in self.embedding_layers)

    @cached_property
    def memberships(self) -> tuple[Float[Tensor, "batch _ words"], ...]:
        """For each embedding layer, the share that each token which it reads has in each word."""
        return tuple(self._membership_of(self._lookups[layer][0], layer) for layer in self.embedding_layers)

    def score_at(self, *given: Tensor) -> Float[Tensor, " rows"]:
        """Return the score with these embeddings in place of the layers' own; behind them comes `fixed`, or repeats.

        Only embeddings are exchanged. What a model reads from the ids themselves (positions, the last token, an
        end mark) stays that of the text.
        """
        return self.score_by(self.embedding_layers)(*given)

    def score_by(self, layers: Sequence[nn.Module]) -> Callable[..., Float[Tensor, " rows"]]:
        """Return what scores tensors that are given in place of what some layers give, with `fixed` behind them."""

        def score(*given: Tensor) -> Float[Tensor, " rows"]:
            replaced = dict(zip(layers, given, strict=False))
            weights, targets, *inputs = given[len(replaced) :]
            with _hooked(layers, lambda layer, output: _with_first(output, replaced[layer])):
                outputs = self.module(**dict(zip(self.inputs, inputs, strict=True)))
            return weighted(self.module.score, outputs, weights, targets)

        return score

    def change(self) -> Float[Tensor, " batch"]:
        """Return the score less the score without any word, in float64: what credit adds up to."""
        empty, full = self.between().ends()
        return full - empty

    def between(self) -> Lines:
        """Return the way from a text without words to the text, by its embeddings."""
        return Lines(self.score_at, self.baselines, self.embeddings, self.fixed, self.rows)

    def between_outputs(self, layer: nn.Module, half: int) -> Lines | None:
        """Return the way by what a layer makes of the tokens of an embedding layer; None where it gives no vector each.

        All else stays the text's: its embeddings, and what passes the layer by.
        """
        begin, end = (self._outputs_of(layer, half, each) for each in (self.baselines, self.embeddings))
        if begin is None or end is None:
            return None
        return Lines(self.score_by([layer]), (begin,), (end,), self.fixed, self.rows)

    @torch.no_grad()
    def calls(self, layer: nn.Module) -> int:
        """Return how often a layer is called in one pass."""
        seen: list[None] = []
        with _hooked([layer], lambda *_: seen.append(None)):
            self.module(**self.inputs)
        return len(seen)

    def per_word(self, credits: Sequence[Float[Tensor, "batch _"]]) -> Float[Tensor, "batch words_and_rest"]:
        """Add the credit of tokens up to that of words; in a last column what special tokens have."""
        return torch.stack(list(map(_per_word, credits, self.memberships))).sum(0)

    def per_word_of(self, half: int, credit: Float[Tensor, "batch tokens"]) -> Float[Tensor, "batch words_and_rest"]:
        """Add up credit at the outputs of another layer, which stand where the tokens of an embedding layer do."""
        return _per_word(credit, self.memberships[half])

    def at(self, embeddings: tuple[Float[Tensor, "batch _ hidden"], ...]) -> "Batch":
        """Return the same texts with other embeddings."""
        found = copy(self)
        found.embeddings = embeddings
        return found

    def outputs(self, keep: Float[Tensor, "coalitions words"], generator: torch.Generator | None = None) -> Any:
        """Run the one sequence of a batch for each coalition of its words; with a generator, blank single elements."""
        replaced = {}
        for layer, full, empty, membership in zip(
            self.embedding_layers, self.embeddings, self.baselines, self.memberships, strict=True
        ):
            stays = 1 - membership.sum(2) + keep.to(membership) @ membership[0].T
            share = stays.unsqueeze(2).to(full.dtype)
            if generator is not None:
                drawn = torch.rand(*stays.shape, full.shape[2], generator=generator).to(full.device)
                share = (drawn < stays.unsqueeze(2)).to(full.dtype)
            # Where all of a word stays, its embedding is the very same.
            replaced[layer] = torch.where(share == 1, full, empty + share * (full - empty))
        inputs = {name: tensor.expand(len(keep), *tensor.shape[1:]) for name, tensor in self.inputs.items()}
        with _hooked(replaced, lambda layer, _: replaced[layer]):
            return self.module(**inputs)

    def _membership(
        self, name: str, of_tokens: Sequence[Sequence[dict[int, float]]]
    ) -> Float[Tensor, "batch tokens words"]:
        found = torch.zeros(len(self.readings), self.inputs[name].shape[1], self.words)
        for row, shares_of in enumerate(of_tokens):
            place = {word: i for i, word in enumerate(self.read[row])}
            for token, share in enumerate(shares_of):
                for word, weight in share.items():
                    found[row, token, place[word]] = weight
        return found

    def _membership_of(
        self, read: Int[Tensor, "batch tokens"], layer: nn.Module
    ) -> Float[Tensor, "batch tokens words"]:
        for name, membership in self._memberships.items():
            if torch.equal(read, self.inputs[name]):
                return membership
        ids, membership = self.inputs["input_ids"], self._memberships["input_ids"]
        alone = "decoder_input_ids" not in self._memberships
        if alone and read.shape == ids.shape and torch.equal(read[:, 1:], ids[:, :-1]):
            # A decoder that reads the ids of its encoder reads each one place further right.
            return pad(membership[:, :-1], (0, 0, 1, 0))
        raise ValueError(f"{type(layer).__name__} read other tokens than those of the input")

    def _outputs_of(self, layer: nn.Module, half: int, embeddings: tuple[Tensor, ...]) -> Tensor | None:
        """Return what a layer makes of a half's embeddings, of several tensors the first; None where not of each token.

        Gradients tell what it reads: keys in a decoder may be as many as its tokens, and yet are the encoder's.
        """
        given = [each.detach().requires_grad_(i == half) for i, each in enumerate(embeddings)]
        seen: list[Any] = []

        def remember(_: nn.Module, output: Any) -> None:
            seen.append(output[0] if isinstance(output, tuple) and output else output)
            raise _AllSeen

        with suppress(_AllSeen), _hooked([layer], remember):
            self.score_at(*given, *self.fixed)
        found = seen[0] if seen else None
        if (
            not isinstance(found, Tensor)
            or found.ndim != 3
            or found.shape[:2] != given[half].shape[:2]
            or not found.requires_grad
        ):
            return None
        return found.detach()

    @cached_property
    def _lookups(self) -> dict[nn.Module, tuple[Tensor, Tensor]]:
        return self._look_up(self.inputs)

    @torch.no_grad()
    def _look_up(self, inputs: dict[str, Tensor]) -> dict[nn.Module, tuple[Tensor, Tensor]]:
        """Return for each embedding layer the ids that it reads and the embeddings that it gives."""
        seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

        def remember(layer: nn.Module, read: tuple[Tensor, ...], output: Tensor) -> None:
            seen[layer] = read[0], output
            if len(seen) == len(self.embedding_layers):
                raise _AllSeen

        with ExitStack() as stack, suppress(_AllSeen):
            for layer in self.embedding_layers:
                stack.callback(layer.register_forward_hook(remember).remove)
            self.module(**inputs)
        return seen


class _AllSeen(Exception):
    """No more of a forward pass is needed."""


class Game:
    """One text as a game of its words: what the module says where some of them are blanked.

    Args:
        readings: A batch of one sequence for each in which the text is read.

    Attributes:
        played: The numbers of the words that some reading holds, rising: the players.
        words: How many they are.
    """

    def __init__(self, readings: Sequence[Batch]) -> None:
        self.readings = readings
        self.played = sorted({word for batch in readings for word in batch.read[0]})
        self.words = len(self.played)
        place = {word: i for i, word in enumerate(self.played)}
        self._own = [[place[word] for word in batch.read[0]] for batch in readings]

    def score(self, keep: Float[Tensor, "coalitions words"]) -> Float[Tensor, " coalitions"]:
        """Return the scalar that is explained, where each word stays by its share of 1."""

        def said(outputs: list[Any], rows: int) -> Float[Tensor, " rows"]:
            of_readings = [
                weighted(batch.module.score, each, batch.weights.expand(rows, -1), batch.targets.expand(rows, -1, -1))
                for batch, each in zip(self.readings, outputs, strict=True)
            ]
            return torch.stack(of_readings).sum(0)

        return self._play(keep, said)

    def log_probability(self, keep: Float[Tensor, "coalitions words"]) -> Float[Tensor, " coalitions"]:
        """Return the log probability of the target in nats, by the mean of what the module gives for each window."""
        return self._play(keep, self._log_probability)

    def soft_log_probability(
        self, retain: Float[Tensor, "samples words"], generator: torch.Generator
    ) -> Float[Tensor, " samples"]:
        """Return the same where each element of a word's embeddings stays with the word's probability."""
        return self._play(retain, self._log_probability, generator)

    def _log_probability(self, outputs: list[Any], rows: int) -> Float[Tensor, " rows"]:
        batch, pooled = self.readings[0], outputs[0] if len(outputs) == 1 else torch.stack(outputs).mean(0)
        return batch.module.log_probability(pooled, _target(batch.targets[:, 0].expand(rows, -1)))

    @torch.no_grad()
    def _play(
        self,
        keep: Float[Tensor, "coalitions words"],
        said: Callable[[list[Any], int], Float[Tensor, " rows"]],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " coalitions"]:
        """Run all readings for each coalition, at most `rows` sequences at a time."""
        found = []
        for some in keep.split(self.readings[0].rows):
            of_each = zip(self.readings, self._own, strict=True)
            outputs = [batch.outputs(some[:, own], generator) for batch, own in of_each]
            found.append(said(outputs, len(some)).cpu().double())
        return torch.cat(found)


def pad_terms(
    readings: Sequence[Reading], device: torch.device
) -> tuple[Float[Tensor, "rows terms"], Int[Tensor, "rows terms _"]]:
    """Return the weights and targets of what is asked of readings, where there are fewer terms with weights of 0."""
    terms = max(len(reading.terms) for reading in readings)
    padded = [reading.terms + [(0.0, reading.terms[0][1])] * (terms - len(reading.terms)) for reading in readings]
    weights = torch.tensor([[weight for weight, _ in row] for row in padded], device=device)
    return weights, torch.tensor([[target for _, target in row] for row in padded], device=device)


def weighted(
    score: Callable[..., Tensor],
    outputs: Any,
    weights: Float[Tensor, "rows terms"],
    targets: Int[Tensor, "rows terms _"],
) -> Float[Tensor, " rows"]:
    """Return the weighted sum of a score's terms, row by row."""
    scores = [score(outputs, _target(targets[:, term])) for term in range(targets.shape[1])]
    return (torch.stack(scores, dim=1) * weights).sum(1)


def _target(target: Int[Tensor, "rows numbers"]) -> Int[Tensor, "rows ..."]:
    """Return targets as `score` takes them: one number a row, or several."""
    return target.squeeze(1) if target.shape[1] == 1 else target


def _per_word(
    credit: Float[Tensor, "batch tokens"], membership: Float[Tensor, "batch tokens words"]
) -> Float[Tensor, "batch words_and_rest"]:
    credit = credit.to(membership.dtype)
    words = (credit.unsqueeze(1) @ membership).squeeze(1)
    rest = (credit * (1 - membership.sum(2))).sum(1, keepdim=True)
    return torch.cat([words, rest], dim=1)


def _with_first(output: Any, tensor: Tensor) -> Any:
    """Return a layer's output with another tensor in place of its own, or of the first of them."""
    return (tensor, *output[1:]) if isinstance(output, tuple) else tensor


@contextmanager
def _hooked(layers: Iterable[nn.Module], hook: Callable[[nn.Module, Any], Any]) -> Iterator[None]:
    """Call `hook(layer, output)` after each layer; what it returns replaces the output, unless it is None."""
    with ExitStack() as stack:
        for layer in layers:
            handle = layer.register_forward_hook(lambda layer, _, output: hook(layer, output))
            stack.callback(handle.remove)
        yield
