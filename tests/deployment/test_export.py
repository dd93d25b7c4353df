"""Test that exported policies act as live ones, describe themselves, and need neither Ray nor (ONNX) this package."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from rllib_hpo.algorithms.base import Actor
from rllib_hpo.algorithms.sac import SamplerActor
from rllib_hpo.deployment import FORMATS, DeployedPolicy, PolicyMetadata, load_policy_file, write_policy
from rllib_hpo.deployment.metadata import BoxMetadata
from rllib_hpo.errors import CheckpointError, UnknownNameError, UserError
from rllib_hpo.experiments.runs.evaluate import evaluate_checkpoint
from rllib_hpo.experiments.storage.export import export_policy
from rllib_hpo.rllib.trained_policy import load_policy
from rllib_hpo.settings import ActorCriticSettings
from rllib_hpo.tasks import ActionScaling, make_env
from tests.kinds import OF_VECTORS
from tests.learning.options import SETTINGS as OPTIONS
from tests.rllib.tiny import IN_TIME, running, tiny_config, train_to

pytest.importorskip("onnxruntime")
pytest.importorskip("safetensors")

ROOT = Path(__file__).resolve().parents[2]
NUM_OBS = 400


class Trained(NamedTuple):
    """A checkpoint, and observations of its policy's own rollouts."""

    checkpoint: Path
    obs: np.ndarray


Export = Callable[[Trained, str], Path]
SHARED_POLICY = ("ddpg", "sac-lagrangian", "sac-hpo-lagrangian")
"""Those whose exported policies are computed as those of TD3, SAC and SAC-HPO are."""
SEPARATE = pytest.mark.parametrize("trained", IN_TIME, indirect=True)
"""For what needs a process of its own and depends on the file's format, not on the algorithm."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(n, marks=[pytest.mark.exhaustive] if n in SHARED_POLICY else []) for n in OF_VECTORS
    ],
)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Train a policy briefly on Hopper, with long leapfrog steps and decisive gates if it has them."""
    long_steps = {"step_size": 0.5, "leapfrog_steps": 3}
    own: dict[str, dict[str, Any]] = {
        "sac-hpo": long_steps,
        "sac-hpo-lagrangian": {"shield": "none", **long_steps},  # its own tests export the shield
        "soft-q": {"evaluation_action": "zero_noise"},  # its own tests export policies that take noise
    }
    settings = own.get(request.param, {})
    config = tiny_config(request.param, "Hopper-v4", hidden_units=32, **settings)
    directory = tmp_path_factory.mktemp(request.param)
    with running(config) as built:
        train_to(built, 80)
        gates = getattr(built.actor.acting, "gated_force", None)
        if gates is not None:
            with torch.no_grad():
                gates.gate.bias.copy_(torch.tensor([7.0, 0.0, -7.0]))
        obs = observations(built.actor)
        return Trained(Path(built.save_to_path(directory / "checkpoint")), obs)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Export a checkpoint in a format, once."""

    @cache
    def exported(checkpoint: Path, file_format: str) -> Path:
        path = tmp_path_factory.mktemp("exported") / "policy.pt2"
        assert export_policy(checkpoint, file_format, path)[0] == path
        return path

    return lambda trained, file_format: exported(trained.checkpoint, file_format)


def observations(actor: Actor) -> np.ndarray:
    """Return the observations that the noise-free policy meets in several episodes."""
    env, seen, seed = make_env("Hopper-v4"), [], 0
    scaling = ActionScaling.of(env.action_space)
    while len(seen) < NUM_OBS:
        obs, over = env.reset(seed=seed)[0].astype(np.float32), False
        while not over and len(seen) < NUM_OBS:
            seen.append(obs)
            action = scaling.to_env(actor.act(torch.from_numpy(obs[None])))[0]
            obs, _, terminated, truncated, _ = env.step(action)
            obs, over = obs.astype(np.float32), terminated or truncated
        seed += 1
    return np.stack(seen)


Runner = Callable[[np.ndarray], np.ndarray]


def run_torch_export(path: Path) -> Runner:
    """Run the policy with torch alone."""
    program = torch.export.load(path).module()
    return lambda obs: program(torch.from_numpy(obs)).numpy()


def run_onnx(path: Path) -> Runner:
    """Run the policy with ONNX Runtime, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options)
    return lambda obs: np.asarray(session.run(["action"], {"obs": obs})[0])


def run_safetensors(path: Path) -> Runner:
    """Run the policy as the loader rebuilds it."""
    policy = load_policy_file(path)
    return lambda obs: policy(torch.from_numpy(obs)).numpy()


RUNNERS = {"torch-export": run_torch_export, "onnx": run_onnx, "safetensors": run_safetensors}


