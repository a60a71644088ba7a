"""Tests of `keras_warmup.options`: one error names all options that are wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from keras_warmup.errors import OptionsError
from keras_warmup.options import WarmupOptions, as_options


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"signatures": 5}, "signatures must be a sequence of signature keys, got 5"),
        ({"signatures": "serve"}, "signatures must be a sequence of signature keys, got 'serve'"),
        ({"signatures": []}, "signatures must not be empty; leave it out for the default"),
        ({"signatures": [[1]]}, "signatures must hold signature keys (str), got ([1],)"),
        (
            {"batch_sizes": 1.5},
            'batch_sizes must be "auto" or a sequence of integers >= 1, got 1.5',
        ),
        (
            {"batch_sizes": "all"},
            """batch_sizes must be "auto" or a sequence of integers >= 1, got 'all'""",
        ),
        ({"signatures": "auto"}, "signatures must be a sequence of signature keys, got 'auto'"),
        ({"batch_sizes": [0]}, "batch_sizes must hold integers >= 1, got [0]"),
        ({"batch_sizes": [True]}, "batch_sizes must hold integers >= 1, got [True]"),
        (
            {"kinds": ["prediction"]},
            "kinds must be among 'predict', 'classify', 'regress', 'multi_inference', got "
            "['prediction']",
        ),
        (
            {"output_filters": 5},
            "output_filters must hold lists of output aliases, such as [['scores']], got 5",
        ),
        (
            {"output_filters": ["a"]},
            "output_filters must hold lists of output aliases, such as [['scores']], got ['a']",
        ),
        (
            {"output_filters": [[]]},
            "output_filters must hold non-empty lists of output aliases, got []",
        ),
        (
            {"output_filters": [["a", "a"]]},
            "output_filters must not name an output twice, got ['a', 'a']",
        ),
        ({"xla": "false"}, "xla must be True or False, got 'false'"),
        ({"whole_batches": 1}, "whole_batches must be True or False, got 1"),
        ({"freeze": 1}, "freeze must be True or False, got 1"),
        ({"freeze_max_bytes": 2**20}, "freeze_max_bytes needs freeze=True"),
        (
            {"freeze": True, "freeze_max_bytes": 2**31},
            "freeze_max_bytes must be 1 to 2147483647 (a SavedModel proto ends at 2 GiB), got "
            "2147483648",
        ),
        ({"verify": None}, "verify must be True or False, got None"),
        (
            {"max_records": 1001},
            "max_records must be 1 to 1000 (TensorFlow Serving refuses more), got 1001",
        ),
        ({"max_bytes": 0}, "max_bytes must be a positive integer, got 0"),
        (
            {"max_load_seconds": float("nan")},
            "max_load_seconds must be a number of seconds > 0, got nan",
        ),
        (
            {"max_load_seconds": 1, "verify": False},
            "max_load_seconds=1 needs the replay that verify=False leaves out",
        ),
        ({"max_load_seconds": -1}, "max_load_seconds must be a number of seconds > 0, got -1"),
        ({"seed": -1}, "seed must be an integer >= 0, got -1"),
        ({"on_no_data": "fail"}, "on_no_data must be 'synthesize' or 'error', got 'fail'"),
        ({"model_name": ""}, "model_name must be a non-empty str, got ''"),
        ({"transform": 1}, "transform must be callable, got int"),
        ({"batching_parameters": 1}, "batching_parameters must be a path, got int"),
    ],
)
def test_a_bad_option_is_named_with_what_it_must_be(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(OptionsError) as error:
        WarmupOptions(**options)
    assert str(error.value) == f"Bad warmup options: {problem}."


def test_one_error_names_all_bad_options() -> None:
    with pytest.raises(OptionsError, match=r"seed must .*; on_no_data must"):
        WarmupOptions(seed=-1, on_no_data="fail")


def test_iterators_are_read_once_and_numpy_integers_become_plain() -> None:
    options = WarmupOptions(
        signatures=iter(["a", "b"]),
        batch_sizes=np.array([1, 2]),
        output_filters=iter([iter(["x"])]),
    )
    assert (options.signatures, options.batch_sizes, options.output_filters) == (
        ("a", "b"),
        (1, 2),
        (("x",),),
    )
    assert all(type(size) is int for size in options.batch_sizes)


def test_options_are_keyword_only() -> None:
    with pytest.raises(OptionsError) as error:
        WarmupOptions(1)
    assert str(error.value) == "WarmupOptions takes keyword arguments only, got (1,)."


def test_an_unknown_option_is_refused_with_the_nearest_and_all_known_ones() -> None:
    with pytest.raises(OptionsError) as error:
        WarmupOptions(batch_size=[1])
    assert str(error.value) == (
        "Unknown warmup option 'batch_size'. Did you mean 'batch_sizes'? Known options: "
        "signatures, batch_sizes, output_filters, kinds, freeze, freeze_max_bytes, whole_batches, "
        "transform, xla, batching_parameters, share_twin_signatures, max_load_seconds, privacy, "
        "redact, max_records, max_bytes, method_name, model_name, seed, verify, on_no_data."
    )


def test_warmup_takes_options_a_mapping_of_them_or_none() -> None:
    assert as_options({"seed": 3}) == WarmupOptions(seed=3)
    assert as_options(None) == WarmupOptions()
    keyed_by_number: Any = {1: 2}
    with pytest.raises(OptionsError, match="Unknown warmup option '1'"):
        as_options(keyed_by_number)
    with pytest.raises(OptionsError) as error:
        as_options(3)
    assert str(error.value) == (
        "warmup must be a WarmupOptions, a mapping of its options or None, got int."
    )
