"""`enable()`: in unchanged code, `fit` samples batches, exports and saves publish with warmup."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import wrapt

from keras_warmup import import_quietly
from keras_warmup.errors import WarmupError, warn_caller_or_print
from keras_warmup.options import WarmupOptions, as_options
from keras_warmup.patches import Layer, add_layer, exporting, is_exporting

if TYPE_CHECKING:
    from keras_warmup.pipeline.export_model import ExportRequest

# The owner of a function, its name there, and the layer to put over it.
_Patch = tuple[Any, str, Layer]

_lock = threading.RLock()
_thread = threading.local()
_active: list[Enabled] = []
# Name of a module -> functions that remove the layers over what it has.
_installed: dict[str, list[Callable[[], None]]] = {}
# Modules whose import is waited for.
_awaited: set[str] = set()


class Enabled:
    """What `enable` returns: in `with`, it ends at the end of the block.

    Attributes:
        options: how to warm.
    """

    def __init__(self, options: WarmupOptions) -> None:
        self.options = options

    def __enter__(self) -> Enabled:
        return self

    def __exit__(self, *_: object) -> None:
        _end(self)


def enable(warmup: WarmupOptions | Mapping[str, Any] | None = None) -> Enabled:
    """Makes unchanged code sample batches in `fit` and export with warmup, until `disable`.

    - `Model.fit` remembers some of its batches, as with `BatchCapture`.
    - `Model.export`, `ExportArchive.write_out`, `tf.saved_model.save`, and the `Model.save` of
      tf_keras that writes a SavedModel, publish with a warmup file: as `export_with_warmup` and
      `save` do, each weight is stored once, the records are replayed, and the directory appears at
      once. A path that exists is written in place.

    Training is bit-identical, and the functions return and raise what they do otherwise. Where only
    the warmup fails, the model is published without a warmup file, where anything else of it fails,
    the function is called as if this were not here; a `UserWarning` gives the reason. Only the
    outermost call acts. Other formats, and what the functions and callbacks of this package do
    themselves, are not changed, nor anything with a backend other than TensorFlow and JAX.

    Modules may be imported later. Further calls change the options.

    Args:
        warmup: `WarmupOptions`, or a mapping of its fields.

    Returns:
        A context manager, so that `with keras_warmup.enable():` restores what was there before.

    Raises:
        OptionsError: an option is unknown or wrong, or asks for less privacy than the environment
            allows.

    Example:
    ```python
    keras_warmup.enable()
    model.fit(x, y)
    model.export("./digits/1")  # with a warmup file that holds rows of x
    ```
    """
    enabled = Enabled(as_options(warmup))
    enabled.options.effective_privacy()
    for name in _PATCHES_OF:
        if sys.modules.get(name) is not None:
            with contextlib.suppress(Exception):
                importlib.import_module(name)  # waits for another thread that imports it
    with _lock:
        _active.append(enabled)
        for name in _PATCHES_OF.keys() - _awaited:
            _awaited.add(name)
            # Calls it now where the module is imported.
            wrapt.register_post_import_hook(_install, name)
        for name in _PATCHES_OF:
            if sys.modules.get(name) is not None:
                _install(sys.modules[name])
    return enabled


def disable() -> None:
    """Ends what `enable` began, however often it was called: the functions are the original ones.

    A function that another library has put over one of ours stays, and calls the original.
    """
    _end(*_active)


def _end(*ended: Enabled) -> None:
    with _lock:
        _active[:] = [one for one in _active if one not in ended]
        if not _active:
            for remove in [one for removers in _installed.values() for one in removers]:
                remove()
            _installed.clear()


def _install(module: Any) -> None:
    name = module.__name__
    with _lock:
        if not _active or name in _installed:
            return
        _installed[name] = removers = []
        try:
            for patch in _PATCHES_OF[name](module):
                removers.append(add_layer(*patch))
        except Exception as error:  # an import must not fail because of us
            if not removers:
                del _installed[name]  # the next `enable` tries again
            warn_caller_or_print(
                f"keras_warmup cannot act on {name}. {type(error).__name__}: {error}"
            )


def _patches_of_tensorflow(tensorflow: Any) -> Iterator[_Patch]:
    # `import tensorflow.saved_model`, which Keras does in an export, makes a second module and puts
    # it in place of the first.
    first, second = tensorflow.saved_model, importlib.import_module("tensorflow.saved_model")
    for module in [first] if first is second else [first, second]:
        yield module, "save", _publishing(_plan_save)


def _patches_of_keras(keras: Any) -> Iterator[_Patch]:
    backend = keras.config.backend()
    if backend not in ("tensorflow", "jax"):
        return  # no server runs its exports
    yield keras.Model, "fit", _fit
    yield keras.Model, "export", _publishing(_plan_export)
    if backend == "tensorflow":
        yield type(keras.export.ExportArchive()), "write_out", _publishing(_plan_write_out)
    # The class of JAX would import JAX' export now; it calls tf.saved_model.save.


def _patches_of_tf_keras(tf_keras: Any) -> Iterator[_Patch]:
    yield tf_keras.Model, "fit", _fit
    yield tf_keras.Model, "export", _publishing(_plan_export)
    # Model.save and models.save_model both end there.
    legacy = importlib.import_module("tf_keras.src.saving.legacy.save")
    yield legacy, "save_model", _publishing(_plan_legacy_save)
    yield tf_keras.export.ExportArchive, "write_out", _publishing(_plan_write_out)


_PATCHES_OF: dict[str, Callable[[Any], Iterator[_Patch]]] = {
    "tensorflow": _patches_of_tensorflow,
    "keras": _patches_of_keras,
    "tf_keras": _patches_of_tf_keras,
}


def _options() -> WarmupOptions | None:
    """Returns how to warm; `None` where a call is not to be changed."""
    with _lock:
        return None if is_exporting() or not _active else _active[-1].options


def _fit(fit: Any, *args: Any, **kwargs: Any) -> Any:
    options = _options()
    model = args[0] if args else None
    if options is None or _is_fitting(model):
        return fit(*args, **kwargs)
    try:
        import_quietly("keras_warmup.callbacks")
        args, kwargs = _with_sampling(fit, args, kwargs, options)
    except Exception as error:  # a training never ends because of us
        warn_caller_or_print(
            f"This fit is not sampled for warmup records. {type(error).__name__}: {error}"
        )
    before = _fitting()
    _thread.fitting = [*before, model]
    try:
        return fit(*args, **kwargs)
    finally:
        _thread.fitting = before


def _fitting() -> list[Any]:
    """Returns the models whose `fit` runs in this thread."""
    return getattr(_thread, "fitting", [])


def _is_fitting(model: Any) -> bool:
    return any(one is model for one in _fitting())


def _with_sampling(
    fit: Any, args: tuple[Any, ...], kwargs: dict[str, Any], options: WarmupOptions
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the arguments of `fit` with one callback more, unless one samples already."""
    from keras_warmup.callbacks import samples_batches, sampling_callback

    try:
        bound = inspect.signature(fit).bind(*args, **kwargs)
    except TypeError:  # fit says what is wrong
        return args, kwargs
    given = bound.arguments.get("callbacks")
    if hasattr(given, "callbacks"):
        raise WarmupError("callbacks= is a CallbackList; a list of callbacks could be added to.")
    callbacks = list(given) if isinstance(given, (list, tuple)) else [given] if given else []
    if not any(map(samples_batches, callbacks)):
        bound.arguments["callbacks"] = [*callbacks, sampling_callback(options)]
    return bound.args, bound.kwargs


