"""Exports Keras models with the warmup file that TensorFlow Serving replays when it loads them.

Public names are imported when they are first used: `import keras_warmup` imports neither tensorflow
nor keras.
"""

from __future__ import annotations

import importlib
import random
from types import ModuleType
from typing import TYPE_CHECKING

from keras_warmup._version import __version__ as __version__

if TYPE_CHECKING:
    import keras_warmup.endpoints as endpoints  # noqa: PLR0402
    from keras_warmup.automatic import disable as disable
    from keras_warmup.automatic import enable as enable
    from keras_warmup.bench.benchmark import benchmark as benchmark
    from keras_warmup.bench.model_server import ModelServer as ModelServer
    from keras_warmup.callbacks import BatchCapture as BatchCapture
    from keras_warmup.callbacks import WarmupExport as WarmupExport
    from keras_warmup.data.per_signature import PerSignature as PerSignature
    from keras_warmup.errors import WarmupError as WarmupError
    from keras_warmup.export import add_warmup as add_warmup
    from keras_warmup.export import export_with_warmup as export_with_warmup
    from keras_warmup.export import freeze as freeze
    from keras_warmup.export import redact as redact
    from keras_warmup.export import repair as repair
    from keras_warmup.export import save as save
    from keras_warmup.inspection import inspect as inspect
    from keras_warmup.options import WarmupOptions as WarmupOptions
    from keras_warmup.records.warmup_file import read_records as read_records
    from keras_warmup.verification import verify as verify

_MODULE_OF = {
    "WarmupExport": "callbacks",
    "BatchCapture": "callbacks",
    "ModelServer": "bench.model_server",
    "PerSignature": "data.per_signature",
    "WarmupError": "errors",
    "export_with_warmup": "export",
    "save": "export",
    "freeze": "export",
    "redact": "export",
    "repair": "export",
    "disable": "automatic",
    "enable": "automatic",
    "benchmark": "bench.benchmark",
    "add_warmup": "export",
    "inspect": "inspection",
    "verify": "verification",
    "read_records": "records.warmup_file",
    "WarmupOptions": "options",
}

__all__ = [
    "BatchCapture",
    "ModelServer",
    "PerSignature",
    "WarmupError",
    "WarmupExport",
    "WarmupOptions",
    "__version__",
    "add_warmup",
    "benchmark",
    "disable",
    "enable",
    "endpoints",
    "export_with_warmup",
    "freeze",
    "inspect",
    "read_records",
    "redact",
    "repair",
    "save",
    "verify",
]


def __getattr__(name: str) -> object:
    if name == "endpoints":
        return import_quietly(f"{__name__}.endpoints")
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_quietly(f"{__name__}.{module}"), name)


def import_quietly(name: str) -> ModuleType:
    """Imports a module, and keeps Python's random numbers as they are without it.

    `rich`, which Keras 3 imports, draws some, and tf_keras draws the seeds of its initializers from
    them.
    """
    state = random.getstate()
    try:
        return importlib.import_module(name)
    finally:
        random.setstate(state)


def __dir__() -> list[str]:
    return sorted(__all__)
