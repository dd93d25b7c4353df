"""Plant mistakes in a copy of the package, and show that the tests notice: `python -m tests.mutations`.

Each mutation replaces one piece of source text, which must occur exactly once, in a temporary copy of the package,
and runs the tests that should fail. The output lists each mutation and the first test that killed it. The exit code is
1 if any mutation survives, and 2 if a text is no longer found or the tests fail without a mutation.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Mutation:
    """One planted mistake."""

    name: str
    path: str
    """Source file below `rllib_hpo/`."""
    old: str
    new: str
    tests: tuple[str, ...]
    """Test files below `tests/` of which at least one test must fail."""


class MutationError(Exception):
    """Raised if a mutation cannot be planted, or the tests do not run."""


HAMILTONIAN = ("samplers/test_hamiltonian.py",)
LEAPFROG = ("samplers/test_leapfrog.py",)
CHAIN = ("kernels/test_gated_leapfrog.py",)
CRITICS = ("networks/test_critics.py",)
LOSSES = ("algorithms/test_losses.py",)
UPDATE = ("algorithms/test_sac.py",)
BULK = ("learning/test_bulk.py",)
LAGRANGIAN = ("algorithms/test_sac_lagrangian.py",)
ROWS = ("rllib/new_stack/test_transition_rows.py",)

NORMALIZATION = ("replay/test_normalization.py", "rllib/test_normalization.py")
HINDSIGHT = ("replay/test_hindsight.py",)
FORMS = ("networks/test_forms.py",)
OBSERVATIONS = ("tasks/test_observations.py",)

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "variance of merged samples without the shift of their means",
        "replay/normalization.py",
        " + delta.square() * self.count * number / total",
        "",
        NORMALIZATION,
    ),
    Mutation(
        "rewards centred",
        "replay/normalization.py",
        "scaled = reward.double() / (self",
        "scaled = (reward.double() - self.mean) / (self",
        NORMALIZATION,
    ),
    Mutation(
        "goals of earlier steps",
        "replay/hindsight.py",
        'which if self._strategy == "future" else 0',
        "0",
        HINDSIGHT,
    ),
    Mutation(
        "the next observation keeps its goal",
        "replay/hindsight.py",
        "rows[:, self._desired] = rows[:, self._next_desired] = goals",
        "rows[:, self._desired] = goals",
        HINDSIGHT,
    ),
    Mutation(
        "layer normalisation without its offset",
        "networks/normalized_critics.py",
        "torch.addcmul(offset, normal, gain)",
        "(normal * gain)",
        FORMS,
    ),
    Mutation(
        "one-hot vectors from 0",
        "tasks/observations.py",
        "numbers = array.reshape(-1) - starts",
        "numbers = array.reshape(-1) - 0 * starts",
        OBSERVATIONS,
    ),
    Mutation(
        "sign of the force",
        "samplers/forces.py",
        "return gradient / (-eps - ",
        "return gradient / (eps + ",
        HAMILTONIAN,
    ),
    Mutation(
        "first half kick missing",
        "samplers/leapfrog.py",
        "momentum = add_scaled(state.momentum, state.force, -0.5 * step_size)",
        "momentum = state.momentum",
        LEAPFROG,
    ),
    Mutation(
        "last half kick missing",
        "samplers/leapfrog.py",
        "LeapfrogState(action, add_scaled(momentum, new_force, -0.5 * step_size), new_force)",
        "LeapfrogState(action, momentum, new_force)",
        LEAPFROG,
    ),
    Mutation(
        "force evaluated before the drift",
        "samplers/leapfrog.py",
        "new_force = force(action)",
        "new_force = force(state.action)",
        LEAPFROG,
    ),
    Mutation(
        "tempering upside down",
        "samplers/tempering.py",
        "tuple(new / old for old, new",
        "tuple(old / new for old, new",
        ("samplers/test_tempering.py",),
    ),
    Mutation(
        "gate the wrong way round",
        "kernels/gated_force.py",
        "torch.lerp(transform, direction, gate)",
        "torch.lerp(direction, transform, gate)",
        ("samplers/test_forces.py",),
    ),
    Mutation(
        "chain's gradient without the second kick of a force",
        "kernels/gated_leapfrog.py",
        "(options.scale(k) + (not is_last))",
        "options.scale(k)",
        CHAIN,
    ),
    Mutation(
        "chain's gradient without the drift",
        "kernels/gated_leapfrog.py",
        "of_momentum = add_scaled(of_momentum, of_action, drift)",
        "pass",
        CHAIN,
    ),
    Mutation(
        "chain's gradient of the rows that have none",
        "kernels/gated_leapfrog.py",
        "rows = slice(ctx.detached_rows, None)",
        "rows = slice(0, None if ctx.detached_rows == 0 else -ctx.detached_rows)",
        CHAIN,
    ),
    Mutation(
        "temperature missing in the conventional force",
        "samplers/hamiltonian.py",
        "-gradient / alpha",
        "-gradient",
        HAMILTONIAN,
    ),
    Mutation(
        "exploration's momentum std in training",
        "samplers/hamiltonian.py",
        '"train": _chain(settings, settings.train_sampler, settings.momentum_std_train)',
        '"train": _chain(settings, settings.train_sampler, settings.momentum_std_explore)',
        HAMILTONIAN,
    ),
    Mutation(
        "momentum from the base policy's noise",
        "samplers/hamiltonian.py",
        'momentum_std * noise["momentum"]',
        'momentum_std * noise["base"]',
        HAMILTONIAN,
    ),
    Mutation(
        "actions not clipped",
        "samplers/hamiltonian.py",
        "clipped = action.clamp(-1.0, 1.0)\n        if self.settings.clip_gradient",
        "clipped = action\n        if self.settings.clip_gradient",
        HAMILTONIAN,
    ),
    Mutation(
        "momentum penalty although off",
        "samplers/hamiltonian.py",
        "self._momentum_penalty(momentum, alpha) if self.settings.momentum_penalty else None",
        "self._momentum_penalty(momentum, alpha)",
        HAMILTONIAN,
    ),
    Mutation(
        "tanh correction missing",
        "samplers/gaussian.py",
        "log_density - tanh_log_det(pre_tanh)",
        "log_density",
        ("samplers/test_gaussian.py",),
    ),
    Mutation(
        "tanh's derivative missing in the gradient of the log-density",
        "kernels/squash.py",
        "of_pre_tanh.addcmul_(action, of_log_density.unsqueeze(-1), value=2)",
        "pass",
        ("samplers/test_gaussian.py",),
    ),
    Mutation(
        "gradient of a log-std beyond its limits",
        "kernels/squash.py",
        ".mul_(is_inside)",
        "",
        ("samplers/test_gaussian.py",),
    ),
    Mutation(
        "sign of the flow's log-determinant",
        "samplers/radial_flow.py",
        "log_density - log_det",
        "log_density + log_det",
        UPDATE,
    ),
    Mutation(
        "flow's log-determinant without its last factor",
        "kernels/radial_flow.py",
        " + torch.log1p(layers.stretch * a * layers.h)",
        "",
        ("samplers/test_radial_flow.py",),
    ),
    Mutation(
        "flow's gradient that leaves out the radius",
        "kernels/radial_flow.py",
        "torch.addcmul(of_z * stretch_k, of_radii[-1] / radius_k, offsets[k])",
        "of_z * stretch_k",
        ("samplers/test_radial_flow.py",),
    ),
    Mutation(
        "maximum of the twins",
        "networks/critics.py",
        "return self._evaluate(action)[0].amin(0)",
        "return self._evaluate(action)[0].amax(0)",
        CRITICS,
    ),
    Mutation(
        "gradient of the larger twin",
        "kernels/q_networks.py",
        "torch.le(q[0], q[1], out=smaller[0])\n    torch.gt(q[0], q[1], out=smaller[1])",
        "torch.gt(q[0], q[1], out=smaller[0])\n    torch.le(q[0], q[1], out=smaller[1])",
        CRITICS,
    ),
    Mutation(
        "mask of a layer missing in the gradient of the action",
        "kernels/relu_mlp.py",
        "gradient = products.through_relu(products.product(gradient, weight), value)",
        "gradient = products.product(gradient, weight)",
        CRITICS,
    ),
    Mutation(
        "mask of a layer missing in the gradients of parameters",
        "kernels/relu_mlp.py",
        "gradient = products.through_relu(products.product(gradient, weights[k]), values[k])",
        "gradient = products.product(gradient, weights[k])",
        UPDATE,
    ),
    Mutation(
        "rows of the larger twin kept",
        "kernels/q_networks.py",
        "first_is_larger = q[0] > q[1]",
        "first_is_larger = q[0] < q[1]",
        CRITICS,
    ),
    Mutation(
        "gradient of the rows that have none",
        "kernels/relu_mlp.py",
        "gradient = grad_outputs[0][ctx.detached_rows :]",
        "gradient = grad_outputs[0][: len(grad_outputs[0]) - ctx.detached_rows]",
        UPDATE,
    ),
    Mutation(
        "online critics in the target",
        "algorithms/sac.py",
        "target_critics.rows(slice(0, len(batch.reward))).minimum(next_sample.action)",
        "model.critics.minimum(batch.next_obs, next_sample.action)",
        UPDATE,
    ),
    Mutation(
        "online critics in the force",
        "algorithms/sac.py",
        "target_critics = model.target_critics.condition(obs)",
        "target_critics = model.critics.condition(obs)",
        UPDATE,
    ),
    Mutation(
        "targets move though frozen",
        "optim/steps.py",
        "torch.rsub(frozen, tau, alpha=tau)",
        "tau",
        BULK,
    ),
    Mutation(
        "steps though frozen",
        "optim/adam.py",
        "found_inf=skip",
        "found_inf=None",
        BULK,
    ),
    Mutation(
        "termination bootstraps",
        "algorithms/losses.py",
        "torch.addcmul(reward, 1.0 - terminated, value, value=gamma)",
        "reward + gamma * value",
        LOSSES,
    ),
    Mutation(
        "sign of alpha in the target",
        "algorithms/losses.py",
        "torch.addcmul(next_q, alpha, next_log_prob, value=-1)",
        "torch.addcmul(next_q, alpha, next_log_prob)",
        LOSSES,
    ),
    Mutation(
        "sign of alpha in the objective",
        "algorithms/losses.py",
        "else alpha * log_prob - q",
        "else -alpha * log_prob - q",
        LOSSES,
    ),
    Mutation(
        "sign of the temperature loss",
        "algorithms/losses.py",
        "return -(log_alpha.exp()",
        "return (log_alpha.exp()",
        LOSSES,
    ),
    Mutation(
        "tau for 1 - tau",
        "optim/steps.py",
        "torch._foreach_lerp_(targets, onlines, tau)",
        "torch._foreach_lerp_(targets, onlines, 1 - tau)",
        UPDATE,
    ),
    Mutation(
        "truncated counts as terminated",
        "rllib/new_stack/env_runner.py",
        "= reward, terminated, True\n",
        "= reward, terminated or truncated, True\n",
        ROWS,
    ),
    Mutation(
        "successor from the next episode",
        "rllib/new_stack/env_runner.py",
        "writer.write(done, obs, actions, rewards, terminateds, next_obs, extras)",
        "writer.write(done, obs, actions, rewards, terminateds, self._obs[which], extras)",
        ROWS,
    ),
    Mutation(
        "rescaled actions stored",
        "rllib/new_stack/env_runner.py",
        "writer.write(done, obs, actions, rewards",
        "writer.write(done, obs, self._scaling.to_env(actions), rewards",
        ROWS,
    ),
    Mutation(
        "costs attract",
        "networks/critics.py",
        "gradient - self._weight * cost_gradient",
        "gradient + self._weight * cost_gradient",
        LAGRANGIAN,
    ),
    Mutation(
        "multiplier falls with costs",
        "algorithms/sac_lagrangian.py",
        "settings.lagrange_lr * (cost - settings.cost_limit)",
        "settings.lagrange_lr * (settings.cost_limit - cost)",
        LAGRANGIAN,
    ),
    Mutation(
        "episodes of the warm-up count",
        "algorithms/sac_lagrangian.py",
        "if episode.ended_at > self.settings.warmup_steps",
        "if episode.ended_at > 0",
        LAGRANGIAN,
    ),
    Mutation(
        "the shield takes the last action that passes",
        "samplers/shield.py",
        "passes = (value <= bound) & ~accepted",
        "passes = value <= bound",
        ("samplers/test_shield.py",),
    ),
    Mutation(
        "particles attract",
        "samplers/svgd.py",
        "-2 * kernel / h, differences",
        "2 * kernel / h, differences",
        ("samplers/test_svgd.py",),
    ),
    Mutation(
        "uniform actions without their density",
        "algorithms/soft_q.py",
        "-model.action_dim * math.log(2)",
        "0.0",
        ("algorithms/test_soft_q.py",),
    ),
    Mutation(
        "target copied an update late",
        "algorithms/soft_q.py",
        "if update % self.settings.copy_every == 0",
        "if update % self.settings.copy_every == 1",
        ("algorithms/test_soft_q.py",),
    ),
    Mutation(
        "successive halving keeps the wrong share",
        "experiments/tuning/halving.py",
        "1 - 1 / reduction_factor)",
        "1 / reduction_factor)",
        ("experiments/tuning/test_decisions.py",),
    ),
    Mutation(
        "a trial is judged at a rung again",
        "experiments/tuning/halving.py",
        "or _step_at(own, reached[-1]) != latest",
        "",
        ("experiments/tuning/test_decisions.py",),
    ),
    Mutation(
        "the best members copy the worst",
        "experiments/tuning/population.py",
        "best = ranked[-number:]",
        "best = ranked[:number]",
        ("experiments/tuning/test_decisions.py",),
    ),
    Mutation(
        "a perturbed setting leaves the space",
        "experiments/tuning/population.py",
        "return float(min(max(moved, low), high))",
        "return float(moved)",
        ("experiments/tuning/test_decisions.py",),
    ),
    Mutation(
        "the sampler draws the same after every resume",
        "experiments/tuning/study.py",
        'derived_seed(self._search.file.seed, "sampler", number)',
        'derived_seed(self._search.file.seed, "sampler")',
        ("experiments/tuning/test_decisions.py",),
    ),
    Mutation(
        "importances of returns at different steps",
        "analysis/search_figures.py",
        "next(row for row in rows if row.env_steps == step)",
        "rows[-1]",
        ("analysis/test_search_figures.py",),
    ),
    Mutation(
        "MuJoCo of other physics for a paper's task",
        "tasks/mujoco_version.py",
        "< MUJOCO_BELOW",
        "<= MUJOCO_BELOW",
        ("tasks/test_mujoco_version.py",),
    ),
)


def plant(mutation: Mutation, package: Path) -> str:
    """Replace the text in the copy of the package; return the file's original source."""
    file = package / mutation.path
    source = file.read_text()
    if (found := source.count(mutation.old)) != 1:
        raise MutationError(f"{mutation.name}: text found {found} times in {mutation.path}: {mutation.old!r}")
    file.write_text(source.replace(mutation.old, mutation.new))
    return source


