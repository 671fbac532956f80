"""The command `lit-nlp`: what must be answered before anything heavy is imported."""

import os
import sys
from importlib.metadata import PackageNotFoundError, distribution

USAGE = """\
usage: lit-nlp VERB --config FILE [--config OVERLAY …] [--model.ARGUMENT VALUE] [--data.ARGUMENT VALUE] …

Fine-tune a pretrained transformer, test it, and see why it decides as it does.

verbs:
  fit        fine-tune a backbone; writes checkpoints/NAME/
  validate   measure a checkpoint on the validation data
  test       measure a checkpoint on the test data; lists its wrong predictions
  predict    label texts with a checkpoint
  explain    show which words decided; writes reports/NAME/index.html

  lit-nlp VERB --help                                   all options of a verb
  lit-nlp VERB --config FILE --print_config             the whole configuration
  lit-nlp fit --model.help lit_nlp.SentimentModule      the arguments of a class
  lit-nlp --version
"""

CLASH = (
    "lit-nlp: Google's Learning Interpretability Tool (distribution lit-nlp) is installed in this environment and"
    " shares the import name lit_nlp with lightning-nlp; install the two in separate environments"
)


def main(args: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 2 for a mistake in what was given, 130 for Ctrl-C."""
    args = sys.argv[1:] if args is None else args
    if _installed("lit-nlp"):
        print(CLASH, file=sys.stderr)
        return 2
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if args else 2
    if args[0] == "--version":
        from lit_nlp import __version__

        print(f"lightning-nlp {__version__}")
        return 0
    # Large tensors on huge pages, where a step fills new memory far faster; torch looks for it when it is imported.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        from lit_nlp.cli import run

        return run(args)
    except KeyboardInterrupt:
        print("lit-nlp: interrupted", file=sys.stderr)
        return 130


def _installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