def test_every_format_is_tested() -> None:
    assert RUNNERS.keys() == FORMATS.keys()


# --- equal actions ---


def test_the_observations_are_of_all_kinds(trained: Trained) -> None:
    """Actions are clipped and not clipped, and gates nearly closed and nearly open; the next test needs both."""
    actor = load_policy(trained.checkpoint).actor
    if not hasattr(actor.acting, "gated_force"):
        return
    obs = torch.from_numpy(trained.obs)
    gates: list[torch.Tensor] = []
    sampler: Any = actor.sampler
    critic = actor.target_critics.condition(obs)
    with torch.no_grad():
        force = sampler.force(obs, critic, actor.alpha, lambda gradient, gate: gates.append(gate))
        initial, _ = sampler.initial_action(obs, {"base": torch.zeros(len(obs), 3)})
        action, _ = sampler.evolve(initial, torch.zeros_like(initial), force, "train", final_kick=False)
    shares = {
        "clipped": (action.abs() > 1).float().mean(),
        "unclipped": (action.abs() < 1).float().mean(),
        "closed": (torch.cat(gates) < 0.01).float().mean(),
        "open": (torch.cat(gates) > 0.99).float().mean(),
    }
    assert all(share > 0.01 for share in shares.values()), shares


@pytest.mark.parametrize("file_format", FORMATS)
def test_exported_actions_are_the_live_ones(trained: Trained, export: Export, file_format: str) -> None:
    """They agree to 1e-5 of the action range, for one observation, for seven, and for all at once."""
    run = RUNNERS[file_format](export(trained, file_format))
    live = load_policy(trained.checkpoint)
    expected = ActionScaling.of(live.action_space).to_env(live.actor.act(torch.from_numpy(trained.obs)))
    width = live.action_space.high - live.action_space.low
    for rows in (1, 7, NUM_OBS):
        actions = np.concatenate(
            [run(trained.obs[start : start + rows]) for start in range(0, NUM_OBS, rows)]
        )
        assert actions.dtype == np.float32
        assert (np.abs(actions - expected) / width).max() <= 1e-5
        assert live.action_space.contains(actions[0])


OTHER_OPERATIONS = (
    "sac, two widths, tanh, layer normalisation",
    "sac-hpo, conventional",
    "sac-hpo, consistent mass",
    "sac-hpo, no state input",
    "sac-hpo, normalised, two widths, elu",
)
"""Options whose policies consist of other operations than those that are trained above."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in OTHER_OPERATIONS else pytest.mark.exhaustive)
        for name in OPTIONS
    ],
)
def test_every_option_exports(name: str, tmp_path: Path) -> None:
    settings = OPTIONS[name]
    obs = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    policy = DeployedPolicy(SamplerActor(5, 3, settings, seed=0), metadata(name.split(",")[0], settings))
    write_policy(policy, "onnx", tmp_path / "policy.onnx")
    actions = run_onnx(tmp_path / "policy.onnx")(obs)
    np.testing.assert_allclose(actions, policy(torch.from_numpy(obs)).numpy(), rtol=0, atol=1e-5 * 4)


def metadata(algorithm: str, settings: ActorCriticSettings) -> PolicyMetadata:
    """Make metadata of a policy with five observations and three actions between -1 and 3."""
    return PolicyMetadata(
        algorithm=algorithm,
        task="none",
        env="None-v0",
        env_config={},
        env_steps=0,
        observation_space=BoxMetadata(shape=(5,), dtype="float64", low=[None] * 5, high=[None] * 5),
        action_space=BoxMetadata(shape=(3,), dtype="float32", low=[-1.0] * 3, high=[3.0] * 3),
        settings=settings.model_dump(),
        versions={},
    )


def test_both_api_stacks_export_the_same(tmp_path: Path) -> None:
    from rllib_hpo.rllib.converting import convert

    with running(tiny_config("sac-hpo", "Hopper-v4")) as built:
        train_to(built, 40)
        built.save_to_path(tmp_path / "new")
    convert(tmp_path / "new", tmp_path / "old")
    weights = []
    for stack in ("new", "old"):
        export_policy(tmp_path / stack, "safetensors", tmp_path / f"{stack}.safetensors")
        weights.append(load_policy_file(tmp_path / f"{stack}.safetensors").state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


# --- what files say ---


def stored_metadata(file_format: str, path: Path) -> str:
    """Read the metadata in a file with the format's own library."""
    if file_format == "torch-export":
        extra = {"rllib_hpo": ""}
        torch.export.load(path, extra_files=extra)
        return extra["rllib_hpo"]
    if file_format == "onnx":
        import onnx

        return str({prop.key: prop.value for prop in onnx.load(path).metadata_props}["rllib_hpo"])
    assert path.with_name(f"{path.name}.json").read_text() == load_policy_file(path).metadata.to_json()
    return path.with_name(f"{path.name}.json").read_text()


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_file_says_what_it_is(trained: Trained, export: Export, file_format: str) -> None:
    path = export(trained, file_format)
    said = json.loads(stored_metadata(file_format, path))
    manifest = load_policy(trained.checkpoint).manifest
    assert (said["task"], said["env"], said["env_steps"]) == ("Hopper-v4", "Hopper-v4", 80)
    assert said["algorithm"] == manifest["algorithm"]
    assert said["settings"]["hidden_units"] == 32
    assert {"torch", "rllib_hpo"} <= said["versions"].keys()
    assert (said["observation_space"]["shape"], said["action_space"]["shape"]) == ([11], [3])
    assert said["action_space"]["high"] == [1.0, 1.0, 1.0]
    assert said["observation_space"]["high"] == [None] * 11
    content = path.read_bytes()
    assert str(ROOT).encode() not in content  # no paths of whoever exported


