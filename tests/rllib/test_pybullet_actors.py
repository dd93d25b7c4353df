"""Test the PyBullet humanoids in actors that import nothing except `rllib_hpo`."""

import numpy as np
import pytest

from rllib_hpo.tasks.environments import PYBULLET_IDS

pytest.importorskip("pybullet")
pytest.importorskip("pybullet_envs_gymnasium")
pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.mark.parametrize("env_id", PYBULLET_IDS)
def test_two_actors_at_once_see_what_this_process_sees(env_id):
    import ray

    def walk():
        import gymnasium

        import rllib_hpo  # noqa: F401

        env = gymnasium.make(env_id)
        trace = [env.reset(seed=3)[0]]
        for _ in range(10):
            observation, reward, *_ = env.step(np.full(17, 0.25, np.float32))
            trace.append(np.append(observation, reward))
        connection = env.unwrapped._p.getConnectionInfo()["connectionMethod"]
        env.close()
        return np.concatenate(trace), connection

    class Walker:
        def walk(self):
            return walk()

    actors = [ray.remote(num_cpus=0)(Walker).remote() for _ in range(2)]
    expected, direct = walk()
    for trace, connection in ray.get([actor.walk.remote() for actor in actors]):
        assert trace.tobytes() == expected.tobytes()
        assert connection == direct
