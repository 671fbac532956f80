import pytest
import torch

from lit_nlp.explain.path import FIRST_POINTS, Lines


def lines(score, *, texts: int = 1, rows: int = 64, seen: list[int] | None = None) -> Lines:
    """Ways from 0 to a text's own numbers, in one place of two elements."""

    def counted(given: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if seen is not None and given.requires_grad:
            seen.append(len(given))
        return weight * score(given)

    end = torch.arange(1.0, 2 * texts + 1, dtype=torch.double).view(texts, 1, 2)
    weight = torch.arange(1.0, texts + 1, dtype=torch.double)
    return Lines(counted, (torch.zeros_like(end),), (end,), (weight,), rows)


def integrated(way: Lines, **limits) -> torch.Tensor:
    (credit,), change = way.integrated(**{"tolerance": 0.01, "max_points": 512} | limits)
    with torch.no_grad():
        begin, end = (way.score(*side, *way.fixed).double() for side in (way.begin, way.end))
    torch.testing.assert_close(change, end - begin)
    return credit[:, 0].double()


def test_a_polynomial_is_integrated_exactly_with_the_first_points():
    seen: list[int] = []
    found = integrated(lines(lambda x: x[:, 0].prod(1) ** 2 + 3 * x[:, 0].sum(1), texts=3, seen=seen))
    end, weight = torch.tensor([[1.0, 2], [3, 4], [5, 6]]).double(), torch.tensor([1.0, 2, 3]).double()
    torch.testing.assert_close(found, weight * (end.prod(1) ** 2 + 3 * end.sum(1)), rtol=1e-6, atol=1e-5)
    assert sum(seen) == 3 * FIRST_POINTS


def bump(x: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(200 * (x[:, 0].sum(1) - 1))  # a step at a third of the way of the first text


@pytest.mark.parametrize("tolerance", [0.1, 0.01, 0.001])
def test_a_steep_step_takes_more_points_where_it_is_until_it_adds_up(tolerance: float):
    seen: list[int] = []
    found = integrated(lines(bump, seen=seen), tolerance=tolerance)
    assert found.item() == pytest.approx(1, abs=tolerance)
    assert FIRST_POINTS < sum(seen) < 120  # evenly spread points would have to be some 200 for the step alone


@pytest.mark.parametrize("tolerance", [0.1, 0.01, 0.001])
def test_errors_of_intervals_that_cancel_out_are_not_left_in_places(tolerance: float):
    def score(x: torch.Tensor) -> torch.Tensor:
        up, down, evenly = x[:, :, 0].unbind(1)  # evenly spread points see as much too little of one as of the other
        return torch.sigmoid(100 * (up - 0.3)) - torch.sigmoid(100 * (down - 0.7)) + 0.5 * evenly

    end = torch.ones(1, 3, 1, dtype=torch.double)
    way = Lines(score, (torch.zeros_like(end),), (end,), (), rows=64)
    (credit,), change = way.integrated(tolerance=tolerance, max_points=512)
    assert abs(credit.sum() - change) <= 1.001 * tolerance * change
    assert credit[0].tolist() == pytest.approx([1, -1, 0.5], abs=5 * tolerance * float(change))


def test_a_jump_is_looked_into_no_further_than_numbers_go():
    def score(x: torch.Tensor) -> torch.Tensor:
        return (x[:, 0, 0] > 0.3).to(x) + 0.5 * x[:, 0, 0]

    end = torch.ones(1, 1, 1)
    (credit,), change = Lines(score, (0 * end,), (end,), (), rows=64).integrated(tolerance=0.01, max_points=512)
    assert change.item() == 1.5
    assert credit.item() == pytest.approx(0.5)  # no gradient tells of the jump, and so the credit doesn't add up


def test_half_precision_is_added_up_in_float32():
    end = torch.full((1, 1, 2), 300.0, dtype=torch.half)
    way = Lines(lambda x: x[:, 0].float().square().sum(1), (0 * end,), (end,), (), rows=64)
    (credit,), change = way.integrated(tolerance=0.01, max_points=512)
    assert change.item() == 180000
    assert credit.item() == pytest.approx(180000, rel=0.01)


@pytest.mark.parametrize(("dtype", "points"), [(torch.bfloat16, 64), (torch.float32, 50)])
def test_what_is_lost_in_rounding_is_not_looked_for(dtype: torch.dtype, points: int):
    seen: list[int] = []
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 32, generator=generator).bfloat16()

    def score(x: torch.Tensor) -> torch.Tensor:
        if x.requires_grad:
            seen.append(len(x))
        return 3 + torch.tanh(4 * torch.tanh(x @ weight.to(x)).sum(2)).sum(1)

    end = torch.randn(1, 6, 16, generator=generator).to(dtype)
    (credit,), _ = Lines(score, (0 * end,), (end,), (), rows=64).integrated(tolerance=0.01, max_points=512)
    assert sum(seen) < points
    exact = end.double()
    (expected,), _ = Lines(score, (0 * exact,), (exact,), (), rows=64).integrated(tolerance=1e-4, max_points=512)
    torch.testing.assert_close(credit.double(), expected.double(), rtol=0, atol=0.1)


def test_what_is_not_a_number_is_told_and_looked_at_no_more():
    seen: list[int] = []
    found = integrated(lines(lambda x: x[:, 0].sum(1).log(), seen=seen))  # minus infinity where the way begins
    assert found.isnan().all()
    assert sum(seen) == FIRST_POINTS


def test_points_come_to_an_end():
    seen: list[int] = []
    integrated(lines(bump, seen=seen), tolerance=1e-9, max_points=40)
    assert sum(seen) == 40


def test_no_more_rows_are_scored_at_once_than_there_is_room_for_and_texts_do_not_meet():
    seen: list[int] = []
    together = integrated(lines(bump, texts=4, rows=5, seen=seen))
    assert max(seen) <= 5
    alone = integrated(lines(bump, rows=64))
    assert together[0].item() == pytest.approx(alone.item(), abs=1e-6)
