"""Builds, writes and reads the warmup file of a SavedModel.

In: planned requests (rows bound to a signature), or the path of a warmup file. Out: the records of
the file as serialized or parsed `PredictionLog`s, and problems that keep it from being read.
"""
