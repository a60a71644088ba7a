"""`keras-warmup run` runs a script as `python` does, and what it exports is warm."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import textwrap

import pytest

import keras_warmup as kw

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = """
    import atexit, pathlib, pickle, sys
    import helper
    import numpy as np
    import keras

    class Mine:
        pass

    if __name__ == "__main__":
        print("arguments", sys.argv[1:], helper.NAME)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(np.ones((8, 3)), np.ones((8, 1)), verbose=0)
        assert pathlib.Path(__file__).parents[1].is_dir()
        if len(sys.argv) > 5:
            atexit.register(lambda: print("pickled", len(pickle.dumps(Mine())) > 0))
        print("returned", model.export(sys.argv[1], verbose=False))
        sys.exit(int(sys.argv[2]))
"""
# What a script sees of itself: its annotations, builtins, and its source after a chdir.
PLAIN_SCRIPT = """
    import dataclasses, inspect, os, sys

    @dataclasses.dataclass
    class Config:
        rate: float = 0.5

    def double(x: int) -> int:
        return 2 * x

    print([field.type for field in dataclasses.fields(Config)], double.__annotations__)
    print(__builtins__.len("ab"), __file__, sys.argv, sys.path[0])
    os.chdir("/")
    print(inspect.getsource(double))
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A directory with a script that trains and exports, and a module that it imports."""
    directory = tmp_path_factory.mktemp("scripts") / "trainer"
    directory.mkdir()
    (directory / "train.py").write_text(textwrap.dedent(SCRIPT))
    (directory / "helper.py").write_text("NAME = 'helper'\n")
    (directory / "plain.py").write_text(textwrap.dedent(PLAIN_SCRIPT))
    package = directory / "package"
    package.mkdir()
    (package / "__main__.py").write_text("import sys, mine\nprint(mine.NAME, sys.argv[1:])\n")
    (package / "mine.py").write_text("NAME = 'mine'\n")
    shutil.make_archive(str(directory / "package"), "zip", package)
    (directory / "fail.py").write_text("import sys\nraise SystemError('mine', sys.argv)\n")
    return directory


def run(*arguments: str, cwd: pathlib.Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "keras_warmup", "run", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("way", ["script", "module"])
def test_a_script_publishes_warm_and_its_exit_code_is_returned(
    way: str, scripts: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / way / "1"
    extra = ["--pickle"]
    if way == "script":
        target, cwd = [str(scripts / "train.py")], tmp_path
    else:
        target, cwd = ["-m", "train"], scripts
    done = run("--batch-size", "5", *target, str(path), "3", "--epochs", "2", *extra, cwd=cwd)
    assert done.returncode == 3, done.stderr
    assert done.stdout.splitlines() == [
        f"arguments {[str(path), '3', '--epochs', '2', *extra]} helper",
        "returned None",
        "pickled True",
    ]
    report = kw.verify(str(path))
    assert report.ok, report.failures
    (log,) = kw.read_records(str(path))
    (tensor,) = log.predict_log.request.inputs.values()
    assert [dim.size for dim in tensor.tensor_shape.dim] == [5, 3]
    assert set(tensor.tensor_content) <= set(b"\x00\x00\x80\x3f")  # the ones it was trained on


@pytest.mark.parametrize(
    "given", [["-h"], ["--", "a"], ["a", "--", "b"], ["--json", "x y"]], ids=" ".join
)
def test_the_arguments_of_the_script_are_its_own(given: list[str], scripts: pathlib.Path) -> None:
    done = run("fail.py", *given, cwd=scripts)
    assert done.stderr.splitlines()[-1] == f"SystemError: ('mine', {['fail.py', *given]})"


@pytest.mark.parametrize("target", ["plain.py", "package", "package.zip"])
def test_a_script_sees_what_it_sees_under_python(target: str, scripts: pathlib.Path) -> None:
    # Options that begin as some of `run` do.
    arguments = [target, "--batch", "3", "--s=1", "-v"]
    python = subprocess.run(
        [sys.executable, *arguments], cwd=scripts, capture_output=True, text=True, check=True
    )
    done = run(*arguments, cwd=scripts)
    assert (done.returncode, done.stdout) == (0, python.stdout), done.stderr


def test_an_exception_of_the_script_is_its_own(scripts: pathlib.Path) -> None:
    done = run("fail.py", "--flag", cwd=scripts)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "SystemError: ('mine', ['fail.py', '--flag'])"
    assert "tensorflow" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["nothing.py"],
            "error: run: no script 'nothing.py'. Options of run come before the script",
        ),
        (["--batch-size", "0", "fail.py"], "error: "),
        ([], "the following arguments are required: SCRIPT"),
    ],
    ids=["no_script", "wrong_option", "no_argument"],
)
def test_wrong_usage_runs_nothing(arguments: list[str], text: str, scripts: pathlib.Path) -> None:
    done = run(*arguments, cwd=scripts)
    assert done.returncode == 2
    assert text in done.stderr
    assert "SystemError" not in done.stderr


def test_help_shows_an_example() -> None:
    done = run("--help", cwd=ROOT)
    assert done.returncode == 0
    assert "keras-warmup run [options] (SCRIPT | -m MODULE) [ARGUMENT ...]" in done.stdout
    assert "keras-warmup run train.py --epochs 10" in done.stdout
