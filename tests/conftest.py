"""What several files of tests share and takes seconds to make."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a small cold-started model; nobody writes into it."""
    # imported here, so that tests which train nothing do not wait for torch
    from faults import without_flushing
    from small_runs import cold_start

    with without_flushing():
        return cold_start(tmp_path_factory.mktemp("cold"))
