"""Counts the traces of a training; imports no TensorFlow, which a script may configure first."""

from __future__ import annotations

from typing import Any


def function_traces(model: Any) -> int:
    """Traces of every tf.function that the model's train_function reaches."""
    seen, counts, queue = set(), 0, [model.train_function]
    while queue:
        function = queue.pop()
        if id(function) in seen:
            continue
        seen.add(id(function))
        if hasattr(function, "experimental_get_tracing_count"):
            counts += function.experimental_get_tracing_count()
            queue.append(function.python_function)
        for name in ("__wrapped__", "__func__"):
            if hasattr(function, name):
                queue.append(getattr(function, name))
        for cell in getattr(function, "__closure__", None) or ():
            if callable(cell.cell_contents):
                queue.append(cell.cell_contents)
    return counts
