"""Batches in; losses, metrics and predictions out."""
