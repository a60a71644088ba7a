"""The harness itself: the shim acts at the n-th operation, and incomplete versions are found."""

from __future__ import annotations

import errno
import os
import pathlib
import shutil

import pytest

from tests.trust import reporting, scenarios, shim
from tests.trust.completeness import RECORDS, VARIABLES, IncompleteError, read_version
from tests.trust.faults import share_out, spread
from tests.trust.figures import Figures
from tests.trust.forkserver import ForkServer, Outcome
from tests.trust.judging import leftovers_of


def make_files(directory: str) -> None:
    """Makes three files with twelve operations; runs in a child."""
    for name in ("a", "b", "c"):
        descriptor = os.open(f"{directory}/{name}", os.O_CREAT | os.O_WRONLY)
        os.write(descriptor, b"x")
        os.close(descriptor)
        os.rename(f"{directory}/{name}", f"{directory}/{name}.done")


MAKE = "tests.trust.test_harness:make_files"


def run(
    server: ForkServer, directory: pathlib.Path, arm: shim.Arm, log: pathlib.Path | None = None
) -> Outcome:
    """Makes the files in a child under attack."""
    return server.run(MAKE, {"directory": str(directory)}, arm=arm, root=directory, log=log)


def test_the_shim_counts_and_logs_what_changes_files(
    fork_server: ForkServer, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "d").mkdir()
    outcome = run(fork_server, tmp_path / "d", shim.Arm(), tmp_path / "log")
    assert (outcome.ended, outcome.operations) == ("returned", 12)
    operations = shim.read_log(tmp_path / "log")
    assert [one.name.removesuffix("64") for one in operations] == [
        "open",
        "write",
        "close",
        "rename",
    ] * 3
    assert operations[3].path == f"{tmp_path}/d/a" and operations[3].other == f"{tmp_path}/d/a.done"


def test_the_shim_kills_before_the_operation(
    fork_server: ForkServer, tmp_path: pathlib.Path
) -> None:
    assert run(fork_server, tmp_path, shim.Arm.at(8, shim.KILL)).ended == "killed"
    assert sorted(os.listdir(tmp_path)) == ["a.done", "b"]


def test_the_shim_interrupts(fork_server: ForkServer, tmp_path: pathlib.Path) -> None:
    outcome = run(fork_server, tmp_path, shim.Arm.at(8, shim.INTERRUPT))
    assert (outcome.ended, outcome.error) == ("raised", "KeyboardInterrupt")
    # The signal does not prevent the call that it precedes.
    assert sorted(os.listdir(tmp_path)) == ["a.done", "b.done"]


def test_the_shim_lets_one_operation_fail(fork_server: ForkServer, tmp_path: pathlib.Path) -> None:
    outcome = run(fork_server, tmp_path, shim.Arm.at(4, shim.FAIL, error=errno.EDQUOT))
    assert outcome.error == "OSError" and outcome.message.startswith(f"[Errno {errno.EDQUOT}]")
    assert os.listdir(tmp_path) == ["a"]


def test_the_shim_stops_the_process(fork_server: ForkServer, tmp_path: pathlib.Path) -> None:
    child = fork_server.start(
        MAKE, {"directory": str(tmp_path)}, arm=shim.Arm.at(5, shim.STOP), root=tmp_path
    )
    assert child.wait().ended == "stopped"
    assert os.listdir(tmp_path) == ["a.done"]
    child.kill()


@pytest.fixture(scope="module")
def whole(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A whole version of generation 5."""
    base = tmp_path_factory.mktemp("whole") / "m"
    fork_server.run(
        "tests.trust.scenarios:run", {"name": "new", "base": str(base), "generation": 5}
    )
    assert leftovers_of(base.parent, base) == []
    return base / "1"


def test_a_whole_version_is_read(whole: pathlib.Path) -> None:
    assert read_version(whole).state == (5, 5)
    assert read_version(whole).has_fingerprint


@pytest.mark.parametrize("name", ["saved_model.pb", "fingerprint.pb", RECORDS, *VARIABLES])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.98], ids=["emptied", "halved", "last_bytes_cut"])
def test_a_cut_file_is_found(
    whole: pathlib.Path, tmp_path: pathlib.Path, name: str, keep: float
) -> None:
    shutil.copytree(whole, tmp_path / "1")
    path = tmp_path / "1" / name
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(IncompleteError):
        read_version(tmp_path / "1")


def test_parts_of_two_exports_are_found(
    fork_server: ForkServer, whole: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    fork_server.run(
        "tests.trust.scenarios:run", {"name": "new", "base": str(tmp_path), "generation": 6}
    )
    shutil.copytree(whole / "variables", tmp_path / "1" / "variables", dirs_exist_ok=True)
    (tmp_path / "1" / "fingerprint.pb").unlink()
    assert read_version(tmp_path / "1").state == (5, 6)


def test_entries_outside_of_versions_are_left_over(tmp_path: pathlib.Path) -> None:
    base = tmp_path / "models" / "m"
    for name in ("1/assets", "2/variables", ".1.kw-0123456789abcdef/1", "1/assets.extra"):
        (base / name).mkdir(parents=True)
    (base / "1" / "assets.extra" / ".tf_serving_warmup_requests.0").touch()
    assert leftovers_of(tmp_path, base) == [
        "models/m/.1.kw-0123456789abcdef",
        "models/m/.1.kw-0123456789abcdef/1",
        "models/m/1/assets.extra/.tf_serving_warmup_requests.0",
    ]


def test_points_are_spread() -> None:
    assert spread(5, 99) == [1, 2, 3, 4, 5]
    assert spread(100, 4) == [13, 38, 63, 88]
    small, large = (
        [("small", 1), ("small", 2)],
        [("large", 7), ("large", 19), ("large", 32), ("large", 44)],
    )
    assert share_out({"large": 50, "small": 2}, 6) == [*small, *large]


def test_the_table_is_written_between_its_markers(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(f"before\n{reporting.BEGIN}\nold\n{reporting.END}\nafter\n")
    rows = [
        Figures("b", trials=2, missing=1),
        Figures("a", trials=3, measured={"ms": 1.25}, seconds=4.4),
    ]
    reporting.write_tables(path, ["A machine.", reporting.render_table(rows)])
    assert path.read_text() == (
        f"before\n{reporting.BEGIN}\n\nA machine.\n\n"
        "| attack | trials | half-written | missing | left-overs | raw errors | unexplained "
        "| failed | also measured | seconds |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| a | 3 | 0 | 0 | 0 | 0 | 0 | 0 | ms: 1.25 | 4 |\n"
        "| b | 2 | 0 | 1 | 0 | 0 | 0 | 0 |  | 0 |\n"
        f"\n{reporting.END}\nafter\n"
    )


def test_rows_of_scenarios_encode_generations() -> None:
    rows = scenarios.build_rows(7)
    assert rows.shape == (8, 4) and int(rows.min()) == int(rows.max()) == 7


def test_the_shim_is_not_built_without_a_compiler(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (
        shim.build_shim(pathlib.Path(tmp_path))
        == "there is no C compiler (cc) to build the shim with"
    )
