"""Reads, changes and saves SavedModels.

In: a version directory on disk, or a Keras object to save. Out: its meta graph, its signatures with
their argument structures, and what its graph does (facts, byte formats of string inputs, twin
signatures, unsafe ops). Reading never loads or runs the model.

- `signatures.py`, `argument_structure.py`, `request_kinds.py`: the SignatureDefs.
- `graph.py`, `graph_bodies.py`, `graph_limits.py`, `ops.py`: walks over the graph, and limits.
- `string_inputs.py`, `string_formats.py`, `unsafe_ops.py`, `twins.py`, `function_digests.py`: what
  the walks find.
- `files.py`, `saving.py`, `rewriting.py`: the files of a SavedModel.
"""
