"""Batches: rows of model input on the host, read from whatever `fit` takes."""