class _Call:
    """One call of a function, with its arguments by name.

    Args:
        function: the function below the layer.
        args: positional arguments.
        kwargs: keyword arguments.

    Raises:
        TypeError: the function does not take them.
    """

    def __init__(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.function = function
        self._bound = inspect.signature(function).bind(*args, **kwargs)
        names = self._bound.arguments.keys()
        self._path_name = "export_dir" if "export_dir" in names else "filepath"
        path = os.fsdecode(os.fspath(self._bound.arguments[self._path_name]))
        # To TensorFlow and Keras, unlike `as_path`, these are names.
        is_name = path.startswith("~") or (path.startswith("file:") and "://" not in path)
        self.path = f"./{path}" if is_name else path
        self._has_written = False

    def get(self, name: str) -> Any:
        """Returns an argument; `None` where it is not given."""
        arguments = self._bound.arguments
        return arguments.get(name, arguments.get("kwargs", {}).get(name))

    def write_to(self, directory: str, function: Any = None) -> None:
        """Calls the function, or one of its signature, with another path."""
        path = _ShownPath(directory)
        path.shown = str(self.path)
        arguments: Any = {**self._bound.arguments, self._path_name: path}
        bound = inspect.BoundArguments(self._bound.signature, arguments)
        (function or self.function)(*bound.args, **bound.kwargs)
        self._has_written = True

    def write_as_asked(self) -> Any:
        """Calls the function with its own path; without what it prints if that was printed."""
        arguments: Any = dict(self._bound.arguments)
        if self._has_written and "verbose" in self._bound.signature.parameters:
            arguments["verbose"] = False
        bound = inspect.BoundArguments(self._bound.signature, arguments)
        return self.function(*bound.args, **bound.kwargs)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """How to publish what a call writes.

    Attributes:
        path: where the call writes.
        publish: publishes it, with its warmup file.
        model: the Keras model whose call it serves, as far as is known.
        own_calls: as `ExportInputs.own_calls`.
        trained: the model whose rows are sent, where that is not `model`.
        member: a model that is part of what is saved, where that is not `model`: it tells which
            workers save it.
    """

    path: str
    publish: Callable[[ExportRequest], Any]
    model: Any
    own_calls: frozenset[str] = frozenset()
    trained: Any = None
    member: Any = None


def _publishing(plan_of: Callable[[_Call], _Plan | None]) -> Layer:
    """Returns a layer that publishes what a function writes, with its warmup file.

    Args:
        plan_of: returns how to publish; `None` where the call writes no SavedModel to serve.
    """

    def layer(call_next: Any, *args: Any, **kwargs: Any) -> Any:
        options = _options()
        if options is None:
            return call_next(*args, **kwargs)
        try:
            import_quietly("keras_warmup.callbacks")
        except Exception as error:  # no Keras, which a script of TensorFlow does not need
            warn_caller_or_print(
                f"An export is written without a warmup file. {type(error).__name__}: {error}"
            )
            return call_next(*args, **kwargs)
        plan = None
        with contextlib.suppress(Exception):  # the function says what is wrong with its arguments
            call = _Call(call_next, args, kwargs)
            plan = plan_of(call)
        if plan is not None:
            return _run(plan, options, call.write_as_asked)
        with exporting():  # what it calls are parts of it
            return call_next(*args, **kwargs)

    return layer


def _run(plan: _Plan, options: WarmupOptions, write: Callable[[], Any]) -> Any:
    """Publishes what a call writes; whatever fails, the call writes it itself."""
    from keras_warmup.pipeline import export_model
    from keras_warmup.training.strategy import has_several_workers, is_chief

    def write_as_asked() -> Any:
        with exporting():  # what it calls are parts of it
            return write()

    member = plan.member if plan.model is None else plan.model
    if not is_chief(member):
        return write_as_asked()  # only the chief publishes
    request = export_model.ExportRequest(
        plan.path, None, options, allow_cold=True, warn=warn_caller_or_print
    )
    # A path that exists may hold files of others, and all workers write a model together once.
    if not _is_new(plan.path) or has_several_workers(member):
        result = write_as_asked()
        try:
            if not export_model.keeps_other_warmup_file(plan.path):
                export_model.warm_written(request, plan.model, plan.own_calls, plan.trained)
        except Exception as error:
            _warn_of_cold(plan.path, error)
        return result
    try:
        plan.publish(request)
    except Exception as error:
        result = write_as_asked()  # or raises an error of its own
        _warn_of_cold(plan.path, error)
        return result
    # The line of tf.saved_model.save, which named a directory that is no longer there.
    import tensorflow as tf

    tf.get_logger().info("Assets written to: %s", os.path.join(plan.path, "assets"))
    return None  # as all of these functions


def _is_new(path: str) -> bool:
    """Returns whether a path is free, and means itself: `{version}` is a template to us only."""
    import tensorflow as tf

    return "{" not in path and not tf.io.gfile.exists(path) and not os.path.islink(path)


def _warn_of_cold(path: str, error: Exception) -> None:
    from keras_warmup.pipeline.export_model import describe_failure

    warn_caller_or_print(
        f"{path!r} was written COLD, as without keras_warmup.enable(). {describe_failure(error)}"
    )


class _ShownPath(str):
    """A path to write to that messages show as the path it will get."""

    shown: str

    def __format__(self, spec: str) -> str:
        return format(self.shown, spec)


def _plan_export(call: _Call) -> _Plan | None:
    from keras_warmup.pipeline.export_model import OWN_ENDPOINTS, publish_model

    model = call.get("self")
    if (call.get("format") or "tf_saved_model") != "tf_saved_model":
        return None

    # The signature stays the one that its clients know.
    def write(model: Any, directory: str, input_signature: Any) -> None:
        call.write_to(directory)

    def publish(request: ExportRequest) -> None:
        publish_model(model, request, write=write)

    return _Plan(call.path, publish, model, OWN_ENDPOINTS)


def _plan_write_out(call: _Call) -> _Plan:
    from keras_warmup.keras_api import is_model
    from keras_warmup.pipeline.export_model import publish_written, trained_of
    from keras_warmup.savedmodel.saving import write_archive_once

    models = [one for one in getattr(call.get("self"), "_tracked", ()) if is_model(one)]
    model = trained_of(models) or next(iter(models), None)

    def write(directory: str) -> None:
        # This layer is below the one that does so.
        call.write_to(directory, functools.partial(write_archive_once, call.function))

    def publish(request: ExportRequest) -> None:
        publish_written(model, request, write)

    return _Plan(call.path, publish, model)


def _plan_save(call: _Call) -> _Plan:
    from keras_warmup.keras_api import is_model, models_in
    from keras_warmup.pipeline.export_model import OWN_SAVE, publish_object, trained_of

    obj, signatures = call.get("obj"), call.get("signatures")

    def publish(request: ExportRequest) -> None:
        publish_object(obj, request, signatures, call.get("options"), save=call.write_to)

    if not is_model(obj):
        models = models_in(obj)
        return _Plan(
            call.path,
            publish,
            None,
            trained=trained_of(models),
            member=next(iter(models), None),
        )
    return _Plan(call.path, publish, obj, OWN_SAVE if signatures is None else frozenset())


def _plan_legacy_save(call: _Call) -> _Plan | None:
    from keras_warmup.pipeline.export_model import OWN_SAVE, publish_written

    model = call.get("model")
    is_other_format = (call.get("save_format") or "tf") != "tf" or call.path.endswith(
        (".keras", ".h5", ".hdf5")
    )
    # A checkpoint in fit is not served; where a path may not be replaced, Keras asks.
    if is_other_format or _is_fitting(model) or call.get("overwrite") is False:
        return None
    own_calls = OWN_SAVE if call.get("signatures") is None else frozenset()

    def publish(request: ExportRequest) -> None:
        publish_written(model, request, call.write_to, own_calls)

    return _Plan(call.path, publish, model, own_calls)
