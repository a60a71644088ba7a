"""Functions are replaced by layers, and come back as the original objects in any order."""

from __future__ import annotations

import functools
import inspect
import pickle
import threading
from typing import Any

import pytest

from keras_warmup.patches import add_layer, exporting, is_exporting, layered, replaced_value


class Base:
    def greet(self, name: str = "you") -> str:
        return f"hello {name}"


class Child(Base):
    pass


@pytest.fixture
def owner() -> Any:
    class Owner(Base):
        def own(self, value: int) -> int:
            return value + 1

    return Owner


def doubling(call_next: Any, *args: Any, **kwargs: Any) -> Any:
    return call_next(*args, **kwargs) * 2


def adding(call_next: Any, *args: Any, **kwargs: Any) -> Any:
    return call_next(*args, **kwargs) + 10


def test_layers_are_called_from_the_newest_to_the_original(owner: Any) -> None:
    with layered(owner, "own", doubling), layered(owner, "own", adding):
        assert owner().own(1) == (1 + 1) * 2 + 10


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["oldest_first", "newest_first"])
def test_layers_can_be_removed_in_any_order(owner: Any, order: tuple[int, int]) -> None:
    original = vars(owner)["own"]
    removers = [add_layer(owner, "own", doubling), add_layer(owner, "own", adding)]
    removers[order[0]]()
    assert owner().own(1) == ((1 + 1) + 10 if order[0] == 0 else (1 + 1) * 2)
    removers[order[1]]()
    assert vars(owner)["own"] is original


def test_a_layer_added_twice_is_removed_once(owner: Any) -> None:
    remove = add_layer(owner, "own", doubling)
    with layered(owner, "own", doubling):
        remove()
        remove()
        assert owner().own(1) == (1 + 1) * 2
    assert owner().own(1) == 1 + 1


def test_an_inherited_function_is_inherited_again() -> None:
    with layered(Child, "greet", lambda call_next, *args: call_next(*args).upper()):
        assert Child().greet() == "HELLO YOU"
        assert Base().greet() == "hello you"
    assert "greet" not in vars(Child)


def test_a_base_that_a_subclass_puts_in_between_is_called() -> None:
    class Between(Base):
        def greet(self, name: str = "you") -> str:
            return f"well, {super().greet(name)}"

    class Grandchild(Child, Between):
        pass

    with layered(Child, "greet", lambda call_next, *args: call_next(*args).upper()):
        assert Grandchild().greet() == "WELL, HELLO YOU"
        assert Child().greet() == "HELLO YOU"


def test_a_replaced_function_can_be_pickled() -> None:
    with layered(Base, "greet", adding), layered(Child, "greet", adding):
        for function in (Base.greet, Child.greet):
            assert pickle.loads(pickle.dumps(function)) is function
    with layered(functools, "reduce", adding):
        assert pickle.loads(pickle.dumps(functools.reduce)) is functools.reduce


def test_the_signature_stays_that_of_the_function(owner: Any) -> None:
    before = inspect.signature(owner.own)
    seen = []

    def looking(call_next: Any, *args: Any) -> Any:
        seen.append(inspect.signature(call_next))
        return call_next(*args)

    with layered(owner, "own", looking):
        assert inspect.signature(owner.own) == before
        owner().own(1)
    assert seen == [before]


def test_a_function_that_others_put_over_a_layer_stays(owner: Any) -> None:
    remove = add_layer(owner, "own", doubling)
    below = owner.own

    @functools.wraps(below)  # copies the attributes of the dispatcher
    def theirs(self: Any, value: int) -> int:
        return below(self, value) + 100  # type: ignore[no-any-return]

    owner.own = theirs
    remove()
    assert owner.own is theirs
    assert owner().own(1) == 102
    with layered(owner, "own", adding):
        assert owner().own(1) == 112
    assert owner.own is theirs


def test_an_exception_of_the_function_passes_and_the_original_comes_back(owner: Any) -> None:
    original = vars(owner)["own"]
    with pytest.raises(TypeError), layered(owner, "own", doubling):
        owner().own("text")
    assert vars(owner)["own"] is original


def test_many_threads_leave_the_original(owner: Any) -> None:
    original = vars(owner)["own"]
    start, failures = threading.Barrier(8), []

    def work() -> None:
        start.wait()
        for _ in range(200):
            with layered(owner, "own", lambda call_next, *args: call_next(*args)):
                if owner().own(1) != 2:
                    failures.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert vars(owner)["own"] is original


def test_a_value_is_replaced_for_a_while(owner: Any) -> None:
    owner.kept = 1
    with replaced_value(owner, "kept", 2), replaced_value(owner, "greet", None):
        assert (owner.kept, owner.greet) == (2, None)
    assert owner.kept == 1
    assert "greet" not in vars(owner)


def test_exporting_nests_and_is_of_one_thread() -> None:
    seen = []
    with exporting(), exporting():
        thread = threading.Thread(target=lambda: seen.append(is_exporting()))
        thread.start()
        thread.join()
        seen.append(is_exporting())
    assert seen == [False, True]
    assert not is_exporting()
