"""Does with a SavedModel and its warmup file what TensorFlow Serving does when it loads the model.

In: an export directory, and records as `PredictionLog`s. Out: the outputs and the time of each
record (`replay.py`), or a verdict on the whole file (`verify.py`), in this process or in a worker
process that may crash (`worker.py`).
"""
