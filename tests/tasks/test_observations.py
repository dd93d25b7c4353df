"""Test the flattening of structured observations against gymnasium's."""

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from rllib_hpo.errors import NonFiniteError, UserCodeError
from rllib_hpo.tasks import Boundary
from rllib_hpo.tasks.observations import FlatObservation, FlatSpace, flattened, order_of, parts_of

NESTED = Dict(
    {
        "goal": Tuple([Box(-1, 1, (2, 3)), Discrete(4, start=-1)]),
        "arm": Dict({"switches": MultiBinary(3), "gears": MultiDiscrete([2, 3])}),
        "scalar": Box(0, 9, (), np.int64),
    }
)


class Structured(gym.Env):
    """Return samples of a space, or the observation that a test sets."""

    def __init__(self, space=NESTED):
        self.observation_space, self.action_space = copy.deepcopy(space), Box(-1, 1, (1,))
        self.given = None

    def _obs(self):
        return self.observation_space.sample() if self.given is None else self.given

    def reset(self, *, seed=None, options=None):
        self.observation_space.seed(seed)
        return self._obs(), {}

    def step(self, action):
        return self._obs(), 0.0, False, False, {}


@pytest.mark.parametrize(
    "space", [NESTED, Discrete(3), Box(-1, 1, (2, 2, 2)), Box(-1, 1, ()), MultiBinary((2, 2))]
)
def test_the_vector_is_gymnasiums(space):
    env = FlatObservation(Structured(space))
    checked = Boundary(env)
    twin = Structured(space)
    for flat, structured in [
        (checked.reset(env, 3), twin.reset(seed=3)[0]),
        (checked.step(env, np.zeros(1))[0], twin.step(None)[0]),
    ]:
        np.testing.assert_array_equal(flat, gym.spaces.flatten(space, structured).astype(np.float32))
    assert env.observation_space.shape == (gym.spaces.flatdim(space),)
    assert env.observation_space.contains(env.reset(seed=1)[0])


def test_the_order_is_told():
    space = flattened(Structured()).observation_space
    assert order_of(space) == (
        "Observations are flattened to 19 numbers: arm.gears (5, one-hot), arm.switches (3), goal.0 (6), "
        "goal.1 (4, one-hot), scalar (1)."
    )
    assert [(part.start, part.size) for part in parts_of(NESTED)] == [
        (0, 5),
        (5, 3),
        (8, 6),
        (14, 4),
        (18, 1),
    ]
    assert (
        order_of(FlatSpace(Discrete(3))) == "Observations are flattened to 3 numbers: Discrete (3, one-hot)."
    )
    assert order_of(Box(-1, 1, (3,))) is None


def test_a_flat_environment_stays_as_it_is():
    env = Structured(Box(-1, 1, (3,)))
    assert flattened(env) is env


def test_the_space_remembers_its_structure_in_other_processes():
    again = pickle.loads(pickle.dumps(FlatSpace(NESTED)))
    assert again == FlatSpace(NESTED)
    assert again.structure == NESTED


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"arm": {}}, UserCodeError, r"with the keys \['arm'\] as the observation, without 'arm.gears'"),
        (
            np.zeros(19),
            UserCodeError,
            r"as the observation, without 'arm.gears', but .* MultiDiscrete\(\[2 3\]",
        ),
        ({"scalar": np.zeros(2)}, UserCodeError, r"shape \(2,\).* as the observation 'scalar', but"),
        (
            {"goal": (np.zeros((2, 3)), 3)},
            UserCodeError,
            r"returned 3 as the observation 'goal.1', but .*Discrete",
        ),
        (
            {"goal": (np.full((2, 3), np.nan), 0)},
            NonFiniteError,
            "^The observation 'goal.0' of Structured is not",
        ),
    ],
)
def test_what_is_outside_the_space_is_named(given, error, message):
    env = FlatObservation(Structured())
    valid = env.env._obs()
    if isinstance(given, dict) and given != {"arm": {}}:
        given = {**valid, **given}
    env.env.given = given
    with pytest.raises(error, match=message):
        Boundary(env).reset(env)
