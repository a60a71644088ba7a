"""Measures the first requests to a SavedModel, without and with its warmup file.

A SavedModel goes in, and rows to send if there are any; a `BenchmarkReport` or a `MinimizeReport`
comes out. Each figure is taken in a fresh Python process, or on a TensorFlow Serving model server.
"""
