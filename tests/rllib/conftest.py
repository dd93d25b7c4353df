"""Run one small Ray session per file of tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """Run Ray with four (pretended) cores; its workers find the environments defined in the tests."""
    import ray

    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    for attempt in range(3):  # a busy machine may need longer than the 30 s that Ray gives its own parts
        try:
            ray.init(
                num_cpus=4,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env={"env_vars": {"PYTHONPATH": path}},
            )
            break
        except Exception:  # of no kind of its own
            ray.shutdown()
            if attempt == 2:
                raise
    yield
    ray.shutdown()
