"""Warms a SavedModel: binds rows to its signatures, plans, drafts, replays and proves the records.

In comes a SavedModel directory and rows, out goes its warmup file and a `WarmupReport`. What must
be known of a Keras model (its inputs, its own call) is here too.
"""
