"""Bigram shift (Conneau et al. 2018, "What you can cram into a single vector"): are two neighbouring words swapped?

    python -m tests.benchmarks.bigram_shift --captions CAPTIONS.txt --output FOLDER

Writes train.jsonl (seven tenths) and test.jsonl, with the labels original and swapped.
"""

import argparse
import random
from pathlib import Path

from lit_nlp.files import write_jsonl

_TRAIN_SHARE = 0.704


def main() -> None:
    """Swap words in half of the captions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    draw, rows = random.Random(0), []
    for line in given.captions.read_text("utf-8").splitlines():
        words = line.lower().split()
        places = [i for i in range(len(words) - 2) if words[i] != words[i + 1]]
        swapped = draw.random() < 0.5 and bool(places)
        if swapped:
            i = draw.choice(places)
            words[i : i + 2] = words[i + 1], words[i]
        rows.append({"text": " ".join(words), "label": "swapped" if swapped else "original"})
    draw.shuffle(rows)
    cut = round(_TRAIN_SHARE * len(rows))
    write_jsonl(given.output / "train.jsonl", rows[:cut])
    write_jsonl(given.output / "test.jsonl", rows[cut:])


if __name__ == "__main__":
    main()
