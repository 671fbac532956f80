import torch
from torch import Tensor, nn

from lit_nlp.modules.heads import linear_layers, read_by, weight_and_bias


class Model(nn.Module):
    """A head behind a layer, whose logits may be bent, and may be those of the token of each row that is chosen."""

    def __init__(self, *, bias: bool, bent: bool = False, chosen: list[int] | None = None) -> None:
        super().__init__()
        self.below, self.head = nn.Linear(4, 5), nn.Linear(5, 3, bias=bias)
        self.bent, self.chosen = bent, chosen

    def forward(self, given: Tensor) -> Tensor:
        logits = self.head(self.below(given))
        logits = logits if self.chosen is None else logits[range(len(given)), self.chosen]
        return logits.mul(9).tanh() if self.bent else logits


def test_the_weights_times_what_is_read_are_the_logits() -> None:
    for bias in True, False:
        for chosen, shape in (None, (6, 4)), ([2, 0], (2, 3, 4)):
            model, given = Model(bias=bias, chosen=chosen), torch.randn(shape)
            read = read_by(model.head, lambda model=model, given=given: model(given))
            assert read is not None
            assert read.shape[1] == 5 + bias
            torch.testing.assert_close(read @ weight_and_bias(model.head).T, model(given))
            assert not model.head._forward_hooks


def test_nothing_is_read_where_that_doesnt_make_the_logits() -> None:
    bent, plain, given = Model(bias=True, bent=True), Model(bias=True), torch.randn(6, 4)
    assert read_by(bent.head, lambda: bent(given)) is None
    assert read_by(plain.head, lambda: plain(given) + plain(given)) is None
    assert read_by(bent.head, lambda: plain(given)) is None


def test_linear_layers_are_told_by_their_dotted_names() -> None:
    assert linear_layers(nn.ModuleDict({"model": Model(bias=True)})) == ["model.below", "model.head"]
