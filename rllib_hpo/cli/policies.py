"""Use a trained policy: evaluate, watch, export or convert it, and show what its actions are like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Column, Table

from rllib_hpo.cli.console import console
from rllib_hpo.cli.options import Imports, import_all, path_argument, path_option
from rllib_hpo.errors import SettingsError
from rllib_hpo.settings import MAX_LEAPFROG_STEPS


def evaluate(
    checkpoint: Annotated[
        Path,
        path_argument(
            help="Checkpoint, run directory (its newest checkpoint) or exported policy (.safetensors)."
        ),
    ],
    episodes: Annotated[int, typer.Option(min=1, help="Number of noise-free episodes.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the episodes.")] = 0,
    video: Annotated[
        Path | None, path_option(help="Record one more episode as a video in this file (.mp4 or .gif).")
    ] = None,
    leapfrog_steps: Annotated[
        str | None,
        typer.Option(
            help="Play the episodes with each of these numbers of leapfrog steps, such as 0,1,2,3,5 (SAC-HPO).",
            show_default="those of training",
        ),
    ] = None,
    imports: Imports = None,
) -> None:
    """Play noise-free episodes with a trained policy. Checkpoints are pickles: load only those you trust."""
    import_all(imports)
    if leapfrog_steps is not None:
        if video is not None:
            raise SettingsError(
                "--leapfrog-steps and --video exclude each other: film with the steps of training."
            )
        _compare_steps(checkpoint, episodes, seed, leapfrog_steps)
        return
    from rllib_hpo.experiments.cluster.ray_session import quiet_ray
    from rllib_hpo.experiments.runs.evaluate import evaluate_checkpoint, film
    from rllib_hpo.results import cost_statistics, episode_statistics

    quiet_ray()
    played, manifest = evaluate_checkpoint(checkpoint, episodes, seed)
    statistics = episode_statistics(played.returns, played.lengths)
    console.print(
        f"{manifest['algorithm']} on {manifest['env']} after {manifest['env_steps']:,} steps: return "
        f"{statistics['return_mean']:.1f} ± {statistics['return_std']:.1f} over {episodes} episodes "
        f"(from {min(played.returns):.1f} to {max(played.returns):.1f}), "
        f"episode length {statistics['episode_length_mean']:.0f}",
        soft_wrap=True,
    )
    if played.successes:
        console.print(f"{sum(played.successes):.0f} of {len(played.successes)} episodes succeeded")
    if played.costs is not None:
        costs = cost_statistics(*played.costs, played.lengths)
        console.print(
            f"cost {costs['cost_mean']:.1f} ± {costs['cost_sd']:.1f}, discounted "
            f"{costs['cost_discounted_mean']:.1f}; limit {manifest['config']['cost_limit']:g} "
            f"({manifest['config']['cost_discounting']}), {100 * costs['violation_share']:.1f} % of the steps have "
            "a cost",
            soft_wrap=True,
        )
    if video is not None:
        console.print(f"{video} (return {film(checkpoint, video, seed):.1f})")


def _compare_steps(checkpoint: Path, episodes: int, seed: int, listed: str) -> None:
    """Play the same episodes with several numbers of leapfrog steps, and print a line for each."""
    from rllib_hpo.experiments.cluster.ray_session import quiet_ray
    from rllib_hpo.experiments.runs.evaluate import evaluate_checkpoint
    from rllib_hpo.results import episode_statistics

    numbers = [number.strip() for number in listed.split(",")]
    if not all(number.isdigit() and int(number) <= MAX_LEAPFROG_STEPS for number in numbers):
        raise SettingsError(
            f"--leapfrog-steps {listed} must be numbers from 0 to {MAX_LEAPFROG_STEPS:,}, for example 0,1,2,3."
        )
    quiet_ray()
    table = Table("leapfrog steps", *(Column(name, justify="right") for name in ("return", "episode length")))
    for number in map(int, numbers):
        played, manifest = evaluate_checkpoint(checkpoint, episodes, seed, leapfrog_steps=number)
        found = episode_statistics(played.returns, played.lengths)
        of_training = number == manifest["config"]["leapfrog_steps"]
        table.add_row(
            f"{number}{' (as trained)' if of_training else ''}",
            f"{found['return_mean']:,.1f} ± {found['return_std']:,.1f}",
            f"{found['episode_length_mean']:,.0f}",
        )
    console.print(
        f"{manifest['algorithm']} on {manifest['env']} after {manifest['env_steps']:,} steps, trained with "
        f"{manifest['config']['leapfrog_steps']} leapfrog steps; {episodes} noise-free episodes each",
        soft_wrap=True,
    )
    console.print(table)


def zoo() -> None:
    """List the trained policies that come with the package, with their returns and what trained them."""
    from rllib_hpo.experiments.runs.zoo import residents

    table = Table(
        "policy",
        "environment",
        Column("steps", justify="right"),
        Column("return", justify="right"),
        "trained by",
    )
    for one in residents():
        score = f"{one.return_mean:,.1f} ± {one.return_std:,.1f}"
        table.add_row(one.name, one.env_id, f"{one.env_steps:,}", score, one.command)
    console.print(table)
    console.print(
        "Returns: mean ± standard deviation over the episodes of the last evaluation, one seed. "
        "Watch one: rllib-hpo enjoy POLICY",
        soft_wrap=True,
    )


def enjoy(
    policy: Annotated[
        str, typer.Argument(help="A policy that `rllib-hpo zoo` lists, or an exported one (.safetensors).")
    ],
    episodes: Annotated[int, typer.Option(min=1, help="Episodes to play in the window.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the episodes.")] = 0,
    video: Annotated[
        Path | None, path_option(help="Film one episode into this file (.mp4 or .gif) instead.")
    ] = None,
    imports: Imports = None,
) -> None:
    """Watch a trained policy play noise-free episodes, in a window or as a film. The files hold no code."""
    import_all(imports)
    from rllib_hpo.deployment import load_policy_file
    from rllib_hpo.experiments.runs.zoo import film_policy, find_policy, play_in_window

    loaded = load_policy_file(find_policy(policy))
    if video is not None:
        played = [film_policy(loaded, video, seed)]
        console.print(str(video), soft_wrap=True)
    else:
        played = play_in_window(loaded, episodes, seed)
    for one in played:
        console.print(f"return {one.returns[0]:,.1f} in {one.lengths[0]:,} steps")


def export(
    checkpoint: Annotated[Path, path_argument(help="Checkpoint, or run directory (its newest checkpoint).")],
    format_: Annotated[str, typer.Option("--format", help="Format: torch-export, onnx or safetensors.")],
    out: Annotated[Path, path_option(help="File to write.")],
    imports: Imports = None,
) -> None:
    """Write the noise-free policy to a file: observation in, action within the environment's bounds out.

    Checkpoints are pickles: load only those you trust. The exported files are not.
    """
    import_all(imports)
    from rllib_hpo.experiments.cluster.ray_session import quiet_ray
    from rllib_hpo.experiments.storage.export import export_policy

    quiet_ray()
    for path in export_policy(checkpoint, format_, out):
        console.print(str(path), soft_wrap=True)


def convert(
    checkpoint: Annotated[Path, path_argument(help="Checkpoint, or run directory (its newest checkpoint).")],
    out: Annotated[Path, path_option(help="Directory of the new checkpoint.")],
    imports: Imports = None,
) -> None:
    """Turn a checkpoint of RLlib's new API stack into one of its old stack, or back; actions stay the same.

    Checkpoints are pickles: load only those you trust.
    """
    import_all(imports)
    from rllib_hpo.experiments.cluster.ray_session import quiet_ray
    from rllib_hpo.experiments.storage.checkpoints import find_checkpoint
    from rllib_hpo.rllib.converting import convert as convert_checkpoint

    quiet_ray()
    stack = convert_checkpoint(find_checkpoint(checkpoint), out)
    console.print(f"{out}: a checkpoint for RLlib's {stack} API stack", soft_wrap=True)


def policy_shape(
    policies: Annotated[
        list[Path],
        path_argument(
            help="Checkpoints, run directories, or policy files (.safetensors); several are drawn side by side."
        ),
    ],
    dims: Annotated[str, typer.Option(help="Two action dimensions to show, counted from 0.")] = "0,1",
    out: Annotated[
        Path, path_option(help="Figure file (.png, .pdf or .svg); the numbers are written beside it as .csv.")
    ] = Path("policy-shape.png"),
    mode: Annotated[
        Literal["explore", "train"], typer.Option(help="Momentum of exploration, or of training.")
    ] = "explore",
    actions: Annotated[int, typer.Option(min=1, help="Number of actions to draw.")] = 1_000,
    after_steps: Annotated[
        int, typer.Option(min=0, help="Steps of a noise-free episode before the state that is shown.")
    ] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the episode and the draws.")] = 0,
    imports: Imports = None,
) -> None:
    """Draw actions before and after the leapfrog over the contours of Q, and print how they differ.

    Several policies are drawn in the same state, from an episode of the last one. Checkpoints are pickles: load only
    those you trust. Exported policies are not.
    """
    import_all(imports)
    from rllib_hpo.analysis.policy_shape import write_policy_shape
    from rllib_hpo.deployment import load_policy_file

    first, _, second = dims.partition(",")
    if not (first.strip().isdigit() and second.strip().isdigit()):
        raise SettingsError(f"--dims {dims} must be two numbers, for example 0,1.")
    loaded = [
        load_policy_file(path) if path.suffix == ".safetensors" else _of_checkpoint(path) for path in policies
    ]
    chosen = int(first), int(second)
    path, numbers = write_policy_shape(
        loaded, out, chosen, mode=mode, num_actions=actions, after_steps=after_steps, seed=seed
    )
    _print_table(numbers)
    console.print(str(path), soft_wrap=True)


def gap(
    policies: Annotated[
        list[Path],
        path_argument(
            help="Checkpoints, run directories, policy files (.safetensors), or with --kept runs and sweeps."
        ),
    ],
    kept: Annotated[
        bool,
        typer.Option(
            "--kept", help="Measure every policy that these runs and sweeps kept (keep_policies_every)."
        ),
    ] = False,
    states: Annotated[int, typer.Option(min=1, help="States of each policy's own episodes.")] = 64,
    draws: Annotated[
        int, typer.Option(min=100, help="Actions to draw, and samples of the reference, in each state.")
    ] = 1_000,
    out: Annotated[Path, path_option(help="Folder for gap.parquet, gap.csv, gap.md and gap.png.")] = Path(
        "gap"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the episodes and of all draws.")] = 0,
    imports: Imports = None,
) -> None:
    """Measure how far policies are from exp(Q / alpha), the density that their own critics define.

    For SAC-HPO: after each leapfrog step, with the momentum of training and of exploration, and with none. Checkpoints
    are pickles: load only those you trust. Exported policies are not.
    """
    import_all(imports)
    from rllib_hpo.analysis.gap_files import write_gap
    from rllib_hpo.deployment import load_policy_file

    loaded = [
        load_policy_file(path) if path.suffix == ".safetensors" else _of_checkpoint(path)
        for path in (_kept_policies(policies) if kept else policies)
    ]
    numbers = write_gap(
        loaded,
        out,
        num_states=states,
        num_draws=draws,
        seed=seed,
        tell=lambda text: console.print(text, highlight=False, soft_wrap=True),
    )
    _print_table(numbers)
    console.print(str(out), soft_wrap=True)


def _kept_policies(directories: list[Path]) -> list[Path]:
    """Return the policy files of runs and sweeps, in the order of trials and steps."""
    found = []
    for directory in directories:
        own = sorted(directory.glob("policies/*.safetensors")) + sorted(
            directory.glob("trials/*/policies/*.safetensors")
        )
        if not own:
            raise SettingsError(
                f"{directory} has kept no policies: set keep_policies_every in the sweep file, or train with "
                "--keep-policies-every STEPS."
            )
        found += own
    return found


def trajectories(
    policies: Annotated[
        list[Path],
        path_argument(help="Checkpoints, run directories, or policy files (.safetensors)."),
    ],
    out: Annotated[
        Path, path_option(help="Figure file (.png, .pdf or .svg); the numbers are written beside it as .csv.")
    ] = Path("trajectories.png"),
    episodes: Annotated[int, typer.Option(min=1, help="Episodes per policy.")] = 100,
    actions: Annotated[
        Literal["explore", "evaluate"], typer.Option(help="Act as in training, or as in evaluations.")
    ] = "explore",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the episodes and of all noise.")] = 0,
    imports: Imports = None,
) -> None:
    """Draw the paths of policies on multi-goal, the snake or the quadruped, and print which goals they reach.

    Checkpoints are pickles: load only those you trust. Exported policies are not.
    """
    import_all(imports)
    from rllib_hpo.analysis.trajectories import write_trajectories
    from rllib_hpo.deployment import load_policy_file

    loaded = [
        load_policy_file(path) if path.suffix == ".safetensors" else _of_checkpoint(path) for path in policies
    ]
    path, numbers = write_trajectories(loaded, out, num=episodes, seed=seed, explores=actions == "explore")
    _print_table(numbers)
    console.print(str(path), soft_wrap=True)


def _print_table(numbers: Any) -> None:
    shown = Table(*(Column(name, overflow="fold") for name in numbers.columns))
    for row in numbers.rows:
        shown.add_row(*row)
    console.print(shown)
    console.print(numbers.note, soft_wrap=True)


def _of_checkpoint(path: Path) -> Any:
    """Load the policy of a checkpoint or run directory."""
    from rllib_hpo.experiments.cluster.ray_session import quiet_ray
    from rllib_hpo.experiments.storage.export import load_deployed

    quiet_ray()
    return load_deployed(path)
