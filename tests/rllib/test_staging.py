"""Test checkpoints on other filesystems: complete or absent, verified, and readable by this package and RLlib."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs
from ray.rllib.algorithms.algorithm import Algorithm

from rllib_hpo.errors import CheckpointError, StorageError, UserError
from rllib_hpo.rllib import checkpointing
from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
from rllib_hpo.rllib.checkpointing import MANIFEST
from rllib_hpo.rllib.staging import RemoteFolder, locate
from tests.experiments.s3_server import Proxy, s3_server
from tests.rllib.old_stack import test_policy_stack as old_stack
from tests.rllib.tiny import assert_equal, facts, running, tiny_config, train_to

COMPONENT = "learner_group/learner/rl_module/default_policy"


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Run an S3 server on this machine with a bucket called "bucket"."""
    pytest.importorskip("flask_cors")
    pytest.importorskip("moto")
    with s3_server(tmp_path_factory.mktemp("s3") / "log") as proxy:
        yield proxy


@pytest.fixture
def tree(tmp_path: Path) -> fs.FileSystem:
    """Make a filesystem that counts as remote, with files below `tmp_path`/tree."""
    (tmp_path / "tree").mkdir()
    return fs.SubTreeFileSystem(str(tmp_path / "tree"), fs.LocalFileSystem())


@pytest.fixture(scope="module")
def trained() -> Iterator[ActorCriticAlgorithm]:
    """Make a run at step 40, which tests must leave there."""
    with running(tiny_config()) as algorithm:
        train_to(algorithm, 40)
        yield algorithm


