"""What hooks into any Trainer: results, checkpoint writing."""