# --- without Ray, without this package ---


@SEPARATE
def test_the_loader_imports_no_ray(trained: Trained, export: Export) -> None:
    path = export(trained, "safetensors")
    code = textwrap.dedent("""
        import sys
        sys.modules["ray"] = sys.modules["wandb"] = None
        import torch
        from rllib_hpo.deployment import load_policy_file
        policy = load_policy_file(sys.argv[1])
        print(policy(torch.ones(2, 11)).tolist())
    """)
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    expected = load_policy_file(path)(torch.ones(2, 11))
    assert torch.allclose(torch.tensor(json.loads(done.stdout)), expected, atol=1e-6)


@SEPARATE
def test_the_serving_example_needs_neither_ray_nor_this_package(
    trained: Trained, export: Export, tmp_path: Path
) -> None:
    """It plays the episode that `rllib-hpo evaluate` plays from the same seed."""
    code = textwrap.dedent("""
        import runpy, sys
        sys.modules["ray"] = sys.modules["torch"] = sys.modules["rllib_hpo"] = None
        sys.argv = sys.argv[1:]
        runpy.run_path(sys.argv[0])
    """)
    from rllib_hpo.streams import seed_sequence

    seed = int(seed_sequence(0, "evaluate command").generate_state(1)[0] >> 1)
    script = str(ROOT / "notebooks" / "serve_policy.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, script, str(export(trained, "onnx")), str(seed)],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    played, _ = evaluate_checkpoint(trained.checkpoint, 1)
    assert float(done.stdout.split()[-1]) == pytest.approx(played.returns[0], abs=0.05)


# --- what is refused ---


@pytest.fixture
def policy() -> DeployedPolicy:
    """Make a small policy."""
    settings = OPTIONS["sac"]
    return DeployedPolicy(SamplerActor(5, 3, settings, seed=0), metadata("sac", settings))


def test_mistakes_are_named(policy: DeployedPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown export format 'onx'\. Did you mean 'onnx'?"):
        write_policy(policy, "onx", tmp_path / "policy")
    with pytest.raises(UserError, match="is a directory; give a file"):
        write_policy(policy, "onnx", tmp_path)
    for package, file_format in (("onnxscript", "onnx"), ("safetensors.torch", "safetensors")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=r"pip install 'rllib-hpo\[export\]'"):
            write_policy(policy, file_format, tmp_path / "policy")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def exported(policy: DeployedPolicy, tmp_path: Path) -> Path:
    """Export it to a safetensors file."""
    return write_policy(policy, "safetensors", tmp_path / "policy.safetensors")[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:100], "cannot be read as safetensors"),
        (
            lambda content: content.replace(b'"rllib_hpo"', b'"something"'),
            "is not a policy exported by rllib_hpo",
        ),
        (lambda content: content.replace(b'format\\": 1', b'format\\": 9'), "export format 9; this version"),
        (
            lambda content: content.replace(b'hidden_units\\": 16', b'hidden_units\\": 17'),
            "weights in .* are not",
        ),
        (lambda content: content.replace(b'algorithm\\": \\"sac', b'algorithm\\": \\"sax'), "sax"),
    ],
    ids=["truncated", "no metadata", "another format", "other weights", "unknown algorithm"],
)
def test_damaged_files_are_named(exported: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    content = exported.read_bytes()
    assert damage(content) != content
    exported.write_bytes(damage(content))
    with pytest.raises(UserError, match=message):
        load_policy_file(exported)


def test_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing cannot be read as safetensors"):
        load_policy_file(tmp_path / "nothing")
