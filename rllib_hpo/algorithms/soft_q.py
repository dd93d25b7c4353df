"""Implement soft Q-learning: a Q function, and a network that samples from exp(Q / alpha).

Haarnoja et al. 2017, arXiv 1702.08165, Algorithm 1. The authors' later code (github.com/haarnoja/softqlearning) differs
from the paper's appendix. Defaults are the code's; `docs/soft-q-learning.md` lists both sets.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NotRequired

import torch
from pydantic import ConfigDict, Field, model_validator
from torch import Tensor, nn
from typing_extensions import TypedDict, override

from rllib_hpo.algorithms.base import Actor, Memory, Method, Metrics, Noise, Remembered
from rllib_hpo.algorithms.footprint import (
    COPIES_LEARNED,
    COPIES_WITH_TARGET,
    FLOAT,
    Part,
    batch_part,
    policy_and_critics,
)
from rllib_hpo.algorithms.losses import bellman_target, critic_loss
from rllib_hpo.networks.normalized_critics import make_critics
from rllib_hpo.optim.steps import Steps
from rllib_hpo.replay.layout import Batch
from rllib_hpo.samplers.exploration import explored
from rllib_hpo.samplers.svgd import SamplingNetwork, Space, Width, direction, score
from rllib_hpo.settings import (
    HiddenUnits,
    NetworkSettings,
    PositiveFloat,
    PositiveInt,
    UnitInterval,
    layer_units,
)
from rllib_hpo.streams import Draw, TorchStreams, torch_generator

Annealing = TypedDict(
    "Annealing",
    {"from": PositiveFloat, "to": PositiveFloat, "steps": PositiveInt, "law": NotRequired[Literal["log"]]},
)
"""A number that changes from one value to another, linearly in its logarithm, over a number of environment steps."""
Annealing.__pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[attr-defined]
Shrinking = TypedDict(
    "Shrinking",
    {"from": PositiveInt, "to": PositiveInt, "steps": PositiveInt, "law": NotRequired[Literal["log"]]},
)
"""As `Annealing`, for a whole number."""
Shrinking.__pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[attr-defined]

CANDIDATES = 16
"""Actions among which `evaluation_action: best_of_particles` chooses the one with the largest Q."""
_LEAST_VOLUME = math.log(1e-3)
"""Bound on an action's weight in V, per action dimension; where f is singular the weight would be infinite."""


