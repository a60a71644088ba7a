"""Binds batches to signatures: finds the leaf for each input, casts, encodes, or makes up rows.

In: a `Batch` and a `Signature`, with the formats of its string inputs. Out: `BoundBatch`es, the
arrays of requests by input name, or a `BindingError` that names every mismatch.
"""
