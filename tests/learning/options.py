"""List every option of every algorithm that changes an update, for three action dimensions."""

from __future__ import annotations

from typing import Any

from rllib_hpo.algorithms.langevin_po import LangevinPOSettings
from rllib_hpo.algorithms.mcmc_po import MCMCPOSettings
from rllib_hpo.algorithms.sac_lagrangian import SACHPOLagrangianSettings, SACLagrangianSettings
from rllib_hpo.algorithms.soft_q import SoftQSettings
from rllib_hpo.algorithms.td3 import DDPGSettings, TD3Settings
from rllib_hpo.costs import TorqueCost
from rllib_hpo.settings import ActorCriticSettings, SACHPOSettings, SACNFSettings, SACSettings, Settings

HPO: dict[str, Any] = {"leapfrog_units": 8, "leapfrog_steps": 2, "step_size": 0.25, "momentum_std_train": 0.5}
COST: dict[str, Any] = {"cost": TorqueCost(), "cost_limit": 0.5}
SETTINGS: dict[str, ActorCriticSettings] = {
    "sac": SACSettings(hidden_units=16),
    "sac, automatic temperature": SACSettings(hidden_units=16, alpha="auto", initial_alpha=0.3),
    "sac, target entropy": SACSettings(hidden_units=16, alpha="auto", target_entropy=-1.0),
    "sac, target critics in the objective": SACSettings(hidden_units=16, objective_critic="target"),
    "sac, three critic layers": SACSettings(hidden_units=16, critic_layers=3, policy_layers=1),
    "sac, two widths, tanh, layer normalisation": SACSettings(
        hidden_units=[16, 12], policy_activation="tanh", critic_layer_norm=True
    ),
    "sac-nf": SACNFSettings(hidden_units=16, num_flows=3),
    "sac-nf, automatic temperature": SACNFSettings(hidden_units=16, num_flows=3, alpha="auto"),
    "sac-hpo": SACHPOSettings(hidden_units=16, **HPO),
    "sac-hpo, three steps, two layers": SACHPOSettings(
        hidden_units=16, **HPO | {"leapfrog_steps": 3, "policy_layers": 2}
    ),
    "sac-hpo, no steps": SACHPOSettings(hidden_units=16, **HPO | {"leapfrog_steps": 0}),
    "sac-hpo, penalty": SACHPOSettings(hidden_units=16, momentum_penalty=True, **HPO),
    "sac-hpo, heating": SACHPOSettings(hidden_units=16, tempering=True, tempering_allow_heating=True, **HPO),
    "sac-hpo, cooling and penalty": SACHPOSettings(
        hidden_units=16, tempering=True, momentum_penalty=True, **HPO | {"momentum_std_train": 1.5}
    ),
    "sac-hpo, conventional": SACHPOSettings(
        hidden_units=16, force_scale="inverse_temperature", force_gate="none", **HPO
    ),
    "sac-hpo, gradient over temperature": SACHPOSettings(
        hidden_units=16, force_scale="inverse_temperature", **HPO
    ),
    "sac-hpo, gradient over automatic temperature": SACHPOSettings(
        hidden_units=16, force_scale="inverse_temperature", alpha="auto", **HPO
    ),
    "sac-hpo, unit gradient without gate": SACHPOSettings(hidden_units=16, force_gate="none", **HPO),
    "sac-hpo, learned step size": SACHPOSettings(
        hidden_units=16, learn_step_size=True, **HPO | {"step_size": [0.125, 0.25, 0.5]}
    ),
    "sac-hpo, consistent mass": SACHPOSettings(hidden_units=16, mass_matrix="consistent", **HPO),
    "sac-hpo, automatic temperature": SACHPOSettings(hidden_units=16, alpha="auto", **HPO),
    "sac-hpo, target critics in the objective": SACHPOSettings(
        hidden_units=16, objective_critic="target", **HPO
    ),
    "sac-hpo, straight through": SACHPOSettings(
        hidden_units=16,
        clip_gradient="straight_through",
        **HPO | {"step_size": 0.5, "momentum_std_train": 1.5},
    ),
    "sac-hpo, no state input": SACHPOSettings(hidden_units=16, leapfrog_state_input=False, **HPO),
    "sac-hpo, no momentum noise": SACHPOSettings(hidden_units=16, momentum_noise=False, **HPO),
    "sac-hpo, normalised, two widths, elu": SACHPOSettings(
        hidden_units=[16, 12],
        policy_activation="elu",
        normalize_observations=True,
        normalize_rewards=True,
        **HPO,
    ),
    "sac-hpo, gaussian in training": SACHPOSettings(hidden_units=16, train_sampler="gaussian", **HPO),
}
"""Options of the soft actor-critics."""
FEW: dict[str, Any] = {"particles": 4, "particles_updated": 3, "value_particles": 5}
ANNEALED: Any = {"from": 1.0, "to": 0.01, "steps": 20}
SHRINKING: Any = {"from": 8, "to": 1, "steps": 20}
OTHERS: dict[str, Settings] = {
    "td3": TD3Settings(hidden_units=16),
    "td3, every third": TD3Settings(hidden_units=16, policy_delay=3, num_critics=3, critic_lr=1e-3),
    "ddpg": DDPGSettings(hidden_units=16),
    "ddpg, two widths, silu, layer normalisation": DDPGSettings(
        hidden_units=[16, 12], policy_activation="silu", critic_layer_norm=True
    ),
    "mcmc-po, gated, in turn, snapshots": MCMCPOSettings(
        hidden_units=16, force_gate="gated", alternate=True, prior="snapshot", prior_every=2, leapfrog_steps=1
    ),
    "langevin-po": LangevinPOSettings(hidden_units=16, initial_kappa=1.0),
    "sac-lagrangian, pid": SACLagrangianSettings(
        hidden_units=16, lagrange="pid", lagrange_rescale=True, lagrange_every=3, cost_critics=2, **COST
    ),
    "sac-hpo-lagrangian": SACHPOLagrangianSettings(
        hidden_units=16, lagrange_every=3, terminated_cost=1.0, **HPO | {"leapfrog_steps": 3}, **COST
    ),
    "soft-q": SoftQSettings(hidden_units=16, copy_every=3, **FEW),
    "soft-q, by the sampler": SoftQSettings(
        hidden_units=16, copy_every=2, value_proposal="sampler", value_uniform_updates=0, **FEW
    ),
    "soft-q, as in the paper": SoftQSettings(
        hidden_units=16, copy_every=2, svgd_space="action", kernel_width="paper", critic_lr=1e-3, **FEW
    ),
    "soft-q, annealed, before the tanh": SoftQSettings(
        hidden_units=16, svgd_space="pre_tanh", alpha=ANNEALED, noise_set=SHRINKING, warmup_steps=1, **FEW
    ),
    "soft-q, no kernel, two critics": SoftQSettings(
        hidden_units=16, kernel="none", num_critics=2, tau=0.5, copy_every=1, **FEW
    ),
}
"""Options of all other algorithms."""
