"""Keep the trials of a search in an Optuna study, a SQLite file that survives the death of its writer."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

from rllib_hpo.errors import CheckpointError, UserError
from rllib_hpo.experiments.config.search_config import Search, choice_label
from rllib_hpo.experiments.tuning.scores import Score
from rllib_hpo.streams import derived_seed

STUDY_FILE = "study.db"
_EXCESS = "excess_cost"
"""Constraint of a trial, and the user attributes that hold it: of the last evaluation, and of one step each."""


class Record(NamedTuple):
    """A trial of a study."""

    number: int
    values: dict[str, Any]
    """Its searched settings."""
    reports: dict[int, Score]
    """Its evaluations by environment step."""
    state: str
    """RUNNING (also while nothing runs it), COMPLETE, PRUNED or FAIL."""


class Study:
    """The study of a search; one process writes at a time.

    Args:
        path: Its file, made where missing; `optuna-dashboard sqlite:///PATH` shows it.
        search: What is searched.

    Raises:
        UserError: If Optuna is not installed.
        CheckpointError: If the file is damaged.
    """

    def __init__(self, path: Path, search: Search) -> None:
        self._optuna = import_optuna()
        self.path, self._search, file = path, search, search.file
        self._labels = {
            name: {choice_label(choice): choice for choice in domain.choices}
            for name, domain in file.space.items()
            if domain.choices is not None
        }
        try:
            self._storage = self._optuna.storages.get_storage(f"sqlite:///{path}")
            self._study = self._optuna.create_study(
                storage=self._storage,
                sampler=self._sampler(),
                study_name=file.search,
                direction="maximize" if file.mode == "max" else "minimize",
                load_if_exists=True,
            )
            self._enqueue_first()
        except Exception as error:  # SQLAlchemy and Optuna have many kinds
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"The study {path} cannot be used: {said.rstrip('.')}.") from error

    def _enqueue_first(self) -> None:
        if self._study.trials:
            return
        for values in self._search.file.first:
            named = {
                name: choice_label(value) if name in self._labels else value for name, value in values.items()
            }
            self._study.enqueue_trial(named)

    def records(self) -> list[Record]:
        """All trials that have begun, in order."""
        return [
            Record(
                trial.number,
                {
                    name: self._labels[name][value] if name in self._labels else value
                    for name, value in trial.params.items()
                },
                {
                    step: Score(value, trial.user_attrs.get(f"{_EXCESS}_{step}", 0.0))
                    for step, value in trial.intermediate_values.items()
                },
                trial.state.name,
            )
            for trial in self._study.get_trials(deepcopy=False)
            if trial.state.name != "WAITING"
        ]

    def ask(self) -> Record:
        """Begin the next trial; what it tries follows from the search's seed and the trials so far."""
        number = len(self.records())
        self._study.sampler = self._sampler(derived_seed(self._search.file.seed, "sampler", number))
        trial = self._study.ask(self._distributions())
        return next(record for record in self.records() if record.number == trial.number)

    def report(self, number: int, step: int, score: Score) -> None:
        """Store an evaluation of a running trial; one that is there already stays."""
        record = self.records()[number]
        if record.state == "RUNNING" and step not in record.reports:
            trial = self._trial(number)
            if self._search.limited is not None:  # first, since the report is what a later session looks for
                trial.set_user_attr(f"{_EXCESS}_{step}", score.excess)
            trial.report(score.value, step)

    def end(self, number: int, state: str) -> None:
        """End a trial as COMPLETE, with the value of its last evaluation, as PRUNED or as FAIL; an ended one stays."""
        record = self.records()[number]
        last = record.reports[max(record.reports)] if record.reports else None
        if record.state == "RUNNING" and last is not None and self._search.limited is not None:
            self._constrain(number, last.excess)
        value = last.value if last is not None and state == "COMPLETE" else None
        states = self._optuna.trial.TrialState
        self._study.tell(number, value, state=states[state], skip_if_finished=True)

    def _constrain(self, number: int, excess: float) -> None:
        """Tell Optuna what a trial's cost exceeds the limit by; its samplers prefer trials that exceed nothing."""
        trial = self._trial(number)
        trial.set_user_attr(_EXCESS, excess)
        if self._has_constraints and _EXCESS not in trial.constraints:
            trial.set_constraint(_EXCESS, excess)

    def _trial(self, number: int) -> Any:
        study = self._storage.get_study_id_from_name(self._study.study_name)
        found = self._storage.get_trial_id_from_study_id_trial_number(study, number)
        return self._optuna.trial.Trial(self._study, found)

    @property
    def _has_constraints(self) -> bool:
        """Whether trials have constraints, as since Optuna 5; before, the sampler is given a function for them."""
        return hasattr(self._optuna.trial.Trial, "set_constraint")

    def _sampler(self, seed: int = 0) -> Any:
        samplers = self._optuna.samplers
        if self._search.file.sampler == "random":
            return samplers.RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            # Running trials count as bad ones, or those that begin together would all try the same.
            options: dict[str, Any] = {"seed": seed, "constant_liar": True}
            if self._search.limited is not None and not self._has_constraints:
                options["constraints_func"] = lambda trial: (trial.user_attrs.get(_EXCESS, 0.0),)
            return samplers.TPESampler(**options)

    def _distributions(self) -> dict[str, Any]:
        made = {}
        for name, domain in self._search.file.space.items():
            if name in self._labels:
                made[name] = self._optuna.distributions.CategoricalDistribution(list(self._labels[name]))
            elif name in self._search.whole:
                low, high = map(int, domain.bounds)
                made[name] = self._optuna.distributions.IntDistribution(low, high, log=domain.log)
            else:
                made[name] = self._optuna.distributions.FloatDistribution(*domain.bounds, log=domain.log)
        return made


def import_optuna() -> Any:
    """Optuna, which is optional.

    Raises:
        UserError: If it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError(
            "A search with the sampler tpe or random needs Optuna: `pip install 'rllib-hpo[search]'`."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
