"""Metrics that torchmetrics lacks, or has wrong."""
