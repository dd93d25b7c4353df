import json

import numpy as np
import torch

from benchmarks import pixels
from benchmarks.handwritten_sac_ae import Batch, HandwrittenSACAE, WholeReplay
from rllib_hpo.algorithms.sac_ae import SACAE, ImageModel, SACAESettings

SIZE = 19


def test_it_measures_both_algorithms_beside_the_loop(tmp_path, capsys):
    out = tmp_path / "pixels.json"

    pixels.main(["--rounds", "2", "--frames", "0", "--size", str(SIZE), "--batch", "8", "--out", str(out)])

    found = json.loads(out.read_text())
    assert list(found["updates_s"]) == [pixels.LOOP, pixels.PLAIN, pixels.HPO]
    assert all(len(rounds) == 2 and min(rounds) > 0 for rounds in found["updates_s"].values())
    replay = found["replay"]
    assert replay["bytes_of_a_transition"] < replay["bytes_of_a_transition_whole"] / 4
    assert "| time of sac-ae-hpo / sac-ae |" in capsys.readouterr().out


def test_the_loop_has_the_networks_that_it_is_compared_with():
    """Their parameters are as many and have the same shapes, part by part; targets and temperature beside them."""
    loop = HandwrittenSACAE(9, SIZE, 6)
    model = ImageModel(9 * SIZE**2, 6, SACAESettings(), seed=0)

    def shapes(*parts):
        return sorted(tuple(each.shape) for part in parts for each in part.parameters())

    for ours, theirs in (
        (model.convolutions, loop.convolutions),
        (model.policy_head, loop.policy_head),
        (model.critic_head, loop.critic_head),
        (model.decoder, loop.decoder),
        (model.sampler, loop.policy),
    ):
        assert shapes(ours) == shapes(theirs)
    assert sum(p.numel() for p in model.critics.parameters()) == sum(
        p.numel() for p in loop.critics.parameters()
    )
    assert {*SACAE(SACAESettings()).trained(model)} == {"critic", "policy", "temperature", "autoencoder"}


def test_the_loop_learns_values_and_images():
    """The same batch again and again: its reconstruction and its values become better."""
    rng = np.random.default_rng(0)
    replay = WholeReplay(9, SIZE, 2, capacity=16)
    for _ in range(20):
        images = np.tile(rng.integers(0, 256, (2, 9, 1, 1), dtype=np.uint8), (1, 1, SIZE, SIZE))
        replay.add(images[0], rng.uniform(-1, 1, 2), rng.normal(), images[1])
    batch = replay.sample(16, rng)._replace(terminated=torch.ones(16, 1))
    loop = HandwrittenSACAE(9, SIZE, 2)

    def losses(batch: Batch) -> tuple[float, float]:
        with torch.no_grad():
            images = batch.obs.float() / 255
            latent = loop.critic_head(loop.convolutions(images))
            values = torch.cat(loop.value(loop.critics, latent, batch.action), 1)
            error = (loop.decoder(latent) - (images - 0.5)).square().mean()
        return float((values - batch.reward).square().mean()), float(error)

    before, targets = losses(batch), [each.clone() for each in loop.targets.parameters()]
    alpha = float(loop.log_alpha.detach())
    for _ in range(40):
        loop.update(batch)
    after = losses(batch)
    assert after[0] < 0.5 * before[0]
    assert after[1] < 0.9 * before[1]
    assert float(loop.log_alpha.detach()) != alpha
    assert all(not torch.equal(*pair) for pair in zip(targets, loop.targets.parameters(), strict=True))
