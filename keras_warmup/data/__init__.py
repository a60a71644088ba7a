"""Reads batches of model input to the host, from whatever `fit` takes.

In: arrays, DataFrames, datasets, loaders, generators or data files. Out: `Batch`es of rows, of
which `sampling.py` keeps an even, seeded sample.
"""
