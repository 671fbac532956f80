"""Where a resumed run goes on: Lightning 2.6 loses the rest of an epoch, or counts one twice."""

from typing import Any


def count_epochs_rightly(checkpoint: dict[str, Any], *, by_steps: bool) -> None:
    """Mend what a checkpoint from the end of a training epoch tells Lightning's loops, before they read it.

    They take an epoch that was cut short, as by `max_steps` or `max_time`, for done, and leave its rest out. Where the
    resumed run has `max_steps`, they end a whole one again, without a batch, and count it twice: every later epoch is
    then shuffled otherwise (https://github.com/Lightning-AI/pytorch-lightning/issues/19617).

    Args:
        checkpoint: Lightning's; changed in place.
        by_steps: Whether the resumed run has `max_steps`.
    """
    loop = checkpoint["loops"]["fit_loop"]
    epochs, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    if epochs["total"]["processed"] < epochs["total"]["ready"]:
        return  # from within an epoch
    if not batches["is_last_batch"]:
        for counts in epochs.values():
            counts["processed"] = counts["completed"] = counts["ready"] - 1
    elif by_steps:
        for counts in epochs.values():
            counts["completed"] = counts["processed"]
        batches["is_last_batch"] = False
        batches["current"] = dict.fromkeys(batches["current"], 0)
