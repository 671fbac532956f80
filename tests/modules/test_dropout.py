import pytest
import torch
from torch import nn

from lit_nlp.modules.dropout import cheap_dropout, cheapen_dropout, restore_dropout


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_numbers_are_dropped_as_often_as_asked_and_scaled_by_what_is_left(probability: float) -> None:
    torch.manual_seed(0)
    count = 200_000
    left = cheap_dropout(torch.ones(count, dtype=torch.float64), probability)
    share = round(probability * 65536) / 65536
    assert set(left.tolist()) == {0.0, 1 / (1 - share)}
    # Five standard deviations of a binomial share.
    assert abs((left == 0).double().mean() - probability) < 5 * (probability * (1 - probability) / count) ** 0.5


def test_neighbours_are_dropped_independently() -> None:
    torch.manual_seed(0)
    dropped = (cheap_dropout(torch.ones(400_000), 0.3) == 0).double()
    for apart in range(1, 9):
        both = (dropped[apart:] * dropped[:-apart]).mean()
        assert abs(both - 0.09) < 5 * (0.09 * 0.91 / len(dropped)) ** 0.5


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5,), (2, 3, 5), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_any_shape_and_type_keeps_it(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    left = cheap_dropout(torch.ones(shape, dtype=dtype), 0.5)
    assert left.shape == shape
    assert left.dtype == dtype
    assert set(left.flatten().tolist()) <= {0.0, 2.0}


def test_what_lies_across_memory_is_dropped_as_well() -> None:
    numbers = torch.arange(1.0, 13.0).view(3, 4).t()
    left = cheap_dropout(numbers, 0.5)
    assert torch.equal(left[left != 0], 2 * numbers[left != 0])


def test_the_gradient_passes_what_was_kept() -> None:
    numbers = torch.randn(1000, requires_grad=True)
    left = cheap_dropout(numbers, 0.25)
    left.sum().backward()
    assert torch.equal(numbers.grad, (left != 0) * (65536 / 49152))


@pytest.mark.parametrize(("probability", "left"), [(0.0, 1.0), (1.0, 0.0), (1e-6, 1.0)])
def test_all_or_nothing_is_dropped_as_torch_does(probability: float, left: float) -> None:
    assert cheap_dropout(torch.ones(100), probability).sum().item() == pytest.approx(100 * left, rel=0.02)


def test_the_same_seed_drops_the_same() -> None:
    torch.manual_seed(3)
    first = cheap_dropout(torch.ones(100), 0.5)
    second = cheap_dropout(torch.ones(100), 0.5)
    torch.manual_seed(3)
    assert torch.equal(cheap_dropout(torch.ones(100), 0.5), first)
    assert not torch.equal(first, second)


def test_a_models_dropouts_are_replaced_and_given_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.5), nn.AlphaDropout(0.5)))
    ones = torch.ones(1000)
    torch.manual_seed(0)
    expected = cheap_dropout(ones, 0.5)
    cheapen_dropout(model)
    part, other = model[1]
    torch.manual_seed(0)
    assert torch.equal(part(ones), expected)
    assert torch.equal(part.eval()(ones), ones)
    assert isinstance(part, nn.Dropout)
    restore_dropout(model)
    assert (type(part), type(other)) == (nn.Dropout, nn.AlphaDropout)


def test_the_least_share_that_is_kept_is_kept() -> None:
    torch.manual_seed(0)
    kept = cheap_dropout(torch.ones(2**20), 1 - 2**-16).count_nonzero()
    # 16 on average.
    assert 4 <= kept <= 36
