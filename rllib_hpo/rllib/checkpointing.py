"""Write and verify atomic checkpoints: a manifest with checksums is written last.

A checkpoint directory is RLlib's own (so `Algorithm.from_checkpoint` and Tune read it) and, beside it,
`manifest.json`: the files with their checksums, the replay's segments, and what the checkpoint belongs to.
With several learners each has its segments in a folder of its own, `shard-0` and so on, and "shards" is their number.
"environments" is "saved" if a resumed run continues the episodes of its environments, and "rebuilt" if it builds
new ones, since their simulator's state cannot be saved.
RLlib stores its components as pickles: load checkpoints of people you trust only.

A checkpoint may be loaded into a configuration other than its own, as when PBT clones a trial:

| key | in the configuration that loads |
| --- | --- |
| settings in `changeable` of their class: `momentum_std_explore`, `step_size`, `alpha`, `lr`, ... | may differ |
| `alpha` between a number and 'auto'; `step_size` with `learn_step_size` | refused |
| every other setting: shapes of networks and replay, `warmup_steps`, `update_to_data`, ... | refused |
| algorithm, environment, `env_config`, API stack | refused |
| `seed` | may differ: the run continues with new episodes and with streams of that seed |
| numbers of runners, environments and learners, `rollout_fragment_length` | may differ; the replay is resharded |
| `results_dir`, `replay_dir`, `sweep`, `variant`, `task`, `trial_id` | may differ |

Changed values apply from then on to learning, acting, evaluations and rows.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from rllib_hpo.algorithms.registry import make_method
from rllib_hpo.documents import parse_json, reason
from rllib_hpo.documents.json_reader import MAX_JSON_BYTES
from rllib_hpo.documents.text import read_bytes
from rllib_hpo.durable import sync_path
from rllib_hpo.errors import CheckpointError, StorageError, UserError, shown
from rllib_hpo.replay.shards import count_rows
from rllib_hpo.results.atomic import write_atomically
from rllib_hpo.results.provenance import versions
from rllib_hpo.streams import derived_seed
from rllib_hpo.tasks import import_modules

if TYPE_CHECKING:
    from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
    from rllib_hpo.rllib.config import ActorCriticConfig

FORMAT = 1
"""Format number, incremented when older checkpoints can no longer be read."""

MANIFEST = "manifest.json"
REPLAY = "replay"


def _is_inside(name: str) -> str:
    """Check that a file's name does not lead out of the checkpoint."""
    if not name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError("it names a file outside the checkpoint")
    return name


_File = Annotated[str, AfterValidator(_is_inside)]


