"""Replaces functions of Keras and TensorFlow for a while: the one place that does.

A function is replaced by a dispatcher, once, however many layers want to see its calls. A layer can
be removed in any order, by any thread. With the last layer the original object comes back; where
somebody else has put a function of their own over the dispatcher meanwhile, that one stays, and the
dispatcher below it calls the original.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

# layer(call_next, *args, **kwargs) -> the result of the call
Layer = Callable[..., Any]

_ABSENT: Any = object()
# Reentrant, because restoring an attribute may run code of the owner's class.
_lock = threading.RLock()
_thread = threading.local()


class _Patch:
    """The dispatcher in place of one function.

    Args:
        owner: the class or module that has the function.
        name: its name there.
    """

    def __init__(self, owner: Any, name: str) -> None:
        self._owner = owner
        self._name = name
        self._own = vars(owner).get(name, _ABSENT)  # a class may inherit the function
        self._layers: tuple[Layer, ...] = ()
        original = getattr(owner, name)
        if self._own is _ABSENT and isinstance(owner, type):
            original = _inherited(owner, name, original)

        @functools.wraps(original)
        def dispatch(*args: Any, **kwargs: Any) -> Any:
            return _call(self._layers, original, args, kwargs)

        # pickle looks a function up by its name, which must lead to this object.
        is_class = isinstance(owner, type)
        dispatch.__module__ = owner.__module__ if is_class else owner.__name__
        dispatch.__qualname__ = f"{owner.__qualname__}.{name}" if is_class else name
        self.dispatch = dispatch
        vars(dispatch)["_keras_warmup_patch"] = self
        setattr(owner, name, dispatch)

    def add(self, layer: Layer) -> None:
        self._layers = (*self._layers, layer)

    def remove(self, layer: Layer) -> None:
        self._layers = tuple(one for one in self._layers if one is not layer)
        if self._layers or vars(self._owner).get(self._name) is not self.dispatch:
            return
        if self._own is _ABSENT:
            delattr(self._owner, self._name)
        else:
            setattr(self._owner, self._name, self._own)


def _inherited(owner: type, name: str, function: Any) -> Any:
    """Returns a function that calls the method that `owner` would inherit for an instance.

    The bases of a subclass may put another one between `owner` and the class it has it from.
    """

    @functools.wraps(function)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(super(owner, self), name)(*args, **kwargs)

    return call


def _call(layers: tuple[Layer, ...], original: Any, args: Any, kwargs: Any) -> Any:
    if not layers:
        return original(*args, **kwargs)

    @functools.wraps(original)  # a layer may ask for its signature
    def call_next(*args: Any, **kwargs: Any) -> Any:
        return _call(layers[:-1], original, args, kwargs)

    return layers[-1](call_next, *args, **kwargs)


def add_layer(owner: Any, name: str, layer: Layer) -> Callable[[], None]:
    """Makes the calls of a function go through a layer.

    Args:
        owner: the class or module that has the function.
        name: its name there.
        layer: `layer(call_next, *args, **kwargs)` is called in its place, and returns the result;
            `call_next` is the layer below, or the original.

    Returns:
        A function that removes the layer.
    """
    layer = functools.partial(layer)  # an object of its own, if the same layer is added twice
    with _lock:
        current = vars(owner).get(name)
        # A wrapper that somebody else made with functools.wraps has the attribute too.
        patch = getattr(current, "_keras_warmup_patch", None)
        if patch is None or patch.dispatch is not current:
            patch = _Patch(owner, name)
        patch.add(layer)

    def remove() -> None:
        with _lock:
            patch.remove(layer)

    return remove


@contextlib.contextmanager
def layered(owner: Any, name: str, layer: Layer) -> Iterator[None]:
    """Makes the calls of a function go through a layer, as `add_layer`, while it is open."""
    remove = add_layer(owner, name, layer)
    try:
        yield
    finally:
        remove()


@contextlib.contextmanager
def replaced_value(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replaces an attribute that is no function; an own or inherited one comes back."""
    own = vars(owner).get(name, _ABSENT)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


@contextlib.contextmanager
def exporting() -> Iterator[None]:
    """Marks that this thread exports: the calls that an export makes are parts of it."""
    depth = getattr(_thread, "depth", 0)
    _thread.depth = depth + 1
    try:
        yield
    finally:
        _thread.depth = depth


def is_exporting() -> bool:
    """Returns whether this thread is inside `exporting`."""
    return bool(getattr(_thread, "depth", 0))
