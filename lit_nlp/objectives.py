"""What language models learn from: texts with some tokens hidden, and the tokens that they must find.

The core are pure functions of token ids; whoever calls them brings the random generator.
"""

import zlib
from collections.abc import Sequence
from itertools import count, takewhile
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_nlp.errors import BackboneError, require
from lit_nlp.tokenization import IGNORED, Tokens, padded, token_ids

Objective = Literal["masked", "causal", "denoising"]


class Documents(NamedTuple):
    """Texts as tokens, however long.

    Attributes:
        ids: The tokens of each text; for `causal` with those that begin and end it.
        words: For each token, the number of its word in the text; empty unless `whole_words`.
    """

    ids: list[list[int]]
    words: list[list[int]]


class Blocks(NamedTuple):
    """Documents cut into blocks.

    Attributes:
        pieces: Document, first token and the one behind the last, in the order of the blocks.
        firsts: The first piece of each block, and behind them the number of pieces.
    """

    pieces: Int[np.ndarray, "pieces 3"]
    firsts: Int[np.ndarray, " blocks_and_one"]


class Examples:
    """Makes an objective's examples: padded batches of `input_ids` with the `labels` to be found.

    * `masked`: a share of the tokens is to be found; of these 80 % are replaced by the mask token, 10 % by a random
      one, 10 % stay (Devlin et al. 2019).
    * `causal`: each token is to be found from those of its document before it.
    * `denoising`: spans are replaced by sentinels, and written by the decoder (Raffel et al. 2020).

    Args:
        tokenizer: The backbone's.
        objective: `masked`, `causal` or `denoising`.
        max_length: Tokens of an example, special tokens included.
        mask_probability: Share of the tokens to be found, for `masked` and `denoising`.
        whole_words: Mask all tokens of a word or none, for `masked`.
        span_length: Mean tokens of a span, for `denoising`.

    Attributes:
        room: The tokens of a text that fill an example.
        before: The special tokens that begin a text, and `after` those that end it.

    Raises:
        BackboneError: The tokenizer lacks the tokens that the objective needs.
        ConfigError: Arguments out of range, or without room for text.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        objective: Objective,
        *,
        max_length: int,
        mask_probability: float = 0.15,
        whole_words: bool = False,
        span_length: float = 3.0,
    ) -> None:
        require(0 < mask_probability < 1, f"mask_probability must lie between 0 and 1, got {mask_probability}", "data")
        require(span_length >= 1, f"span_length must be at least 1, got {span_length}", "data")
        require(
            objective == "masked" or not whole_words, f"whole_words goes with masked only, not with {objective}", "data"
        )
        self.tokenizer, self.objective, self.max_length = tokenizer, objective, max_length
        self.mask_probability, self.whole_words, self.span_length = mask_probability, whole_words, span_length
        self.before, self.after = _around(tokenizer)
        self._check_tokens()
        special = set(tokenizer.all_special_ids)
        vocabulary = tokenizer.get_vocab()
        self._special = np.array(sorted(special))
        # A random token that pads or ends the text would change more than a word.
        self._ordinary = np.array(sorted(set(vocabulary.values()) - special))
        names = takewhile(lambda name: name in vocabulary, (f"<extra_id_{i}>" for i in count()))
        self._sentinels = [vocabulary[name] for name in names]
        self.room = self._room()

    def documents(self, texts: Sequence[str]) -> Documents:
        """Tokenise texts whole."""
        if self.whole_words:
            found = self.tokenizer(
                list(texts),
                add_special_tokens=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )
            words = [[-1 if word is None else word for word in each.word_ids] for each in found.encodings]
            return Documents(found["input_ids"], words)
        ids = token_ids(self.tokenizer, texts, special=False)
        if self.objective == "causal":
            ids = [[*self.before, *tokens, *self.after] for tokens in ids]
        return Documents(ids, [])

    def cut(self, lengths: Int[np.ndarray, " documents"]) -> Blocks:
        """Cut documents of so many tokens into blocks, of which each makes an example."""
        return pack(lengths, self.room) if self.objective == "causal" else split(lengths, self.room)

    def sides(self, tokens: Int[np.ndarray, " blocks"]) -> Int[np.ndarray, "blocks sides"]:
        """Return how long blocks of so many tokens are in a batch, on each side that is padded by itself."""
        if self.objective == "denoising":
            sizes = np.array([(0, 0)] + [self._corrupted(size) for size in range(1, self.room + 1)])
            return sizes[tokens]
        return (tokens + self.max_length - self.room).reshape(-1, 1)

    def example(
        self, pieces: Sequence[Sequence[int]], draw: np.random.Generator, words: Sequence[int] | None = None
    ) -> Tokens:
        """Make an example of a block.

        Args:
            pieces: Its tokens; for `causal` those of each document by themselves.
            draw: Decides what is hidden.
            words: For each token the number of its word, for `whole_words`.
        """
        if self.objective == "causal":
            return causal(pieces)
        tokens = np.array(pieces[0], dtype=np.int64)
        if self.objective == "denoising":
            hidden = noise(len(tokens), self.mask_probability, self.span_length, draw)
            return denoising(tokens, hidden, self._sentinels, int(self.tokenizer.eos_token_id))
        grouped = np.array(words) if self.whole_words and words is not None else None
        chosen = choose(self._candidates(tokens), grouped, self.mask_probability, draw)
        return self._masked(tokens, chosen, corrupt(tokens, chosen, self._mask_id, self._ordinary, draw))

    def complete(self, tokens: Sequence[int]) -> list[Tokens]:
        """Make examples of one document, the same each time, from which its loss is told.

        Each token is to be found once; a masked one in one of several examples, each with as many masks as in
        training. Of `denoising`, whose targets hang together, there is one example a block.
        """
        # A decoder foresees none of a block's first tokens, so that each block but the first repeats one.
        known = min(len(tokens), 1) if self.objective == "causal" else 0
        blocks = split(np.array([len(tokens) - known]), self.room - known)
        cuts = [list(tokens[start : stop + known]) for _, start, stop in blocks.pieces.tolist()] or [list(tokens)]
        # By the tokens, so that a text's loss is its own, wherever it stands.
        draw = np.random.default_rng(zlib.crc32(np.array(tokens, dtype=np.int64).tobytes()))
        if self.objective != "masked":
            return [self.example([some], draw) for some in cuts]
        return [example for some in cuts for example in self._each_masked_once(np.array(some, dtype=np.int64), draw)]

    def pad(self, examples: Sequence[Tokens]) -> dict[str, Tensor]:
        """Pad examples on the right to a batch.

        It holds `input_ids` and `labels` `[batch, sequence]`, for `denoising` the decoder's, and `length` `[batch]`,
        the tokens of each example. Beside these stand an `attention_mask`; or for `causal` the `position_ids`, which
        begin anew with each document and are all by which transformers knows documents apart, where it is given no
        mask. Padding is a document of itself.
        """
        ids = [example["input_ids"] for example in examples]
        batch = {
            "input_ids": padded(ids, int(self.tokenizer.pad_token_id)),
            "labels": padded([example["labels"] for example in examples], IGNORED),
            "length": torch.tensor([len(tokens) for tokens in ids]),
        }
        if self.objective == "causal":
            return batch | {"position_ids": padded([example["position_ids"] for example in examples], 0)}
        if self.objective == "denoising":
            batch["length"] += (batch["labels"] != IGNORED).sum(1)
        return batch | {"attention_mask": padded([[1] * len(tokens) for tokens in ids], 0)}

    @property
    def _mask_id(self) -> int:
        return int(self.tokenizer.mask_token_id)

    def _candidates(self, tokens: Int[np.ndarray, " tokens"]) -> Int[np.ndarray, " candidates"]:
        return np.flatnonzero(~np.isin(tokens, self._special))

    def _each_masked_once(self, tokens: Int[np.ndarray, " tokens"], draw: np.random.Generator) -> list[Tokens]:
        shuffled = draw.permutation(self._candidates(tokens))
        groups = np.array_split(shuffled, max(1, min(round(1 / self.mask_probability), len(shuffled))))
        hidden = [np.where(np.isin(np.arange(len(tokens)), group), self._mask_id, tokens) for group in groups]
        return [self._masked(tokens, *each) for each in zip(groups, hidden, strict=True)]

    def _masked(
        self,
        tokens: Int[np.ndarray, " tokens"],
        chosen: Int[np.ndarray, " chosen"],
        corrupted: Int[np.ndarray, " tokens"],
    ) -> Tokens:
        labels = np.full_like(tokens, IGNORED)
        labels[chosen] = tokens[chosen]
        outside = [IGNORED] * len(self.before), [IGNORED] * len(self.after)
        return {
            "input_ids": [*self.before, *corrupted.tolist(), *self.after],
            "labels": [*outside[0], *labels.tolist(), *outside[1]],
        }

    def _check_tokens(self) -> None:
        name = f"backbone {self.tokenizer.name_or_path}"
        needed = {"masked": "mask_token", "causal": "eos_token", "denoising": "eos_token"}[self.objective]
        if getattr(self.tokenizer, needed) is None:
            mend = "choose a backbone that was made for it, or another data.objective"
            raise BackboneError(f"its tokenizer has no {needed}, which {self.objective} needs", where=name, mend=mend)
        if self.whole_words and not self.tokenizer.is_fast:
            mend = "use a backbone with a tokenizer.json, or leave whole_words out"
            raise BackboneError("its tokenizer has no fast version, which tells the words", where=name, mend=mend)
        if self.objective == "causal" and self.after[-1:] != [self.tokenizer.eos_token_id]:
            self.after = [*self.after, int(self.tokenizer.eos_token_id)]

    def _corrupted(self, tokens: int) -> tuple[int, int]:
        """Return the lengths of input and target of so many tokens, with sentinels and ends."""
        hidden, spans = spans_of(tokens, self.mask_probability, self.span_length)
        return tokens - hidden + spans + 1, hidden + spans + 1

    def _room(self) -> int:
        """Return how many tokens of a document fill an example."""
        room = self.max_length
        if self.objective == "masked":
            room -= len(self.before) + len(self.after)
        if self.objective == "denoising":
            # What is hidden makes room for more, as in T5's random_spans_helper.
            room = 0
            while max(self._corrupted(room + 1)) <= self.max_length:
                room += 1
        least = 1 if self.objective == "masked" else 2
        mend = "raise max_length"
        require(room >= least, f"max_length={self.max_length} leaves no room for text", "data", mend)
        if self.objective == "denoising":
            _, spans = spans_of(room, self.mask_probability, self.span_length)
            if not self._sentinels:
                raise BackboneError(
                    "its tokenizer has no sentinels (<extra_id_0>, …), which denoising needs",
                    where=f"backbone {self.tokenizer.name_or_path}",
                    mend="choose T5 or one of its kin",
                )
            known = f"the tokenizer has {len(self._sentinels)} sentinels, but {spans} spans are hidden of a block"
            require(spans <= len(self._sentinels), known, "data", mend="lower max_length, or raise span_length")
        return room


# Which tokens go together


def split(lengths: Int[np.ndarray, " documents"], room: int) -> Blocks:
    """Cut each document by itself into as few blocks of at most `room` tokens as can be, of about equal length."""
    counts = -(-lengths // room)
    document = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    size = -(-lengths[document] // counts[document])
    start = number * size
    pieces = np.stack([document, start, np.minimum(start + size, lengths[document])], axis=1)
    return Blocks(pieces, np.arange(len(pieces) + 1))


def pack(lengths: Int[np.ndarray, " documents"], room: int) -> Blocks:
    """Cut the documents, one after the other, into full blocks of `room` tokens; only the last may hold fewer."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.union1d(np.arange(0, total, room), ends)
    start, stop = cuts[:-1], cuts[1:]
    document = np.searchsorted(ends, start, side="right")
    begin = (ends - lengths)[document]
    firsts = np.searchsorted(start // room, np.arange(-(-total // room) + 1))
    return Blocks(np.stack([document, start - begin, stop - begin], axis=1), firsts)


# Masked (Devlin et al. 2019)


def choose(
    candidates: Int[np.ndarray, " candidates"],
    words: Int[np.ndarray, " tokens"] | None,
    probability: float,
    draw: np.random.Generator,
) -> Int[np.ndarray, " chosen"]:
    """Return the tokens to be found: a share of the candidates, at least one, whole words where `words` are given.

    Words are taken in random order as long as they fit into the share, as BERT's `create_pretraining_data.py` does.
    """
    share = max(1, round(len(candidates) * probability))
    if words is None:
        return np.sort(draw.permutation(candidates)[:share])
    chosen: list[int] = []
    for word in draw.permutation(np.unique(words[candidates])):
        tokens = candidates[words[candidates] == word].tolist()
        if not chosen or len(chosen) + len(tokens) <= share:
            chosen += tokens
        if len(chosen) >= share:
            break
    return np.array(sorted(chosen), dtype=np.int64)


def corrupt(
    tokens: Int[np.ndarray, " tokens"],
    chosen: Int[np.ndarray, " chosen"],
    mask_id: int,
    ordinary: Int[np.ndarray, " vocabulary"],
    draw: np.random.Generator,
) -> Int[np.ndarray, " tokens"]:
    """Replace 80 % of the chosen tokens by the mask, 10 % by a random ordinary token, and leave 10 % as they are."""
    fate = draw.random(len(chosen))
    random = draw.choice(ordinary, len(chosen))
    corrupted = tokens.copy()
    corrupted[chosen] = np.where(fate < 0.8, mask_id, np.where(fate < 0.9, random, tokens[chosen]))
    return corrupted


# Causal


def causal(pieces: Sequence[Sequence[int]]) -> Tokens:
    """Join documents to one sequence whose positions begin anew with each; the first token of each isn't predicted."""
    return {
        "input_ids": [token for piece in pieces for token in piece],
        "labels": [label for piece in pieces for label in (IGNORED, *piece[1:])],
        "position_ids": [position for piece in pieces for position in range(len(piece))],
    }


# Denoising (Raffel et al. 2020)


def spans_of(tokens: int, density: float, mean_length: float) -> tuple[int, int]:
    """Return how many of so many tokens are hidden, and in how many spans: T5's `random_spans_noise_mask`."""
    if tokens < 2:
        return tokens, tokens
    hidden = min(max(round(tokens * density), 1), tokens - 1)
    return hidden, min(max(round(hidden / mean_length), 1), hidden, tokens - hidden)


def noise(tokens: int, density: float, mean_length: float, draw: np.random.Generator) -> Bool[np.ndarray, " tokens"]:
    """Return which tokens are hidden: spans of random lengths with kept tokens between them.

    T5's mask always hides the last token, and of a text that is short enough for one span nothing but its end. Here
    a text may also end with kept tokens or begin with hidden ones; numbers and lengths are T5's.
    """
    hidden, spans = spans_of(tokens, density, mean_length)
    if hidden == tokens:
        return np.ones(tokens, dtype=bool)
    lengths = np.empty(2 * spans + 1, dtype=np.int64)
    lengths[0::2] = _parts(tokens - hidden + 2, spans + 1, draw)
    lengths[[0, -1]] -= 1
    lengths[1::2] = _parts(hidden, spans, draw)
    return np.repeat(np.arange(2 * spans + 1) % 2 == 1, lengths)


def denoising(
    tokens: Int[np.ndarray, " tokens"], hidden: Bool[np.ndarray, " tokens"], sentinels: Sequence[int], eos_id: int
) -> Tokens:
    """Put a sentinel for each hidden span, and make the target of sentinels with the tokens that they stand for."""
    source: list[int] = []
    target: list[int] = []
    unused = iter(sentinels)
    for place, (token, hide) in enumerate(zip(tokens.tolist(), hidden.tolist(), strict=True)):
        if hide and (place == 0 or not hidden[place - 1]):
            sentinel = next(unused)
            source.append(sentinel)
            target.append(sentinel)
        (target if hide else source).append(token)
    return {"input_ids": [*source, eos_id], "labels": [*target, eos_id] if target else [IGNORED]}


def _parts(total: int, count: int, draw: np.random.Generator) -> Int[np.ndarray, " count"]:
    """Divide a total into so many whole numbers above 0, each division equally likely."""
    cuts = np.sort(draw.permutation(total - 1)[: count - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the special tokens that a tokenizer puts before and after a text."""
    encoding = tokenizer("a", return_special_tokens_mask=True)
    text = [place for place, special in enumerate(encoding["special_tokens_mask"]) if not special]
    ids: list[int] = encoding["input_ids"]
    return ids[: text[0]], ids[text[-1] + 1 :]
