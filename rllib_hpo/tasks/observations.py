"""Flatten structured observations into one vector, in an order that the space determines.

A Dict contributes its parts in the order of its keys (gymnasium sorts them), a Tuple in its own order, depth first. Of
the parts, a Box of floats or integers is flattened row by row, a MultiBinary as it is; a Discrete becomes a one-hot
vector, and a MultiDiscrete one for each of its numbers, concatenated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rllib_hpo.errors import NonFiniteError, UserCodeError
from rllib_hpo.tasks.boundary import as_array, described, env_name

Path = tuple[str | int, ...]
"""Keys of Dicts and indices of Tuples that lead to a part; empty for a space that is a part itself."""
_LONGEST_ONE_HOT = 100_000
_IMAGE = (
    "image observations of shape {shape}; only single images are learned from, by sac-ae and sac-ae-hpo: choose the "
    "image alone, or name a wrapper that computes features in env_config: {{wrappers: [...]}}"
)


class Part(NamedTuple):
    """One part of a structured observation, and its place in the vector."""

    path: Path
    space: spaces.Space[Any]
    start: int
    size: int
    """Numbers that it takes in the vector."""

    @property
    def place(self) -> slice:
        """Its numbers in the vector."""
        return slice(self.start, self.start + self.size)

    @property
    def name(self) -> str:
        """Its path in words: "camera.position", "0"; empty for a space that is a part itself."""
        return ".".join(map(str, self.path))


class FlatSpace(spaces.Box):
    """The Box of flattened observations, which remembers their structure.

    Args:
        structure: The environment's space.
    """

    def __init__(self, structure: spaces.Space[Any]) -> None:
        self.structure = structure
        bounds = [_bounds(part) for part in parts_of(structure)]
        with np.errstate(over="ignore"):  # a bound beyond float32's range is none
            low, high = (np.concatenate(one).astype(np.float32) for one in zip(*bounds, strict=True))
        super().__init__(low, high, dtype=np.float32)

    @property
    def parts(self) -> list[Part]:
        """The parts in the order of the vector."""
        return parts_of(self.structure)


def parts_of(space: spaces.Space[Any]) -> list[Part]:
    """Return the parts of a space that `observation_problem` accepts, in the order of the vector."""
    parts: list[Part] = []
    for path, leaf in _leaves(space):
        start = parts[-1].start + parts[-1].size if parts else 0
        parts.append(Part(path, leaf, start, int(spaces.flatdim(leaf))))
    return parts


def _leaves(space: spaces.Space[Any], path: Path = ()) -> Iterator[tuple[Path, spaces.Space[Any]]]:
    if isinstance(space, spaces.Dict):
        for key, inner in space.spaces.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for index, inner in enumerate(space.spaces):
            yield from _leaves(inner, (*path, index))
    else:
        yield path, space


def observation_problem(space: spaces.Space[Any]) -> str | None:
    """Describe what keeps a space from being flattened, as a noun phrase; None for a space that can be."""
    leaves = list(_leaves(space))
    for path, leaf in leaves:
        if path == () and is_image(leaf):
            return None
        if problem := _leaf_problem(leaf):
            return f"{problem} in '{'.'.join(map(str, path))}'" if path else problem
    return None if sum(_size(leaf) for _, leaf in leaves) else "observations of no numbers"


def _size(leaf: spaces.Space[Any]) -> int:
    return int(spaces.flatdim(leaf))


def _leaf_problem(leaf: spaces.Space[Any]) -> str | None:
    if isinstance(leaf, spaces.Box):
        return _IMAGE.format(shape=leaf.shape) if is_image(leaf) else None
    if isinstance(leaf, (spaces.Discrete, spaces.MultiDiscrete)):
        too_large = _size(leaf) > _LONGEST_ONE_HOT
        return f"{type(leaf).__name__} observations of {_size(leaf):,} values" if too_large else None
    if isinstance(leaf, spaces.MultiBinary):
        return None
    return f"{type(leaf).__name__} observations"


def is_image(space: spaces.Space[Any]) -> bool:
    """Return whether a space holds images: three-dimensional arrays of integers."""
    is_box = isinstance(space, spaces.Box) and len(space.shape) == 3
    return is_box and not np.issubdtype(space.dtype, np.floating)


def image_shape(space: spaces.Space[Any]) -> tuple[int, ...] | None:
    """Return the shape of images, flattened or not; None for other observations."""
    structure = space.structure if isinstance(space, FlatSpace) else space
    return structure.shape if is_image(structure) else None


def _bounds(part: Part) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if isinstance(part.space, spaces.Box):
        return (
            part.space.low.reshape(-1).astype(np.float64),
            part.space.high.reshape(-1).astype(np.float64),
        )
    return np.zeros(part.size), np.ones(part.size)


def is_flat(space: spaces.Space[Any]) -> bool:
    """Return whether observations of `space` are vectors of numbers already."""
    return isinstance(space, spaces.Box) and len(space.shape) == 1


def flattened(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """Return `env` with flat observations: itself if they are, or if they cannot be flattened."""
    space = env.observation_space
    return env if is_flat(space) or observation_problem(space) else FlatObservation(env)


def order_of(space: spaces.Space[Any]) -> str | None:
    """Return a sentence on the order of flattened observations; None for a space that was flat from the start."""
    if not isinstance(space, FlatSpace):
        return None
    if (shape := image_shape(space)) is not None:
        return f"Observations are images of shape {shape}."
    described_parts = [f"{part.name or _kind(part)} ({_sizes(part)})" for part in space.parts]
    return f"Observations are flattened to {space.shape[0]} numbers: {', '.join(described_parts)}."


def _kind(part: Part) -> str:
    return type(part.space).__name__


def _sizes(part: Part) -> str:
    one_hot = isinstance(part.space, (spaces.Discrete, spaces.MultiDiscrete))
    return f"{part.size}, one-hot" if one_hot else str(part.size)


class FlatObservation(gym.Wrapper[Any, Any, Any, Any]):
    """Flatten observations, and check that they are as their space declares.

    Args:
        env: An environment that `observation_problem` accepts.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = FlatSpace(env.observation_space)
        self._flatten = Flattening(env.observation_space, env_name(env))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Reset the environment, and flatten the observation if the result is a pair."""
        return self._flat(self.env.reset(seed=seed, options=options), 2)

    def step(self, action: Any) -> Any:
        """Step the environment, and flatten the observation if the result has five parts."""
        return self._flat(self.env.step(action), 5)

    def _flat(self, result: Any, length: int) -> Any:
        if not (isinstance(result, (tuple, list)) and len(result) == length):
            return result  # the boundary refuses it
        return (self._flatten(result[0]), *result[1:])


class Flattening:
    """Make a vector of a structured observation.

    Args:
        space: A space that `observation_problem` accepts.
        env: Name of the environment in errors.
    """

    def __init__(self, space: spaces.Space[Any], env: str) -> None:
        self._env, self._parts = env, parts_of(space)
        self._encoders = [_encoder(part.space) for part in self._parts]
        self._size = sum(part.size for part in self._parts)

    def __call__(self, observation: Any) -> NDArray[np.float32]:
        """Return the vector (S,).

        Raises:
            UserCodeError: If the observation is not in the space: it lacks a part, or one has another shape or type.
            NonFiniteError: If a part is not finite in float32.
        """
        vector = np.empty(self._size, np.float32)
        for part, encode in zip(self._parts, self._encoders, strict=True):
            value = self._find(observation, part)
            array = as_array(value)
            encoded = None if array is None or array.dtype.kind not in "fiub" else encode(array)
            if encoded is None:
                raise self._error(f"{described(value)} as the observation{_in(part)}", part)
            vector[part.place] = encoded
        if not np.isfinite(vector).all():
            wrong = next(part for part in self._parts if not np.isfinite(vector[part.place]).all())
            raise NonFiniteError(f"The observation{_in(wrong)} of {self._env} is not finite")
        return vector

    def _find(self, observation: Any, part: Part) -> Any:
        value = observation
        for key in part.path:
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                keys = f" with the keys {list(observation)}" if isinstance(observation, Mapping) else ""
                raise self._error(
                    f"{described(observation)}{keys} as the observation, without{_in(part)}", part
                ) from None
        return value

    def _error(self, returned: str, part: Part) -> UserCodeError:
        return UserCodeError(
            f"Environment '{self._env}' returned {returned}, but its observation_space declares {part.space} there: "
            "return what it declares, or declare what it returns."
        )


def _in(part: Part) -> str:
    return f" '{part.name}'" if part.path else ""


def _encoder(space: spaces.Space[Any]) -> Callable[[NDArray[Any]], NDArray[Any] | None]:
    """Return the function that makes numbers (size,) of an array, or None of one outside the space's shape."""
    if isinstance(space, spaces.Discrete):
        return lambda array: _one_hot(array, np.array([space.n]), np.array([space.start]), ())
    if isinstance(space, spaces.MultiDiscrete):
        sizes, starts = space.nvec.reshape(-1), space.start.reshape(-1)
        return lambda array: _one_hot(array, sizes, starts, space.nvec.shape)
    shape = space.shape
    return lambda array: array.reshape(-1) if array.shape == shape else None


def _one_hot(
    array: NDArray[Any], sizes: NDArray[Any], starts: NDArray[Any], shape: tuple[int, ...]
) -> NDArray[np.float32] | None:
    is_single = shape == () and array.size == 1
    if not is_single and array.shape != shape:
        return None
    numbers = array.reshape(-1) - starts
    if array.dtype.kind == "f" or (numbers < 0).any() or (numbers >= sizes).any():
        return None
    result = np.zeros(int(sizes.sum()), np.float32)
    result[np.cumsum(sizes) - sizes + numbers] = 1.0
    return result
