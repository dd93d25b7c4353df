"""Define the tasks of soft Q-learning's paper (Haarnoja et al. 2017, arXiv 1702.08165).

They are rebuilt, since their geometry is unpublished. `info` reports `xy`, the position in metres; `progress` and
`displacement`, metres forward and total metres since the start of the episode; `goal_distance`, if there is a goal;
and `goal`, the index of the goal reached, or -1.
"""

import gymnasium as gym

ENVIRONMENTS = {
    "MultiGoal-v0": ("multi_goal:MultiGoal", 30),
    "SnakeFinish-v0": ("snake:SnakeFinish", 500),
    "QuadOpen-v0": ("quadruped:QuadOpen", 500),
    "QuadMaze-v0": ("quadruped:QuadMaze", 500),
    "QuadHallWide-v0": ("quadruped:QuadHallWide", 500),
    "QuadHallNarrow-v0": ("quadruped:QuadHallNarrow", 500),
    "QuadU-v0": ("quadruped:QuadU", 500),
}
"""Class and episode length in steps, by gymnasium id."""


THRESHOLDS = {
    "SnakeFinish-v0": ("forward_max", ">", 3.0),
    "QuadMaze-v0": ("goal_distance_min", "<", 3.5),
}
"""Where a run must have passed in training, by gymnasium id: the finish line, and the end of the blocked passage."""


def register() -> None:
    """Register the ids with gymnasium; MuJoCo is imported when an environment is made."""
    for env_id, (place, steps) in ENVIRONMENTS.items():
        if env_id not in gym.registry:
            gym.register(env_id, entry_point=f"{__name__}.{place}", max_episode_steps=steps)
