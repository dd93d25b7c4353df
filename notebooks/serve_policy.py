"""Serves a policy that `rllib-hpo export --format onnx` wrote: numpy, onnxruntime and the environment are enough.

A policy that was trained in wrappers, or in an environment that rllib_hpo registers, needs that package too.

python notebooks/serve_policy.py hopper.onnx [SEED]
"""

import importlib
import json
import sys

import gymnasium as gym
import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options)
about = json.loads(session.get_modelmeta().custom_metadata_map["rllib_hpo"])

sys.path.insert(0, "")  # modules that register the environment may lie in the working directory
make = gym.make
try:
    for module in about.get("imports", []):
        importlib.import_module(module)
    if "wrappers" in about["env_config"] or (":" not in about["env"] and about["env"] not in gym.registry):
        make = importlib.import_module("rllib_hpo.tasks").make_env
except ImportError as error:
    sys.exit(f"error: {about['env']} of this policy needs a module that is not here: {error}")
env = make(about["env"], **about["env_config"], **({} if make is gym.make else {"training": False}))

if about.get("observation_parts") and make is not gym.make:
    env = env.env  # without the layer that flattens
parts = about.get("observation_parts") or [{"path": [], "dtype": "float32"}]


def inputs_of(obs):
    """Return the model's inputs: an observation, or each part of a structured one by its name ("camera.position")."""
    inputs = {}
    for part in parts:
        value = obs
        for key in part["path"]:
            value = value[key]
        inputs[".".join(map(str, part["path"])) or "obs"] = np.asarray(value, part["dtype"])[None]
    return inputs


seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
obs, _ = env.reset(seed=seed)
# Most policies take observations alone. `latent` is standard normal noise, new for each action (soft Q-learning's).
shapes = {one.name: (1, *one.shape[1:]) for one in session.get_inputs() if one.name not in inputs_of(obs)}
memory, rng = (
    {name: np.zeros(shape, np.float32) for name, shape in shapes.items()},
    np.random.default_rng(seed),
)
episode_return, over = 0.0, False
while not over:
    if "latent" in memory:
        memory["latent"] = rng.standard_normal(shapes["latent"], np.float32)
    actions, *remembered = session.run(None, {**inputs_of(obs), **memory})
    memory = dict(zip(memory, remembered, strict=True))
    obs, reward, terminated, truncated, _ = env.step(actions[0])
    episode_return, over = episode_return + float(reward), terminated or truncated
print(f"{about['algorithm']} on {about['env']} after {about['env_steps']} steps: return {episode_return:.3f}")
