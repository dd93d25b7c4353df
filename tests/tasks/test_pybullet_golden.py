"""Test that the PyBullet humanoids replay the original's rollouts bitwise (`golden/make_golden.py`)."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from tests.tasks.golden.make_golden import PATH, PLANS

REPOSITORY = Path(__file__).resolve().parents[2]

pytest.importorskip("pybullet")
pytest.importorskip("pybullet_envs_gymnasium")


@pytest.fixture(scope="module")
def golden():
    with np.load(PATH) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    """Play the same actions in our environments, in a process whose OpenBLAS rounds as the golden one's did."""
    out = tmp_path_factory.mktemp("golden") / "replayed.npz"
    code = textwrap.dedent(f"""
        import numpy as np
        from rllib_hpo.tasks import make_env
        from tests.tasks.golden.make_golden import PATH, rollouts
        np.savez({str(out)!r}, **rollouts(make_env, np.load(PATH)))
    """)
    path = f"import sys; sys.path[:0] = {sys.path!r}\n"
    environment = {**os.environ, "OPENBLAS_CORETYPE": "Haswell"}
    subprocess.run([sys.executable, "-c", path + code], check=True, env=environment, cwd=REPOSITORY)
    with np.load(out) as arrays:
        return dict(arrays)


def assert_same_bits(actual, expected):
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    difference = np.abs(actual.astype(np.float64) - expected).max()
    assert actual.tobytes() == expected.tobytes(), f"differ by up to {difference}"


@pytest.mark.parametrize("what", ["starts", "observations", "rewards", "terminations"])
@pytest.mark.parametrize("index", range(len(PLANS)), ids=[f"{plan.env_id}-{plan.seed}" for plan in PLANS])
def test_rollout_is_the_originals(golden, replayed, index, what):
    assert_same_bits(replayed[f"{index}/{what}"], golden[f"{index}/{what}"])


def test_joint_positions_are_rounded_as_the_originals(golden, replayed):
    """The port alone rounds some of them otherwise: one in 10^8 in general, one in a hundred of these."""
    assert_same_bits(replayed["middle/observations"], golden["middle/observations"])


def test_the_golden_rollouts_see_what_is_special(golden):
    """They contain falls, later resets, moving flags, and hits by cubes."""
    plain, flagrun, harder = (index for index, plan in enumerate(PLANS) if plan.onward)
    assert golden[f"{plain}/terminations"].any()
    assert all(len(golden[f"{index - 2}/starts"]) > 1 for index in (plain, flagrun, harder))
    assert golden[f"{flagrun}/rewards"].min() < -100  # the only reward as large is the flag's jump
    joints = [golden[f"{index}/observations"][:, 8:42] for index in (flagrun, harder)]
    apart = (joints[0] != joints[1]).any(axis=1)
    assert not apart[:120].any()  # the first cube flies at step 121, until then the simulations are one
    assert apart[-1]