def run_tests(root: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """Run test files of the copy below `root` until the first failure; return (exit code, output)."""
    environment = os.environ | {
        "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    options = "-x -q --no-header -p no:cacheprovider".split()
    command = [sys.executable, "-m", "pytest", *options, *(f"tests/{name}" for name in tests)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def copy_package(root: Path) -> Path:
    """Copy package, tests and pytest's configuration below `root`; return the copy of the package."""
    ignore = shutil.ignore_patterns("__pycache__")
    for folder in ("rllib_hpo", "tests"):
        shutil.copytree(ROOT / folder, root / folder, ignore=ignore)
    if (ROOT / "pyproject.toml").exists():
        shutil.copy(ROOT / "pyproject.toml", root)
    command = [sys.executable, "-c", "import rllib_hpo; print(rllib_hpo.__path__[0])"]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    if Path(done.stdout.strip()).resolve() != (root / "rllib_hpo").resolve():
        raise MutationError(f"the tests would import {done.stdout.strip()} instead of the copy")
    return root / "rllib_hpo"


def killer(mutation: Mutation, package: Path) -> str | None:
    """Return the first test that fails with the mutation planted, None if all pass."""
    source = plant(mutation, package)
    try:
        code, output = run_tests(package.parent, mutation.tests)
    finally:
        (package / mutation.path).write_text(source)
    failed = re.findall(r"^FAILED (\S+)", output, re.MULTILINE)
    if code == 0:
        return None
    if code != 1 or not failed:
        raise MutationError(f"{mutation.name}: pytest exited with {code}:\n{output[-2000:]}")
    return failed[0]


def main() -> int:
    """Run every mutation (or those whose names contain an argument); return the exit code."""
    chosen = [m for m in MUTATIONS if all(word in m.name for word in sys.argv[1:])]
    width = max((len(m.name) for m in chosen), default=0)
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        try:
            package = copy_package(Path(folder))
            code, output = run_tests(package.parent, tuple(sorted({t for m in chosen for t in m.tests})))
            if code:
                raise MutationError(f"the tests fail without any mutation:\n{output[-4000:]}")
            for mutation in chosen:
                test = killer(mutation, package)
                survivors += test is None
                print(f"{mutation.name:<{width}}  {'killed by ' + test if test else 'SURVIVED'}", flush=True)
        except MutationError as error:
            print(error, file=sys.stderr)
            return 2
    print(f"{len(chosen) - survivors} of {len(chosen)} mutations killed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
