"""What is asked of a module that is to be explained: a scalar of one text, and where its tokens stand in it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_nlp.tokenization import Tokens

# The contrast that stands for the most probable of what else might be said.
RUNNER_UP = "runner-up"

Label = str | int | float | list[str]


@dataclass(frozen=True)
class Place:
    """Where a token stands: the characters `start` to `end` of the text (part 0) or of its pair (part 1)."""

    part: int
    start: int
    end: int


@dataclass(frozen=True)
class Reading:
    """One sequence that the module reads of a text, and its share of what is explained.

    Attributes:
        inputs: The token ids by the name that the model's forward takes: `input_ids`, and for an encoder-decoder
            `decoder_input_ids`; and what goes with them. Unpadded.
        places: For each of these token ids, where it stands; None for special tokens and a prompt's template,
            which nothing is credited to.
        terms: What `score` takes as the target of one row, with its weight: the scalar is the weighted sum.
    """

    inputs: Tokens
    places: dict[str, list[Place | None]]
    terms: list[tuple[float, list[int]]]


@dataclass(frozen=True)
class AttributionTarget:
    """One scalar of one text that words are credited with: a class, a span, or a token that was written.

    Attributes:
        row: The number of the text among those that were given.
        name: What is explained, for people: the class, the answer, the token; `A rather than B` for a contrast.
        text: The text, and `text_pair` what stands beside it: a second text, a context, or what was written.
        parts: What these two are called.
        kind: `class`, `span` or `token`.
        prediction: What the module says of the text.
        probability: Of the prediction; of a token that is written, that token's; None for a number.
        probabilities: Of what else might be said, the most probable first.
        readings: The sequences whose scores add up to the scalar: several where a text is read in windows.
        span: The characters of `text_pair` that a span or a token takes.
    """

    row: int
    name: str
    text: str
    text_pair: str | None
    parts: tuple[str, str]
    kind: str
    prediction: Label
    probability: float | None
    probabilities: dict[str, float]
    readings: Sequence[Reading] = field(repr=False)
    span: tuple[int, int] | None = None


def stand_elsewhere(labels: Sequence[str], others: Sequence[Any]) -> bool:
    """Whether a class has another number among others' labels; by another name it may be the same."""
    names = list(map(str, others))
    return any(label in names and names.index(label) != number for number, label in enumerate(map(str, labels)))