class SoftQSettings(NetworkSettings):
    """Soft Q-learning with the sizes of its authors' code."""

    sampler: ClassVar[str] = "svgd"
    changeable: ClassVar[frozenset[str]] = NetworkSettings.changeable | frozenset(
        "alpha critic_lr copy_every svgd_space kernel kernel_width kernel_floor exploration_noise ou_theta".split()
    )

    tau: Annotated[
        UnitInterval, Field(description="Polyak rate of the target critics; 1 copies the critics.")
    ] = 1.0
    train_batch_size_per_learner: Annotated[
        PositiveInt,
        Field(description="Batch size of each learner; an update with N learners uses N such batches."),
    ] = 128
    hidden_units: HiddenUnits = 128
    policy_activation: Annotated[
        Literal["relu"],
        Field(description="Only 'relu': the sampling network's density is that of a ReLU network."),
    ] = "relu"
    policy_layers: Annotated[int, Field(ge=1, le=4, description="Hidden layers of the sampling network.")] = 2
    alpha: Annotated[
        PositiveFloat | Annealing,
        Field(
            description="Temperature: a number, or {from, to, steps} to anneal its logarithm linearly over the "
            "first `steps` environment steps. The authors' reward scale c corresponds to alpha = 1 / "
            "c."
        ),
    ] = 0.1
    critic_lr: Annotated[
        PositiveFloat | None,
        Field(description="Adam learning rate of the critics; null: lr, that of the sampling network."),
    ] = None
    num_critics: Annotated[int, Field(ge=1, le=10, description="Number of critics; Q is their minimum.")] = 1
    copy_every: Annotated[
        PositiveInt, Field(description="Updates between updates of the target critics.")
    ] = 1_000
    particles: Annotated[
        int,
        Field(
            ge=2, le=10_000, description="Number M of fixed SVGD particles, at which scores are evaluated."
        ),
    ] = 16
    particles_updated: Annotated[
        int,
        Field(
            ge=1, le=10_000, description="Number K of SVGD particles that are moved, and train the network."
        ),
    ] = 16
    value_particles: Annotated[
        int, Field(ge=1, le=10_000, description="Number of actions from which V is estimated.")
    ] = 16
    value_proposal: Annotated[
        Literal["uniform", "sampler"],
        Field(
            description="Distribution of these actions: uniform, or the sampling network, weighted by its density "
            "from the Jacobian of f."
        ),
    ] = "uniform"
    value_uniform_updates: Annotated[
        int,
        Field(
            ge=0, lt=2**53, description="Initial updates that estimate V from uniform actions in any case."
        ),
    ] = 10_000
    svgd_space: Annotated[
        Space,
        Field(
            description="Space of the particles: 'action', 'pre_tanh', or 'official', the mixture of both in the "
            "authors' code, which keeps particles off the bounds."
        ),
    ] = "official"
    kernel: Annotated[
        Literal["gaussian", "none"],
        Field(
            description="'none': each particle follows its own score, towards a mode (maximum a posteriori)."
        ),
    ] = "gaussian"
    kernel_width: Annotated[
        Width,
        Field(
            description="Median squared distance divided by log M ('official') or by 2 log(M + 1) ('paper')."
        ),
    ] = "official"
    kernel_floor: Annotated[PositiveFloat, Field(description="Minimum width of the kernel.")] = 1e-3
    noise_set: Annotated[
        PositiveInt | Shrinking | None,
        Field(
            description="Size of a fixed set of vectors from which the network's noise is drawn, or {from, to, "
            "steps} for a set that shrinks to its first vectors; null: Gaussian noise."
        ),
    ] = None
    exploration_noise: Annotated[
        float,
        Field(
            ge=0, allow_inf_nan=False, description="Std of noise added to the network's actions in training."
        ),
    ] = 0.0
    exploration_process: Annotated[
        Literal["normal", "ou"],
        Field(description="Exploration noise: independent at each step, or an Ornstein-Uhlenbeck process."),
    ] = "normal"
    ou_theta: Annotated[
        float,
        Field(gt=0, le=1, description="Mean-reversion rate of the Ornstein-Uhlenbeck process, per step."),
    ] = 0.15
    evaluation_action: Annotated[
        Literal["sample", "zero_noise", "best_of_particles"],
        Field(
            description="Action in evaluations: a draw (from the episode's own random stream), the network's "
            "output for zero noise, which is not a mode, or the draw with the largest Q of "
            f"{CANDIDATES}."
        ),
    ] = "sample"

    @model_validator(mode="before")
    @classmethod
    def _refuse_auto(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("alpha") == "auto":
            raise ValueError(
                "alpha='auto' cannot be tuned: the sampler of soft Q-learning has no density from which to "
                "estimate its entropy. Set alpha to a number, or to {from, to, steps}"
            )
        return values

    @model_validator(mode="after")
    def _check_proposal(self) -> SoftQSettings:
        if self.value_proposal == "sampler" and self.noise_set is not None:
            raise ValueError(
                "value_proposal='sampler' requires a density, which a finite noise_set does not have: set "
                "with value_proposal='uniform' or noise_set=null"
            )
        return self

    @override
    def evaluation_sampler(self) -> str:
        """Name the sampler, and how the evaluated action was chosen."""
        return f"{self.sampler} ({self.evaluation_action})"

    @override
    def notices(self) -> list[str]:
        """List settings without effect."""
        no_kernel = "with kernel='none'" if self.kernel == "none" else ""
        is_process = self.exploration_process == "ou" and self.exploration_noise > 0
        why = {
            "particles": no_kernel,
            "kernel_width": no_kernel,
            "kernel_floor": no_kernel,
            "value_uniform_updates": "with value_proposal='uniform'"
            if self.value_proposal == "uniform"
            else "",
            "ou_theta": "" if is_process else "without Ornstein-Uhlenbeck noise",
        }
        return [
            f"{name} has no effect {reason}."
            for name, reason in why.items()
            if reason and getattr(self, name) != type(self).model_fields[name].default
        ]

    def updates_to_steps(self, num_updates: Tensor) -> Tensor:
        """Return the environment steps at which this many updates have been made."""
        rate = self.update_to_data
        return self.warmup_steps + num_updates / rate if rate else num_updates + self.warmup_steps


def annealed(schedule: Mapping[str, Any], env_steps: Tensor) -> Tensor:
    """Return the value at step t: from * (to / from)^(t / steps), and `to` after `steps`; a scalar like `env_steps`."""
    progress = (env_steps / schedule["steps"]).clamp(0, 1)
    logarithm = math.log(schedule["from"]) + progress * math.log(schedule["to"] / schedule["from"])
    return logarithm.exp()


class SoftQActor(Actor):
    """Hold the sampling network, the target critics, and the number of updates made.

    The set of noise vectors has a stream of the same seed as the initial weights.
    """

    settings: SoftQSettings
    num_updates: Tensor
    noise_set: Tensor

    def __init__(self, obs_dim: int, action_dim: int, settings: SoftQSettings, seed: int) -> None:
        super().__init__(obs_dim, action_dim, settings)
        units = settings.hidden_units
        stream = torch_generator(seed, "initial weights", "sampler")
        self.sampler = SamplingNetwork(obs_dim, action_dim, units, settings.policy_layers, stream)
        stream = torch_generator(seed, "initial weights", "critics")
        critics = make_critics(obs_dim, action_dim, settings, stream, settings.num_critics)
        self.target_critics = critics.requires_grad_(False)
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.float64))
        size = settings.noise_set["from"] if isinstance(settings.noise_set, dict) else settings.noise_set
        if size is not None:
            largest = max(size, settings.noise_set["to"] if isinstance(settings.noise_set, dict) else size)
            generator = torch_generator(seed, "noise set")
            self.register_buffer("noise_set", torch.randn((largest, action_dim), generator=generator))

    @property
    @override
    def acting(self) -> nn.Module:
        return self.sampler

    @property
    @override
    def memory(self) -> Mapping[str, Remembered]:
        """The noise of an evaluation's action, and the state of the exploration process."""
        settings, held = self.settings, {}
        if settings.evaluation_action != "zero_noise":
            number = (CANDIDATES,) if settings.evaluation_action == "best_of_particles" else ()
            held["latent"] = Remembered((*number, self.action_dim), drawn=True)
        if settings.exploration_noise and settings.exploration_process == "ou":
            held["noise"] = Remembered((self.action_dim,), only_exploring=True)
        return held

    @property
    def alpha(self) -> Tensor:
        """The temperature after the updates made so far, a scalar without gradient."""
        alpha, like = self.settings.alpha, next(self.target_critics.parameters())
        if isinstance(alpha, dict):
            return annealed(alpha, self.settings.updates_to_steps(self.num_updates)).to(like.dtype)
        return like.new_full((), alpha)

    @property
    def noise_set_size(self) -> Tensor:
        """Number of noise vectors in use, at least 1; a float64 scalar."""
        size = self.settings.noise_set
        if isinstance(size, dict):
            steps = self.settings.updates_to_steps(self.num_updates)
            return annealed(size, steps).round().clamp(min=1)
        return self.num_updates.new_full((), len(self.noise_set))

    def latent(self, drawn: Tensor) -> Tensor:
        """Return the network's noise (..., A): the standard normals (..., A), or vectors of the set that they index."""
        if self.settings.noise_set is None:
            return drawn
        quantile, size = (
            (1 + torch.erf(drawn[..., 0] / math.sqrt(2))) / 2,
            self.noise_set_size.to(drawn.dtype),
        )
        index = torch.minimum(quantile * size, size - 1).floor()
        return self.noise_set[index.long()]

    def actions(self, obs: Tensor, drawn: Tensor) -> Tensor:
        """Return actions (B, N, A) for obs (B, S) and standard normals (B, N, A)."""
        return torch.tanh(self.sampler(obs, self.latent(drawn)))

    @override
    def forward(self, obs: Tensor, memory: Memory | None = None) -> Tensor:
        """Return the action of the drawn noise, or of zero noise. See `Actor.forward`."""
        drawn = self.begin(obs, explores=False) if memory is None else memory
        if "latent" not in drawn:
            return self.actions(obs, obs.new_zeros(obs.shape[0], 1, self.action_dim)).squeeze(1)
        if self.settings.evaluation_action == "sample":
            return self.actions(obs, drawn["latent"].unsqueeze(1)).squeeze(1)
        candidates = self.actions(obs, drawn["latent"])
        states = obs.repeat_interleave(CANDIDATES, 0)
        q = self.target_critics.minimum(states, candidates.flatten(0, 1)).view(-1, CANDIDATES)
        best = q.argmax(-1)[:, None, None].expand(-1, 1, self.action_dim)
        return candidates.gather(1, best).squeeze(1)

    @override
    def explore(self, obs: Tensor, streams: TorchStreams, memory: Memory) -> Tensor:
        """See `Actor.explore`."""
        settings, generator = self.settings, streams["latent"]
        shape = (len(obs), 1, self.action_dim)
        drawn = torch.randn(shape, generator=generator, device=generator.device).to(obs.device)
        action = self.actions(obs, drawn).squeeze(1)
        if not settings.exploration_noise:
            return action
        return explored(action, streams["action"], settings.exploration_noise, settings.ou_theta, memory)


