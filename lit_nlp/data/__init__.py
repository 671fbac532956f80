"""Text in, padded batches out."""
