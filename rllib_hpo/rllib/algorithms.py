"""The public classes of each algorithm: an RLlib Algorithm and its config. A new algorithm adds a pair here."""

from __future__ import annotations

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.utils.annotations import override

from rllib_hpo.algorithms.registry import find_settings
from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
from rllib_hpo.rllib.config import ActorCriticConfig


class SACGaussian(ActorCriticAlgorithm):
    """SAC as published: a tanh-Gaussian policy. RLlib's own SAC keeps its name in Tune's registry."""

    @classmethod
    @override(Algorithm)
    def get_default_config(cls) -> ActorCriticConfig:
        return SACGaussianConfig()


class SACGaussianConfig(ActorCriticConfig):
    """Config of `SACGaussian`."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__("sac", algo_class or SACGaussian)


class SACNF(ActorCriticAlgorithm):
    """SAC with radial flows between the Gaussian and the tanh."""

    @classmethod
    @override(Algorithm)
    def get_default_config(cls) -> ActorCriticConfig:
        return SACNFConfig()


class SACNFConfig(ActorCriticConfig):
    """Config of `SACNF`."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__("sac-nf", algo_class or SACNF)


class SACHPO(ActorCriticAlgorithm):
    """SAC with a Hamiltonian policy (arXiv 2103.12020)."""

    @classmethod
    @override(Algorithm)
    def get_default_config(cls) -> ActorCriticConfig:
        return SACHPOConfig()


class SACHPOConfig(ActorCriticConfig):
    """Config of `SACHPO`."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__("sac-hpo", algo_class or SACHPO)


class TD3(ActorCriticAlgorithm):
    """Twin delayed DDPG (arXiv 1802.09477)."""

    @classmethod
    @override(Algorithm)
    def get_default_config(cls) -> ActorCriticConfig:
        return TD3Config()


class TD3Config(ActorCriticConfig):
    """Config of `TD3`."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__("td3", algo_class or TD3)


class DDPG(ActorCriticAlgorithm):
    """Deep deterministic policy gradient (arXiv 1509.02971)."""

    @classmethod
    @override(Algorithm)
    def get_default_config(cls) -> ActorCriticConfig:
        return DDPGConfig()


class DDPGConfig(ActorCriticConfig):
    """Config of `DDPG`."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__("ddpg", algo_class or DDPG)


class MCMCPO(ActorCriticAlgorithm):
    """MCMC policy optimization: Hamiltonian steps near the previous policy."""

    @classmethod
    @override(Algorithm)
    def get_default_config(cls) -> ActorCriticConfig:
        return MCMCPOConfig()


class MCMCPOConfig(ActorCriticConfig):
    """Config of `MCMCPO`."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__("mcmc-po", algo_class or MCMCPO)


class LangevinPO(ActorCriticAlgorithm):
    """MCMC policy optimization of a deterministic policy, by a Langevin flow."""

    @classmethod
    @override(Algorithm)
    def get_default_config(cls) -> ActorCriticConfig:
        return LangevinPOConfig()


class LangevinPOConfig(ActorCriticConfig):
    """Config of `LangevinPO`."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__("langevin-po", algo_class or LangevinPO)


class SACLagrangian(ActorCriticAlgorithm):
    """SAC under a limit on costs (arXiv 2103.12020, V-B)."""

    @classmethod
    @override(Algorithm)
    def get_default_config(cls) -> ActorCriticConfig:
        return SACLagrangianConfig()


class SACLagrangianConfig(ActorCriticConfig):
    """Config of `SACLagrangian`."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__("sac-lagrangian", algo_class or SACLagrangian)


class SACHPOLagrangian(ActorCriticAlgorithm):
    """SAC-HPO under a limit on costs, with a shield (arXiv 2103.12020, Algorithm 3)."""

    @classmethod
    @override(Algorithm)
    def get_default_config(cls) -> ActorCriticConfig:
        return SACHPOLagrangianConfig()


class SACHPOLagrangianConfig(ActorCriticConfig):
    """Config of `SACHPOLagrangian`."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__("sac-hpo-lagrangian", algo_class or SACHPOLagrangian)


class SoftQ(ActorCriticAlgorithm):
    """Soft Q-learning: a policy of several modes, drawn by a network that SVGD trains."""

    @classmethod
    @override(Algorithm)
    def get_default_config(cls) -> ActorCriticConfig:
        return SoftQConfig()


class SoftQConfig(ActorCriticConfig):
    """Config of `SoftQ`."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__("soft-q", algo_class or SoftQ)


class SACAE(ActorCriticAlgorithm):
    """SAC from images, with an autoencoder (arXiv 1910.01741)."""

    @classmethod
    @override(Algorithm)
    def get_default_config(cls) -> ActorCriticConfig:
        return SACAEConfig()


class SACAEConfig(ActorCriticConfig):
    """Config of `SACAE`."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__("sac-ae", algo_class or SACAE)


class SACAEHPO(ActorCriticAlgorithm):
    """SAC-AE with a Hamiltonian policy."""

    @classmethod
    @override(Algorithm)
    def get_default_config(cls) -> ActorCriticConfig:
        return SACAEHPOConfig()


class SACAEHPOConfig(ActorCriticConfig):
    """Config of `SACAEHPO`."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__("sac-ae-hpo", algo_class or SACAEHPO)


CONFIGS: dict[str, type[ActorCriticConfig]] = {
    "sac": SACGaussianConfig,
    "sac-nf": SACNFConfig,
    "sac-hpo": SACHPOConfig,
    "td3": TD3Config,
    "ddpg": DDPGConfig,
    "mcmc-po": MCMCPOConfig,
    "langevin-po": LangevinPOConfig,
    "sac-lagrangian": SACLagrangianConfig,
    "sac-hpo-lagrangian": SACHPOLagrangianConfig,
    "soft-q": SoftQConfig,
    "sac-ae": SACAEConfig,
    "sac-ae-hpo": SACAEHPOConfig,
}
"""Config class of each built-in algorithm; others are an `ActorCriticConfig` with their name."""


def make_config(algorithm: str) -> ActorCriticConfig:
    """A config of any registered algorithm.

    Raises:
        UnknownNameError: Naming the nearest algorithm.
    """
    find_settings(algorithm)
    return CONFIGS[algorithm]() if algorithm in CONFIGS else ActorCriticConfig(algorithm)
