"""Serves a policy that `rllib-hpo export --format onnx` wrote: numpy, onnxruntime and the environment are enough.

python notebooks/serve_policy.py hopper.onnx [SEED]
"""

import json
import sys

import gymnasium as gym
import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options)
about = json.loads(session.get_modelmeta().custom_metadata_map["rllib_hpo"])

env = gym.make(about["env"], **about["env_config"])
obs, _ = env.reset(seed=int(sys.argv[2]) if len(sys.argv) > 2 else 0)
episode_return, over = 0.0, False
while not over:
    (actions,) = session.run(None, {"obs": np.asarray(obs, np.float32)[None]})
    obs, reward, terminated, truncated, _ = env.step(actions[0])
    episode_return, over = episode_return + float(reward), terminated or truncated
print(f"{about['algorithm']} on {about['env']} after {about['env_steps']} steps: return {episode_return:.3f}")