class _Part(BaseModel):
    """A part of the manifest; keys that are not declared may hold anything."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Written(_Part):
    bytes: int
    crc32: int


class _Segment(_Part):
    file: _File
    start: Annotated[int, Field(ge=0)]
    end: Annotated[int, Field(ge=0)]
    crc32: int


class _Replay(_Part):
    directory: str
    total_rows: Annotated[int, Field(ge=0)]
    segments: list[_Segment]
    shards: Annotated[int, Field(ge=1)] = 1


class _RunnerResults(_Part):
    episode_return_mean: float


class _Evaluation(_Part):
    env_runners: _RunnerResults | None = None


class _Config(_Part):
    env_config: dict[str, Any] = Field(default_factory=dict)
    api_stack: Literal["new", "old"] = "new"


class _Manifest(_Part):
    """The types of the keys that are read; keys that earlier versions did not write may be missing."""

    algorithm: str
    env: str
    task: str | None = None
    config: _Config
    env_steps: Annotated[int, Field(ge=0)]
    evaluation: _Evaluation | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    wrappers: list[Any] | None = None
    replay: _Replay
    files: dict[_File, _Written]


def complete(algorithm: ActorCriticAlgorithm, directory: Path, *, with_replay: bool = False) -> None:
    """Save the replay and then the manifest of a checkpoint that RLlib has written to `directory`.

    Args:
        algorithm: The algorithm that was saved.
        directory: The checkpoint.
        with_replay: Whether to store the replay in it even if the config has a `replay_dir`.

    Raises:
        StorageError: If the disk is full, or a remote learner does not see this disk; the checkpoint then has no
            manifest, and does not exist.
    """
    directory = directory.resolve()
    elsewhere = None if with_replay else algorithm.config.replay_dir
    replay_dir = Path(elsewhere or directory / REPLAY).resolve()
    segments = algorithm.stack.call_core("save_replay", str(replay_dir))
    _check_replay_visible(segments, replay_dir)
    files = sorted(
        p for p in directory.rglob("*") if p.is_file() and replay_dir not in p.parents and p.name != MANIFEST
    )
    num_shards = max(1, algorithm.config.num_learners)
    columns = [column._asdict() for column in make_method(algorithm.settings).row_columns]
    manifest = {
        "format": FORMAT,
        "algorithm": algorithm.config.algorithm,
        "env": algorithm.run_config()["env"],
        "task": algorithm.run_config()["task"],
        "config": algorithm.run_config(),
        "imports": list(algorithm.config.imports),
        "trial": {"id": algorithm.config.tune_trial, "seed": algorithm.config.seed},
        "env_steps": algorithm.env_steps,
        "evaluation": algorithm.latest_evaluation,
        "environments": "saved" if algorithm.is_savable() else "rebuilt",
        "owes_evaluation": algorithm.lacks_evaluation,
        "wrappers": algorithm.stack.wrapper_state(),
        "versions": versions(),
        "replay": {
            "directory": os.path.relpath(replay_dir, directory),
            "total_rows": count_rows(segments),
            "segments": segments,
            **({"shards": num_shards} if num_shards > 1 else {}),
            **({"columns": columns} if columns else {}),
        },
        "files": {
            str(p.relative_to(directory)): {"bytes": p.stat().st_size, "crc32": _crc32(p)} for p in files
        },
    }
    for path in files:
        sync_path(path)
    write_atomically(directory / MANIFEST, json.dumps(manifest, indent=1).encode())


def _check_replay_visible(segments: list[dict[str, Any]], replay_dir: Path) -> None:
    for segment in segments:
        if not (replay_dir / segment["file"]).is_file():
            raise StorageError(
                f"The learner wrote the replay to {replay_dir} on another machine; save to a directory that both "
                "share or, for a checkpoint on storage, set TMPDIR to such a directory."
            )


def follow(path: Path) -> Path:
    """The checkpoint that `path` names: itself, or the target of a link `last` or `best` stored as a text file.

    Where the file system has no symbolic links, the text file holds the name of a checkpoint in the same folder.
    """
    if not path.is_file():
        return path
    with path.open("rb") as file:
        name = re.fullmatch(rb"(step-\d+)\s*", file.read(64))
    return path.with_name(name[1].decode()) if name else path


def finished_steps(manifest: dict[str, Any]) -> int:
    """Environment steps of a checkpoint, less one if the evaluation of its last step is missing."""
    return int(manifest["env_steps"]) - bool(manifest.get("owes_evaluation", False))


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        CheckpointError: If there is none (the checkpoint was never finished), or it cannot be read.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{directory} is not a finished checkpoint: it has no {MANIFEST}.")
    try:
        data = read_bytes(path, "manifest", MAX_JSON_BYTES)
    except UserError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    return parse_manifest(data, directory)


def parse_manifest(data: bytes, directory: PurePath) -> dict[str, Any]:
    """Parse and check a manifest.

    Its format must be `FORMAT`, and it must have the keys that readers need.

    Args:
        data: Content of the file.
        directory: The checkpoint, local or on storage, for messages.

    Raises:
        CheckpointError: Naming the checkpoint, and what is missing or of another type.
    """
    path = directory / MANIFEST
    try:
        manifest = parse_json(data, f"The manifest {path}")
    except UserError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if "format" not in manifest:
        raise CheckpointError(f"{path} is damaged: it is not a manifest.")
    if manifest["format"] != FORMAT:
        raise CheckpointError(
            f"{directory} has checkpoint format {shown(manifest['format'])}; this version of rllib_hpo reads {FORMAT}."
        )
    if missing := {"algorithm", "env", "files", "replay"} - manifest.keys():
        raise CheckpointError(f"{path} is damaged: it lacks {', '.join(sorted(missing))}.")
    try:
        _Manifest.model_validate(manifest)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{path} is damaged: {place} ({first['msg']}).") from error
    if not manifest["files"]:
        raise CheckpointError(f"{path} is damaged: it lists no files, so nothing can be verified.")
    return manifest


def verify(directory: Path, *, with_replay: bool = True) -> dict[str, Any]:
    """Verify a checkpoint against its checksums, and return its manifest.

    Args:
        directory: The checkpoint.
        with_replay: Whether its replay must exist, too, as for a resume.

    Raises:
        CheckpointError: Naming the file that is missing or damaged.
    """
    manifest = read_manifest(directory)
    replay_dir = directory / manifest["replay"]["directory"]
    for name, recorded in manifest["files"].items():
        if not _is_as_written(directory / name, recorded):
            raise CheckpointError(f"The checkpoint {directory} is damaged: {name} is missing or differs.")
    for segment in manifest["replay"]["segments"] if with_replay else ():
        if not (replay_dir / segment["file"]).is_file():
            raise CheckpointError(f"The checkpoint {directory} lacks the replay segment {segment['file']}.")
    return manifest


def verify_component(directory: Path, component: str) -> None:
    """Verify the folder of a component by the manifest of its checkpoint; one saved alone has no manifest.

    Args:
        directory: The component.
        component: Its path within a checkpoint, such as "learner_group/learner/rl_module".

    Raises:
        CheckpointError: If there is no such folder, or a file in it is missing or damaged.
    """
    if (directory / component).is_dir():
        raise CheckpointError(
            f"{directory} is a whole checkpoint: to restore only its {component}, give {directory / component}."
        )
    if not directory.is_dir():
        raise CheckpointError(f"There is no component of a checkpoint in {directory}.")
    if not directory.as_posix().endswith(f"/{component}"):
        return
    root = directory.parents[len(Path(component).parts) - 1]
    if not (root / MANIFEST).is_file():
        return
    for name, recorded in read_manifest(root)["files"].items():
        if name.startswith(f"{component}/") and not _is_as_written(root / name, recorded):
            raise CheckpointError(f"The checkpoint {root} is damaged: {name} is missing or differs.")


def import_required_modules(manifest: dict[str, Any], checkpoint: Path) -> None:
    """Import the modules that registered the environment and the algorithm of a checkpoint.

    Raises:
        UserError: Naming the module that cannot be imported.
    """
    import_modules(manifest.get("imports", ()), f"The checkpoint {checkpoint}")


def _is_as_written(path: Path, recorded: dict[str, int]) -> bool:
    try:
        return (
            path.is_file() and path.stat().st_size == recorded["bytes"] and _crc32(path) == recorded["crc32"]
        )
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {reason(error)}.") from error


def check_fits(manifest: dict[str, Any], algorithm: ActorCriticAlgorithm) -> None:
    """Check that a checkpoint fits this run: algorithm, environment, API stack and fixed settings.

    Raises:
        CheckpointError: Naming what differs, with both values.
    """
    for key, mine in (("algorithm", algorithm.config.algorithm), ("env", algorithm.run_config()["env"])):
        if manifest[key] != mine:
            raise CheckpointError(f"The checkpoint has {key} '{manifest[key]}', but this run has '{mine}'.")
    if api_stack(manifest) != algorithm.run_config()["api_stack"]:
        raise CheckpointError(
            f"The checkpoint is for RLlib's {api_stack(manifest)} API stack, but this run uses the other one: "
            "convert it with `rllib-hpo convert`."
        )
    _check_settings(manifest["config"], algorithm)


def _check_settings(saved: dict[str, Any], algorithm: ActorCriticAlgorithm) -> None:
    """Check that only settings differ that may change."""
    mine, settings = algorithm.run_config(), algorithm.settings
    for name in ("env_config", *type(settings).model_fields):
        before, now = saved.get(name, mine[name]), mine[name]
        if before != now and not settings.may_change(name, before):
            raise CheckpointError(
                f"The checkpoint was made with {name}={before!r}, but this run has {now!r}, and {name} cannot "
                "change when a checkpoint is loaded."
            )


def resumed_seed(manifest: dict[str, Any], config: ActorCriticConfig) -> int:
    """Seed of a run after a restore; its streams restart if the checkpoint has another seed.

    It is the configuration's, with one exception: PBT copies whole configurations, so a clone may have its donor's
    seed. It gets a seed of its own, and keeps it when it is resumed.
    """
    seed, donor = int(config.seed), manifest.get("trial") or {"id": None}
    if config.tune_trial is None or donor["id"] is None:
        return seed
    run_seed = int(manifest["config"]["seed"])
    if donor["id"] == config.tune_trial:
        return run_seed if donor["seed"] == seed else seed
    if seed in (run_seed, donor["seed"]):
        return derived_seed(seed, "clone", config.tune_trial)
    return seed


def api_stack(manifest: dict[str, Any]) -> str:
    """The API stack of a checkpoint, "new" or "old"."""
    return str(manifest["config"].get("api_stack", "new"))


def restore_replay(algorithm: ActorCriticAlgorithm, manifest: dict[str, Any], directory: Path) -> None:
    """Load the replay of a checkpoint into the learners.

    Raises:
        CheckpointError: If a segment is missing or damaged.
    """
    replay = manifest["replay"]
    replay_dir = (directory / replay["directory"]).resolve()
    what = replay["segments"], replay["total_rows"], replay.get("shards", 1)
    algorithm.stack.call_core("load_replay", str(replay_dir), *what)


def _crc32(path: Path) -> int:
    return zlib.crc32(path.read_bytes())
