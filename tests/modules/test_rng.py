import random
from pathlib import Path

import numpy as np
import torch

from lit_nlp.modules.rng import rng_state, set_rng_state


def draw() -> tuple[float, float, float, float, list[float]]:
    # Both generators of normal numbers keep one in hand: that is part of their state.
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(5).tolist()


def test_every_generator_goes_on_where_it_was_also_after_a_file(tmp_path: Path) -> None:
    draw()
    torch.save(rng_state(), tmp_path / "state")
    expected = draw()
    draw()
    set_rng_state(torch.load(tmp_path / "state", weights_only=True))
    assert draw() == expected