class SoftQModel(SoftQActor):
    """Add online critics, initially equal to the targets, to the actor."""

    def __init__(self, obs_dim: int, action_dim: int, settings: SoftQSettings, seed: int) -> None:
        super().__init__(obs_dim, action_dim, settings, seed)
        self.critics = copy.deepcopy(self.target_critics).requires_grad_(True)


class SoftQ(Method[SoftQSettings, SoftQModel]):
    """Update critics and sampling network, and copy the target critics at every `copy_every`-th update."""

    actor_class = SoftQActor
    model_class = SoftQModel

    @override
    def trained(self, model: SoftQModel) -> Mapping[str, Sequence[Tensor]]:
        return {"critic": list(model.critics.parameters()), "policy": list(model.sampler.parameters())}

    @override
    def learning_rate(self, loss: str) -> float:
        rate = self.settings.critic_lr if loss == "critic" else None
        return self.settings.lr if rate is None else rate

    @override
    def draws(self, model: SoftQModel) -> Mapping[str, Draw]:
        settings, dim = self.settings, model.action_dim
        proposals = {"value": Draw(1, (settings.value_particles, dim), "uniform")}
        if settings.value_proposal == "sampler":
            proposals["value latent"] = Draw(1, (settings.value_particles, dim))
        return proposals | {"particles": Draw(1, (self._num_fixed + settings.particles_updated, dim))}

    @property
    def _num_fixed(self) -> int:
        return 0 if self.settings.kernel == "none" else self.settings.particles

    @override
    def kind(self, update: int) -> str:
        is_uniform = (
            self.settings.value_proposal == "uniform" or update <= self.settings.value_uniform_updates
        )
        proposal = "uniform" if is_uniform else "sampler"
        return f"{proposal} and copy" if update % self.settings.copy_every == 0 else proposal

    @override
    def update(self, model: SoftQModel, batch: Batch, noise: Noise, steps: Steps, kind: str) -> Metrics:
        alpha = model.alpha
        value = self.value(model, batch.next_obs, noise, alpha, kind.split()[0])
        target = bellman_target(batch.reward, batch.terminated, value, None, None, self.settings.gamma)
        q = model.critics(batch.obs, batch.action)
        loss_critic = critic_loss(q, target)
        steps.descend("critic", loss_critic)

        loss_policy = self.policy_loss(model, batch.obs, noise["particles"], alpha)
        steps.descend("policy", loss_policy)

        if kind.endswith("copy"):
            steps.track(model.target_critics, model.critics, self.settings.tau)
        steps.assign(model.num_updates, model.num_updates + 1)
        return {
            "critic_loss": loss_critic.detach(),
            "policy_loss": loss_policy.detach(),
            "q_mean": q.detach().mean(),
            "value_mean": value.mean(),
            "alpha": alpha,
        }

    @torch.no_grad()
    def value(self, model: SoftQModel, obs: Tensor, noise: Noise, alpha: Tensor, proposal: str) -> Tensor:
        """Return V(s) = alpha log E_q[exp(Q(s, a) / alpha) / q(a)], (B,), of the target critics.

        Haarnoja et al. 2017, eq. (10).

        Args:
            model: The model.
            obs: States, (B, S).
            noise: Random numbers as `draws` declares them.
            alpha: The temperature.
            proposal: The distribution q: "uniform" on the box, with density 2^-A, or "sampler", the sampling network,
                with density N(xi; 0, I) / |det(d a / d xi)| at its own draws, as if f were invertible.
        """
        if proposal == "uniform":
            action = 2 * noise["value"] - 1
            log_density = action.new_full(action.shape[:2], -model.action_dim * math.log(2))
        else:
            latent = noise["value latent"]
            action, log_volume = model.sampler.log_volume(obs, latent)
            log_normal = -0.5 * (latent.square() + math.log(2 * math.pi)).sum(-1)
            log_density = log_normal - log_volume.clamp(min=model.action_dim * _LEAST_VOLUME)
        number = action.shape[1]
        states = obs.repeat_interleave(number, 0)
        q = model.target_critics.minimum(states, action.flatten(0, 1)).view(-1, number)
        return alpha * (torch.logsumexp(q / alpha - log_density, -1) - math.log(number))

    def policy_loss(self, model: SoftQModel, obs: Tensor, drawn: Tensor, alpha: Tensor) -> Tensor:
        """Return a scalar whose gradient is minus SVGD's direction through the sampling network, eqs. (13) and (14).

        It is summed over moved particles and action dimensions, and averaged over states.

        Args:
            model: The model; its sampling network and online critics are used.
            obs: States, (B, S).
            drawn: Standard normals, (B, M + K, A).
            alpha: The temperature.
        """
        settings, latent = self.settings, model.latent(drawn)
        num_fixed = self._num_fixed
        moved = model.sampler(obs, latent[:, num_fixed:])
        # Scores are those of the fixed particles; without a kernel there are only moved particles.
        with torch.no_grad():
            fixed = model.sampler(obs, latent[:, :num_fixed]) if num_fixed else moved
            scored = torch.tanh(fixed)
        states = obs.repeat_interleave(scored.shape[1], 0)
        _, gradient = model.critics.condition(states).minimum_and_gradient(scored.flatten(0, 1))
        scores = score(scored, gradient.view_as(scored) / alpha, settings.svgd_space)
        if settings.svgd_space != "pre_tanh":
            moved, fixed = torch.tanh(moved), scored
        if settings.kernel == "none":
            ascent = scores
        else:
            ascent = direction(fixed, scores, moved.detach(), settings.kernel_width, settings.kernel_floor)
        return -(ascent * moved).sum((1, 2)).mean()

    @override
    @torch.no_grad()
    def diagnose(self, model: SoftQModel, batch: Batch, noise: Noise) -> Metrics:
        action = model.actions(batch.obs, noise["particles"])
        size = {} if self.settings.noise_set is None else {"noise_set_size": model.noise_set_size}
        return {
            "action_std": action.std(1, unbiased=False).mean(),
            "action_near_border": (action.abs() > 0.95).double().mean(),
            **size,
        }

    @override
    def actor_parts(self, obs_dim: int, action_dim: int) -> list[Part]:
        """Return the sizes of the sampling network and the target critics."""
        settings = self.settings
        return [_networks(settings, obs_dim, action_dim, policies=1, critics=1)]

    @override
    def learner_parts(self, obs_dim: int, action_dim: int) -> list[Part]:
        """Return the sizes of all networks with their optimizers, of a batch, and of its particles."""
        settings = self.settings
        batch = batch_part(settings, obs_dim, action_dim)
        of_each_state = FLOAT * settings.train_batch_size_per_learner * _widest(settings)
        pairs = (
            FLOAT * settings.train_batch_size_per_learner * settings.particles * settings.particles_updated
        )
        return [
            _networks(settings, obs_dim, action_dim, policies=COPIES_LEARNED, critics=COPIES_WITH_TARGET),
            batch,
            Part(of_each_state * (settings.particles + settings.particles_updated), "particles"),
            Part(pairs * action_dim if settings.kernel == "gaussian" else 0, "particles_updated"),
            Part(of_each_state * settings.value_particles, "value_particles"),
        ]


def _widest(settings: SoftQSettings) -> int:
    return max(layer_units(settings.hidden_units, 1))


def _networks(settings: SoftQSettings, obs_dim: int, action_dim: int, policies: int, critics: int) -> Part:
    return policy_and_critics(
        settings,
        obs_dim + action_dim,  # inputs of the sampling network; critics have no fewer
        0,
        copies_of_policy=policies,
        copies_of_critics=critics,
        policy_outputs=action_dim,
        num_critics=settings.num_critics,
    )