@pytest.mark.parametrize("stack", ["new", "old"])
def test_a_checkpoint_goes_to_s3_and_back(
    stack: str, s3: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All calls that read one work, including RLlib's, and leave nothing in the working directory."""
    make, all_facts = (tiny_config, facts) if stack == "new" else (old_stack.old_config, old_stack.facts)
    monkeypatch.chdir(tmp_path)
    config = make("sac-hpo").checkpointing(replay_dir=str(tmp_path / "elsewhere" / "replay"))
    uri = s3.uri(f"bucket/{stack}/checkpoint")
    with running(config) as algorithm:
        for steps in (40, 80):
            train_to(algorithm, steps)
            assert algorithm.save_to_path(uri) == uri
        expected = all_facts(algorithm)
        algorithm.restore_from_path(uri)
        assert_equal(expected, all_facts(algorithm))
    place = locate(uri)
    assert isinstance(place, RemoteFolder)
    names = place.files()
    assert MANIFEST in names
    assert (
        len([name for name in names if name.startswith("replay/")]) == 1
    )  # nothing of the first one is left
    for cls in (ActorCriticAlgorithm, Algorithm):
        resumed = cls.from_checkpoint(uri)
        assert_equal(expected, all_facts(resumed))
        train_to(resumed, 120)
        resumed.stop()
    resumed = ActorCriticAlgorithm.from_checkpoint(place.path, filesystem=place.filesystem)
    assert_equal(expected, all_facts(resumed))
    resumed.stop()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("stack", ["new", "old"])
def test_filesystems_and_uris_of_this_machine(stack: str, tmp_path: Path, tree: fs.FileSystem) -> None:
    make, all_facts = (tiny_config, facts) if stack == "new" else (old_stack.old_config, old_stack.facts)
    with running(make()) as algorithm:
        train_to(algorithm, 40)
        expected = all_facts(algorithm)
        local = tmp_path / "with space"
        assert algorithm.save_to_path(local.as_uri()) == str(local)
        algorithm.save_to_path(str(tmp_path / "local"), filesystem=fs.LocalFileSystem())
        algorithm.save_to_path("folder/checkpoint", filesystem=tree)
        train_to(algorithm, 80)
        for path, options in (
            (local.as_uri(), {}),
            (local, {}),
            (str(tmp_path / "local"), {"filesystem": fs.LocalFileSystem()}),
            ("folder/checkpoint", {"filesystem": tree}),
        ):
            algorithm.restore_from_path(path, **options)
            assert_equal(expected, all_facts(algorithm))
            algorithm.train()


def test_a_replay_beside_the_checkpoint_is_found(tmp_path: Path, tree: fs.FileSystem) -> None:
    """It is stored as in a run's directory that was copied to storage."""
    run = tmp_path / "tree" / "run"
    with running(tiny_config().checkpointing(replay_dir=str(run / "replay"))) as algorithm:
        train_to(algorithm, 40)
        algorithm.save_to_path(run / "checkpoints" / "40")
        expected = facts(algorithm)
    resumed = ActorCriticAlgorithm.from_checkpoint("run/checkpoints/40", filesystem=tree)
    assert_equal(expected, facts(resumed))
    resumed.stop()


def test_damage_on_storage_is_named(
    trained: ActorCriticAlgorithm, tmp_path: Path, tree: fs.FileSystem
) -> None:
    """The error has the checkpoint's own name, and nothing is unpickled before."""
    whole = trained.save_to_path(tmp_path / "whole")
    trained.save_to_path("checkpoint", filesystem=tree)
    directory, before = tmp_path / "tree" / "checkpoint", facts(trained)
    (segment,) = (directory / "replay").iterdir()
    module = directory / COMPONENT / "module_state.pkl"

    def refusal(**options: Any) -> str:
        path = f"checkpoint/{options['component']}" if options else "checkpoint"
        with pytest.raises(CheckpointError) as caught:
            trained.restore_from_path(path, filesystem=tree, **options)
        if trained.lacks_replay:  # its damage is found only by loading it, in place of the one that was there
            with pytest.raises(CheckpointError, match="The replay of step 40 was not loaded"):
                trained.train()
            trained.restore_from_path(whole)
        assert_equal(before, facts(trained))
        return str(caught.value)

    for damaged, phrase in (
        (segment, segment.name),
        (module, f"{COMPONENT}/module_state.pkl is missing or differs"),
        (directory / MANIFEST, "manifest"),
    ):
        content = damaged.read_bytes()
        damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        message = refusal()
        assert phrase in message
        assert "subtree://checkpoint" in message
        assert "/tmp" not in message
        if damaged == module:
            assert f"subtree://checkpoint is damaged: {phrase}" in refusal(component=COMPONENT)
        damaged.unlink()
        assert "subtree://checkpoint" in refusal()
        damaged.write_bytes(content)
    trained.restore_from_path("checkpoint", filesystem=tree)


def test_an_upload_that_fails_leaves_no_checkpoint(
    trained: ActorCriticAlgorithm, tree: fs.FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier one is lost too, since its files are half overwritten; the run continues."""
    trained.save_to_path("checkpoint", filesystem=tree)
    upload, uploaded = RemoteFolder.upload, []

    def breaks(self: RemoteFolder, name: str, source: Path) -> None:
        uploaded.append(name)
        if len(uploaded) == 3:
            raise OSError("AWS Error NETWORK_CONNECTION")
        upload(self, name, source)

    monkeypatch.setattr(RemoteFolder, "upload", breaks)
    with pytest.raises(StorageError, match=r"Cannot reach the storage subtree://checkpoint: AWS Error NETW"):
        trained.save_to_path("checkpoint", filesystem=tree)
    with pytest.raises(
        CheckpointError, match=r"subtree://checkpoint is not a finished checkpoint: it has no"
    ):
        ActorCriticAlgorithm.from_checkpoint("checkpoint", filesystem=tree)
    monkeypatch.undo()
    trained.save_to_path("checkpoint", filesystem=tree)
    trained.restore_from_path("checkpoint", filesystem=tree)


def test_a_missing_bucket_is_one_sentence(trained: ActorCriticAlgorithm, s3: Proxy) -> None:
    with pytest.raises(StorageError, match=r"Cannot reach the storage s3://nowhere/checkpoint: .*\.$"):
        trained.save_to_path(s3.uri("nowhere/checkpoint"))
    with pytest.raises(UserError, match="s3://nowhere/checkpoint"):
        trained.restore_from_path(s3.uri("nowhere/checkpoint"))


@pytest.mark.parametrize(
    ("path", "filesystem", "phrase"),
    [
        ("nope://bucket/checkpoint", None, r"The URI nope://\.\.\. cannot be used"),
        (Path("s3://bucket/checkpoint"), None, "is a URI that lost a slash"),
        ("checkpoint", object(), "filesystem=object is not a filesystem of pyarrow.fs"),
    ],
)
def test_places_that_cannot_be_are_refused(
    path: Any, filesystem: Any, phrase: str, trained: ActorCriticAlgorithm
) -> None:
    for call in (trained.save_to_path, trained.restore_from_path, ActorCriticAlgorithm.from_checkpoint):
        with pytest.raises(StorageError, match=phrase):
            call(path, filesystem=filesystem)


def test_a_manifest_without_files_is_refused(trained: ActorCriticAlgorithm, tmp_path: Path) -> None:
    """It would verify nothing."""
    trained.save_to_path(tmp_path / "checkpoint")
    manifest = json.loads((tmp_path / "checkpoint" / MANIFEST).read_text())
    (tmp_path / "checkpoint" / MANIFEST).write_text(json.dumps({**manifest, "files": {}}))
    with pytest.raises(CheckpointError, match="lists no files, so nothing can be verified"):
        ActorCriticAlgorithm.from_checkpoint(tmp_path / "checkpoint")


def test_a_learner_that_writes_to_another_disk_is_noticed(
    trained: ActorCriticAlgorithm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = trained.local_learner
    segments = core.save_replay(str(tmp_path / "of another machine"))
    monkeypatch.setattr(core, "save_replay", lambda directory: segments)
    with pytest.raises(StorageError, match=r"wrote the replay to .* on another machine; .*TMPDIR"):
        trained.save_to_path(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="not a finished checkpoint"):
        checkpointing.verify(tmp_path / "checkpoint")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_remote_runners_and_learners_too(s3: Proxy) -> None:
    uri = s3.uri("bucket/remote")
    config = tiny_config("sac-hpo", "Hopper-v4").learners(num_learners=2)
    with running(config.env_runners(num_env_runners=1, max_lead_steps=0)) as algorithm:
        train_to(algorithm, 80)
        algorithm.save_to_path(uri)
        expected = facts(algorithm)
    resumed = ActorCriticAlgorithm.from_checkpoint(uri)
    assert_equal(expected, facts(resumed))
    train_to(resumed, 120)
    resumed.stop()
