"""Gradients integrated along a line, with more points where the score bends."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from captum.attr import IntegratedGradients
from jaxtyping import Bool, Float, Int
from torch import Tensor

# At first each line has so many intervals, and each of these so many Gauss-Legendre points: of those tried, the
# numbers that took the fewest gradients until fine-tuned encoders' scores added up within 1 %.
_INTERVALS, _POINTS = 3, 3
FIRST_POINTS = _INTERVALS * _POINTS


@dataclass(frozen=True)
class Lines:
    """The way from one side's tensors to another's, for each text, and the score along it.

    Attributes:
        score: Takes tensors in place of those of either side, and behind them `fixed`; gives the score of each row.
        begin: One side, each `[texts, places, hidden]`, and `end` the other.
        fixed: What else the score takes, row by row.
        rows: How many rows may be scored at once.
    """

    score: Callable[..., Float[Tensor, " rows"]]
    begin: tuple[Float[Tensor, "texts _ hidden"], ...]
    end: tuple[Float[Tensor, "texts _ hidden"], ...]
    fixed: tuple[Tensor, ...]
    rows: int

    def ends(self) -> tuple[Float[Tensor, " texts"], Float[Tensor, " texts"]]:
        """Return the score of each text at the beginning and at the end, in float64."""
        return self._scored(self.begin, self.fixed), self._scored(self.end, self.fixed)

    def integrated(
        self, *, tolerance: float, max_points: int
    ) -> tuple[tuple[Float[Tensor, "texts _"], ...], Float[Tensor, " texts"]]:
        """Return the gradient's integral times the way, summed over `hidden`: the credit of each place.

        What the credit of an interval adds up to is known: the score at its end less that at its beginning. Intervals
        where it is off by more than their share of the tolerance are halved, until all of a text's together are not.

        Args:
            tolerance: How far the credit may be off, all intervals without their signs, as a share of their change.
            max_points: Of a text that has so many, no interval is halved any more.

        Returns:
            The credit, and the change of score from the beginning to the end that it should add up to, in float64.
        """
        some = self._first(ends := self.ends())
        change = ends[1] - ends[0]
        allowed = tolerance * change.abs()
        total = tuple(torch.zeros(each.shape[:2], device=each.device) for each in self.end)
        accepted = torch.zeros_like(change)
        tried = torch.zeros(len(change), dtype=torch.long)
        while True:
            credit = self._credit(some)
            sums = torch.stack([each.double().sum(1).cpu() for each in credit]).sum(0)
            off = (sums - some.change).abs()
            tried = tried.index_add(0, some.text, torch.ones_like(some.text))
            whole = accepted.index_add(0, some.text, off) <= allowed
            done = whole | (tried * _POINTS >= max_points)
            # Two for one: of those that were tried beyond the first, half stand.
            standing = (tried + _INTERVALS) / 2
            within = done[some.text] | (off <= (allowed / standing)[some.text])
            accepted = accepted.index_add(0, some.text[within], off[within])
            for of_all, of_some in zip(total, credit, strict=True):
                of_all.index_add_(0, some.text[within].to(of_all.device), of_some[within].to(of_all))
            if within.all():
                return total, change
            some = self._halved(some.where(~within))

    def _first(self, ends: tuple[Float[Tensor, " texts"], Float[Tensor, " texts"]]) -> "_Intervals":
        """Return the intervals that are tried first."""
        texts = len(ends[0])
        inner = torch.linspace(0, 1, _INTERVALS + 1, dtype=torch.double)[1:-1].repeat(texts)
        scores = self._scores(torch.arange(texts).repeat_interleave(_INTERVALS - 1), inner).view(texts, -1)
        edges = torch.linspace(0, 1, _INTERVALS + 1, dtype=torch.double).repeat(texts, 1)
        scores = torch.cat([ends[0].unsqueeze(1), scores, ends[1].unsqueeze(1)], dim=1)
        text = torch.arange(texts).repeat_interleave(_INTERVALS)
        sides = (edges[:, :-1], edges[:, 1:], scores[:, :-1], scores[:, 1:])
        return _Intervals(text, *(side.flatten() for side in sides))

    def _halved(self, some: "_Intervals") -> "_Intervals":
        middle = (some.low + some.high) / 2
        score = self._scores(some.text, middle)
        return _Intervals(
            some.text.repeat(2),
            torch.cat([some.low, middle]),
            torch.cat([middle, some.high]),
            torch.cat([some.score_low, score]),
            torch.cat([score, some.score_high]),
        )

    def _at(self, text: Int[Tensor, " points"], share: Float[Tensor, " points"]) -> tuple[Tensor, ...]:
        """Return the tensors of texts at shares of their way."""
        return tuple(
            torch.lerp(begin[text], end[text], share.to(end).view(-1, 1, 1))
            for begin, end in zip(self.begin, self.end, strict=True)
        )

    def _scores(self, text: Int[Tensor, " points"], share: Float[Tensor, " points"]) -> Float[Tensor, " points"]:
        """Return the score at each point, in float64."""
        found = [
            self._scored(self._at(some, at), tuple(each[some] for each in self.fixed))
            for some, at in zip(text.split(self.rows), share.split(self.rows), strict=True)
        ]
        return torch.cat(found)

    @torch.no_grad()
    def _scored(self, given: tuple[Tensor, ...], fixed: tuple[Tensor, ...]) -> Float[Tensor, " rows"]:
        return self.score(*given, *fixed).cpu().double()

    def _credit(self, some: "_Intervals") -> tuple[Float[Tensor, "intervals _"], ...]:
        """Return the credit of each place over each interval, as many of them at once as there is room for."""
        method, found = IntegratedGradients(self.score), []
        for part in torch.arange(len(some.text)).split(max(1, self.rows // _POINTS)):
            text = some.text[part]
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Input Tensor .* did not already require gradients")
                credit = method.attribute(
                    self._at(text, some.high[part]),
                    baselines=self._at(text, some.low[part]),
                    additional_forward_args=tuple(each[text] for each in self.fixed),
                    n_steps=_POINTS,
                    method="gausslegendre",
                    internal_batch_size=self.rows,
                )
            found.append([each.detach().sum(-1) for each in credit])
        return tuple(torch.cat(each) for each in zip(*found, strict=True))


@dataclass(frozen=True)
class _Intervals:
    """Parts of the way of some texts: where each begins and ends, and the scores there."""

    text: Int[Tensor, " intervals"]
    low: Float[Tensor, " intervals"]
    high: Float[Tensor, " intervals"]
    score_low: Float[Tensor, " intervals"]
    score_high: Float[Tensor, " intervals"]

    @property
    def change(self) -> Float[Tensor, " intervals"]:
        """What the credit of each should add up to."""
        return self.score_high - self.score_low

    def where(self, chosen: Bool[Tensor, " intervals"]) -> "_Intervals":
        """Return some of them."""
        return _Intervals(*(getattr(self, each.name)[chosen] for each in fields(self)))
