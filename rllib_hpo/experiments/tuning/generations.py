"""Train a population generation by generation, each decided by the returns of the one before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from ray.tune import PlacementGroupFactory
from ray.tune.schedulers import FIFOScheduler

from rllib_hpo.documents import read_json
from rllib_hpo.errors import CheckpointError
from rllib_hpo.experiments.process.signals import StopRequest
from rllib_hpo.experiments.sweeps.plan import steps_done
from rllib_hpo.experiments.sweeps.progress import SweepProgress
from rllib_hpo.experiments.sweeps.sweep import Outcome, forget_errors
from rllib_hpo.experiments.sweeps.trial import Batch, TrialOptions, run_batch
from rllib_hpo.experiments.tuning.directory import SearchDirectory
from rllib_hpo.experiments.tuning.population import Member, first_generation, next_generation
from rllib_hpo.experiments.tuning.scores import Score, comparable
from rllib_hpo.results import write_atomically
from rllib_hpo.results.configurations import SEARCH_VARIANT

POPULATION_FILE = "population.json"


class _Generation(BaseModel):
    members: list[tuple[dict[str, Any], int | None]]
    scores: list[Score | None]


class _Population(BaseModel):
    """The types of the file's keys."""

    generations: list[_Generation]


class Generations:
    """The generations of a population so far; the last one may be under way.

    A member of a generation is a trial of its own, with a run directory of its own, which begins from the last
    checkpoint of a trial of the generation before. All trials of a member have one id in the rows.

    Args:
        directory: The search.

    Raises:
        CheckpointError: If the file of the generations is damaged.
    """

    def __init__(self, directory: SearchDirectory) -> None:
        self.directory, self.search = directory, directory.search
        self._file = directory.files.directory / POPULATION_FILE
        self._members: list[list[Member]] = []
        self._scores: list[list[Score | None]] = []
        """Scores of each finished generation; None for a member that diverged."""
        self.diverged: set[str] = set()
        """Trials of the generation under way that diverged."""
        if self._file.exists():
            self._read()

    def _read(self) -> None:
        try:
            stored = _Population.model_validate(read_json(self._file, "generations of a search"))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise CheckpointError(
                f"The generations {self._file} are damaged: {place} ({first['msg']})."
            ) from error
        self._members = [[Member(*member) for member in one.members] for one in stored.generations]
        self._scores = [one.scores for one in stored.generations if one.scores]
        size = self.search.file.trials
        if any(len(members) != size for members in self._members) or any(
            len(scores) != size for scores in self._scores
        ):
            raise CheckpointError(
                f"The generations {self._file} are damaged: they have not {size} members each."
            )

    def _write(self) -> None:
        scores = [*self._scores, *([[]] if len(self._members) > len(self._scores) else [])]
        generations = [
            {"members": [list(member) for member in members], "scores": own}
            for members, own in zip(self._members, scores, strict=True)
        ]
        write_atomically(self._file, json.dumps({"generations": generations}, indent=1).encode())
        self.directory.publish(POPULATION_FILE)

    @property
    def ends(self) -> tuple[int, ...]:
        """Environment steps at the end of each generation."""
        return (*self.search.rungs, self.search.steps)

    def begin(self) -> int | None:
        """Decide on the next generation unless one is under way; returns its number, or None after the last."""
        if len(self._members) == len(self._scores):
            if len(self._scores) == len(self.ends):
                return None
            self._members.append(self._next())
            self._write()
        return len(self._members) - 1

    def _next(self) -> list[Member]:
        if not self._members:
            return first_generation(self.search)
        scores = self._scores[-1]
        number = comparable(self.search, (score for score in scores if score is not None))
        numbers = [None if score is None else number(score) for score in scores]
        return next_generation(self.search, len(self._members), self._members[-1], numbers)

    def name(self, generation: int, number: int) -> str:
        """Name of the directory of a member's trial."""
        return f"trial-{number:04d}-{self.ends[generation]:010d}"

    def trials(self, generation: int) -> dict[str, Member]:
        """Names and members of a generation."""
        return {
            self.name(generation, number): member for number, member in enumerate(self._members[generation])
        }

    def finish(self, generation: int) -> bool:
        """Store the scores of a generation if all its trials are done or diverged; returns whether they are."""
        scores: list[Score | None] = []
        for name in self.trials(generation):
            score = self.directory.last_score(name, self.ends[generation])
            if score is None and name not in self.diverged:
                return False
            scores.append(score)
        self._scores.append(scores)
        self._write()
        return True

    def standing(self) -> list[tuple[Member, int, Score | None]]:
        """Members of the last finished generation, the steps they have made, and scores; None for one that diverged."""
        if not self._scores:
            return []
        last = len(self._scores) - 1
        return [
            (member, self.ends[last], score)
            for member, score in zip(self._members[last], self._scores[last], strict=True)
        ]

    def outcome(self) -> Outcome:
        """How the trials of the last generation stand."""
        if not self._members:
            return Outcome((), tuple(f"trial-{i:04d}" for i in range(self.search.file.trials)), {})
        last, files = len(self._members) - 1, self.directory.files
        names = list(self.trials(last))
        if len(self._scores) == len(self.ends):
            return Outcome(tuple(names), (), {})
        failed = {name: files.error(name) for name in names if files.error(name).exists()}
        return Outcome((), tuple(name for name in names if name not in failed), failed)


