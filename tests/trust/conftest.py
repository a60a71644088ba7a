"""Fixtures of the attacks: the fork server, and directories for trials."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from tests.trust.faults import Trials
from tests.trust.forkserver import ForkServer
from tests.trust.shim import build_shim


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Process that forks the children under attack."""
    scratch = tmp_path_factory.mktemp("forkserver")
    library = build_shim(scratch)
    if isinstance(library, str):
        pytest.skip(library)
    server = ForkServer(library, scratch)
    yield server
    server.close()


@pytest.fixture
def trials(fork_server: ForkServer, tmp_path: pathlib.Path) -> Trials:
    """Fresh directories, and children that run scenarios in them."""
    return Trials(fork_server, tmp_path)
