"""Register tasks: their environments, the paper's settings for each, and how to save their simulators.

Importing this package registers the PyBullet environments with gymnasium, without importing a simulator.
"""

from rllib_hpo.tasks.boundary import Boundary, env_name
from rllib_hpo.tasks.environments import ActionScaling, check_spaces, make_env, register_environments
from rllib_hpo.tasks.registry import TABLE_ONE, Task, all_tasks, find_task, import_modules, register_task

register_environments()

__all__ = [
    "TABLE_ONE",
    "ActionScaling",
    "Boundary",
    "Task",
    "all_tasks",
    "check_spaces",
    "env_name",
    "find_task",
    "import_modules",
    "make_env",
    "register_environments",
    "register_task",
]