def run_population(
    directory: SearchDirectory,
    progress: SweepProgress,
    options: TrialOptions,
    request: PlacementGroupFactory,
    stop: StopRequest,
) -> None:
    """Train the generations that are left; end after one with a trial that failed or was stopped."""
    generations = Generations(directory)
    while stop.signal is None and (generation := generations.begin()) is not None:
        for name in generations.trials(generation - 2) if generation > 1 else ():
            directory.forget(name)
        generations.diverged.clear()
        if not generations.finish(generation):
            _train(generations, generation, progress, options, request, stop)
            if not generations.finish(generation):
                return


def _train(
    generations: Generations,
    generation: int,
    progress: SweepProgress,
    options: TrialOptions,
    request: PlacementGroupFactory,
    stop: StopRequest,
) -> None:
    """Train the trials of a generation that are not done."""
    directory, trials, end = (
        generations.directory,
        generations.trials(generation),
        generations.ends[generation],
    )
    for number, (name, member) in enumerate(trials.items()):
        directory.add_trial(name, directory.search.config(number, member.values, end))
    done = {name: steps_done(directory.files.trial(name), directory.storage) for name in trials}
    waiting = [name for name in trials if done[name] < end]
    forget_errors(directory.files, waiting, directory.storage)
    batch = Batch(
        sweep=directory.search.file.search,
        variants=dict.fromkeys(trials, SEARCH_VARIANT),
        requests=dict.fromkeys(waiting, request),
        imports=directory.imports,
        origins=_origins(generations, generation, trials),
        identities={name: directory.identity(number) for number, name in enumerate(trials)},
        scheduler=_Divergences(generations),
    )
    start = generations.ends[generation - 1] if generation else 0
    with progress.running(
        dict.fromkeys(trials, end), {name: max(steps, start) for name, steps in done.items()}
    ):
        run_batch(directory.files, batch, progress, options, stop)


def _origins(generations: Generations, generation: int, trials: Mapping[str, Member]) -> dict[str, Any]:
    return {
        name: generations.name(generation - 1, member.origin)
        for name, member in trials.items()
        if member.origin is not None
    }


class _Divergences(FIFOScheduler):
    """Note which trials diverge."""

    def __init__(self, generations: Generations) -> None:
        super().__init__()
        self._generations = generations

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Note a trial that has ended."""
        if result["diverged"]:
            self._generations.diverged.add(trial.config["trial"])

    def __getstate__(self) -> dict[str, Any]:
        return {}
