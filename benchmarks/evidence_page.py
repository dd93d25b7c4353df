"""Say which of the papers' claims the evidence shows, from its rows and policies: docs/benchmarks/evidence.md.

    python -m benchmarks.evidence_page --measure     # the gap and the leapfrog steps of kept policies, then the page
    python -m benchmarks.evidence_page               # the page alone

Rows and policies are those of `python -m benchmarks.evidence`. Each claim has the number that it was judged by, with
a 95 % interval. It holds if the whole interval says so, does not hold if the whole interval says the opposite, and is
undecided otherwise.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import machine
from rllib_hpo.analysis import statistics
from rllib_hpo.analysis.gap_files import write_gap
from rllib_hpo.analysis.gap_tables import ROWS, Line, Stage, lines_of
from rllib_hpo.analysis.parameters import parameter_counts
from rllib_hpo.analysis.runs import Run, TaskId, runs_of
from rllib_hpo.analysis.statistics import Floats, Interval
from rllib_hpo.analysis.tables import Table, all_tables, final, scores_of
from rllib_hpo.deployment import load_policy_file
from rllib_hpo.experiments.runs.evaluate import evaluate_checkpoint
from rllib_hpo.results import read_rows, write_atomically

STUDY = machine.RESULTS / "evidence"
ABLATION = machine.RESULTS / "evidence-ablation"
GAP, STEPS = STUDY / "gap", STUDY / "leapfrog_steps.json"
PAGE = machine.ROOT / "docs" / "benchmarks" / "evidence.md"
LEAPFROG_STEPS = (0, 1, 2, 3, 5, 10)
EPISODES = 10
OURS, SAC, SAC_NF = "SAC-HPO", "SAC", "SAC-NF"
NOT_TESTED = "not tested here"
"""What is said of claims that these rows and policies cannot decide."""


class Claim(NamedTuple):
    """One claim of a paper, and what was found."""

    source: str
    """Paper and place."""
    claim: str
    found: str
    """The number that it was judged by, with its interval."""
    verdict: str


def verdict(interval: Interval | None, threshold: float) -> str:
    """Say whether the value is above a threshold, as far as its interval shows that."""
    if interval is None:
        return NOT_TESTED
    if interval.low > threshold:
        return "**holds**"
    return "does not hold" if interval.high < threshold else "undecided"


def shown(interval: Interval | None, digits: int = 2) -> str:
    """Return an estimate with its interval."""
    if interval is None:
        return ""
    estimate, low, high = (f"{float(value):,.{digits}f}" for value in interval)
    return f"{estimate} [{low}, {high}]"


# --- returns --------------------------------------------------------------------------------------------------------


class Returns:
    """Returns of the study's runs, by task and label.

    Args:
        runs: Runs of the study and its ablation.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = runs
        self._finals, self._means = (
            scores_of(runs, final),
            scores_of(runs, lambda values: float(values.mean())),
        )
        self.tasks = self._finals.tasks

    def claims(self) -> Iterator[Claim]:
        """Judge what the papers say of returns."""
        for other in (SAC, SAC_NF):
            for task in self.tasks:
                chance = self._chance(task, other, final_only=True)
                yield Claim(
                    "ICASSP 5.1, arXiv V-A", f"{OURS} ends higher than {other}: {task.env_id}",
                    self._found("probability of improvement", chance, task, other), verdict(chance, 0.5),
                )  # fmt: skip
                chance = self._chance(task, other, final_only=False)
                yield Claim(
                    "ICASSP 5.1, arXiv V-A", f"{OURS} learns faster than {other}: {task.env_id}",
                    self._found("probability that the mean over training is higher", chance, task, other),
                    verdict(chance, 0.5),
                )  # fmt: skip
        for task in self.tasks:
            ratio = self._spread(task)
            yield Claim(
                "arXiv V-A", f"Seeds of {OURS} differ less than those of {SAC}: {task.env_id}",
                f"{SAC}'s standard deviation over {OURS}'s: {shown(ratio)}", verdict(ratio, 1.0),
            )  # fmt: skip
        yield from self._ablation()

    def _ablation(self) -> Iterator[Claim]:
        task = next(task for task in self.tasks if task.name == "hopper")
        what = {
            "baseline-1": ("arXiv Table II", "The gated force is better than the conventional leapfrog"),
            "baseline-2": ("arXiv Table II", "It is better than a Gaussian that only explores by leapfrog"),
            "baseline-3": (
                "arXiv Table II",
                "Exploring by leapfrog is better than exploring by the Gaussian",
            ),
            "no-momentum": ("arXiv Figure 6", "Random momentum is needed"),
        }
        for variant, (source, claim) in what.items():
            other = f"{OURS} ({variant})"
            chance = self._chance(task, other, final_only=True)
            found = self._found("probability of improvement", chance, task, other)
            yield Claim(source, f"{claim} ({variant}): {task.env_id}", found, verdict(chance, 0.5))

    def _chance(self, task: TaskId, other: str, *, final_only: bool) -> Interval | None:
        scores = self._finals if final_only else self._means
        ours, theirs = scores.of(task, OURS), scores.of(task, other)
        if min(len(ours), len(theirs)) < 2:
            return None
        return statistics.bootstrap_improvement(ours[:, None], theirs[:, None], np.random.default_rng(0))

    def _found(self, what: str, chance: Interval | None, task: TaskId, other: str) -> str:
        if chance is None:
            return ""
        seeds = f"{len(self._finals.of(task, OURS))} and {len(self._finals.of(task, other))} seeds"
        return f"{what} {shown(chance)}, {seeds}"

    def _spread(self, task: TaskId) -> Interval | None:
        """Return the ratio of SAC's standard deviation over seeds to that of SAC-HPO."""
        ours, theirs = self._finals.of(task, OURS), self._finals.of(task, SAC)
        if min(len(ours), len(theirs)) < 3:
            return None
        rng, deviations = np.random.default_rng(0), list[Floats]()
        for values in (theirs, ours):
            drawn = values[rng.integers(len(values), size=(2_000, len(values)))]
            deviations.append(drawn.std(-1, ddof=1))
        known = deviations[1] > 0  # resamples of one seed have none
        low, high = np.quantile(deviations[0][known] / deviations[1][known], [0.025, 0.975])
        return Interval(np.asarray(theirs.std(ddof=1) / ours.std(ddof=1)), low, high)

    def parameters(self) -> Claim:
        """Judge what the papers say of the number of parameters."""
        counts = {}
        for label in (SAC, SAC_NF, OURS):
            run = next(run for run in self._runs if run.label == label and run.task.name == "hopper")
            found = parameter_counts(run.config, run.task.env_id)
            assert found is not None
            counts[label] = sum(found)
        listed = ", ".join(f"{label} {count:,}" for label, count in counts.items())
        fewer = counts[OURS] < min(counts[SAC], counts[SAC_NF])
        return Claim(
            "ICASSP 5.1, arXiv IV-C",
            f"{OURS}'s policy has fewer parameters than those of {SAC} and {SAC_NF}: Hopper-v4",
            listed,
            "**holds**" if fewer else "does not hold",
        )


# --- the gap --------------------------------------------------------------------------------------------------------


def gap_claims(rows: pa.Table) -> Iterator[Claim]:
    """Judge what the papers say of how near the steps bring a policy to exp(Q / alpha)."""
    lines = {(line.policy, line.stage): line for line in lines_of(rows)}
    ours = sorted({line.policy for line in lines.values() if line.about["algorithm"] == "sac-hpo"})
    for policy in ours:
        steps = next(line.about["leapfrog_steps"] for line in lines.values() if line.policy == policy)
        about = {
            "with training's momentum": Stage("train", steps),
            "without momentum: the drift alone": Stage("train", steps, noise=False),
            "with exploration's momentum": Stage("explore", steps),
        }
        start = lines[policy, Stage("train", 0)]
        for how, stage in about.items():
            nearer = difference(start, lines.get((policy, stage)), "distance")
            yield Claim(
                "arXiv III, v1 4.2", f"The steps bring the policy nearer to exp(Q / alpha), {how}: {policy}",
                f"distance before the steps less that after {shown(nearer, 3)}", verdict(nearer, 0.0),
            )  # fmt: skip
        for momentum, whose in (("train", "training"), ("explore", "exploration")):
            accepted = lines[policy, Stage(momentum, steps)].mean("acceptance")
            low = Interval(-accepted.estimate, -accepted.high, -accepted.low)
            yield Claim(
                "v1 4.4", f"A Metropolis test would accept few chains (under a half), {whose}'s momentum: {policy}",
                f"acceptance {shown(accepted)}", verdict(low, -0.5),
            )  # fmt: skip


def difference(first: Line | None, second: Line | None, column: str) -> Interval | None:
    """Return the mean of first minus second over the states that both have."""
    if first is None or second is None or not len(first.values[column]):
        return None
    pairs = (first.values[column] - second.values[column])[:, None]
    mean = statistics.stratified_bootstrap(
        pairs, lambda values: values.mean((-2, -1)), np.random.default_rng(0)
    )
    return mean if np.isfinite(mean.estimate) else None


# --- what the steps do when acting ----------------------------------------------------------------------------------


def step_claims(played: Mapping[str, Any]) -> Iterator[Claim]:
    """Judge whether the steps earn return when acting."""
    for policy, found in played.items():
        trained = np.array(found["returns"][str(found["leapfrog_steps"])])
        gained = trained - np.array(found["returns"]["0"])
        earned = statistics.stratified_bootstrap(
            gained[:, None], lambda values: values.mean((-2, -1)), np.random.default_rng(0)
        )
        yield Claim(
            "arXiv III", f"The steps earn return when acting: {policy}",
            f"return with K = {found['leapfrog_steps']} less that with K = 0, same episodes: {shown(earned, 0)}",
            verdict(earned, 0.0),
        )  # fmt: skip


def steps_table(played: Mapping[str, Any]) -> str:
    """Return a table of returns by number of leapfrog steps."""
    lines = [
        ["policy", "trained with", *(f"K = {number}" for number in LEAPFROG_STEPS)],
        ["---", *["---:"] * (len(LEAPFROG_STEPS) + 1)],
    ]
    for policy, found in played.items():
        means = [float(np.mean(found["returns"][str(number)])) for number in LEAPFROG_STEPS]
        lines.append([policy, f"K = {found['leapfrog_steps']}", *(f"{mean:,.0f}" for mean in means)])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


# --- measuring ------------------------------------------------------------------------------------------------------


def policy_files() -> list[Path]:
    """Return the kept policies of algorithms with a temperature."""
    return [path for path in sorted((STUDY / "policies").glob("*.safetensors")) if "td3" not in path.name]


def measure() -> None:
    """Measure the gap of all kept policies, and the returns of SAC-HPO's with other numbers of leapfrog steps."""
    write_gap([load_policy_file(path) for path in policy_files()], GAP, tell=print)
    played: dict[str, Any] = {}
    for path in policy_files():
        about = load_policy_file(path).metadata
        if about.algorithm == "sac-hpo":
            returns = {
                str(number): evaluate_checkpoint(path, EPISODES, 0, leapfrog_steps=number)[0].returns
                for number in LEAPFROG_STEPS
            }
            played[path.stem] = {"leapfrog_steps": about.settings["leapfrog_steps"], "returns": returns}
            print(f"{path.stem}: played with {', '.join(map(str, LEAPFROG_STEPS))} leapfrog steps")
    write_atomically(STEPS, (json.dumps(played, indent=1) + "\n").encode())


# --- the page -------------------------------------------------------------------------------------------------------


def claims_table(claims: Sequence[Claim]) -> str:
    """Return the claims as a Markdown table."""
    columns = ("paper", "claim", "found", "verdict")
    lines = [columns, ("---",) * 4, *claims]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def page(
    runs: Sequence[Run], claims: Sequence[Claim], tables: Sequence[Table], played: Mapping[str, Any]
) -> str:
    """Return the page of the documentation."""
    cells = sorted({(run.label, run.task.env_id) for run in runs})
    seeds = ", ".join(
        f"{label} on {env_id}: {sum(run.label == label and run.task.env_id == env_id for run in runs)}"
        for label, env_id in cells
    )
    steps = max(int(run.steps[-1]) for run in runs)
    return f"""# Evidence

Which of the papers' claims show in runs of {steps:,} steps. `python -m benchmarks.evidence` trains the runs, and
`make evidence-report` writes this page. The papers train for one to three million steps, so what is undecided here may
hold there.

Seeds so far. {seeds}.

![Learning curves](../images/curves.png)

## Claims

A claim **holds** if the whole 95 % interval says so, *does not hold* if the whole interval says the opposite, and is
*undecided* otherwise. Intervals of returns come from a bootstrap over seeds, those of distances from a bootstrap over
states of one seed's last policy, which says nothing about other seeds.

{claims_table(claims)}
## Returns

{"".join(f"### {table.title}{chr(10)}{chr(10)}{table.to_markdown()}{chr(10)}" for table in tables)}
## What the steps do when acting

Mean return of {EPISODES} noise-free episodes of the last policy of seed 0, the same episodes with each number of steps
(`rllib-hpo evaluate POLICY --leapfrog-steps {",".join(map(str, LEAPFROG_STEPS))}`).

{steps_table(played)}
## The gap

[The amortization gap](../concepts/amortization-gap.md) of the last policies of seed 0
(`rllib-hpo gap benchmarks/results/evidence/policies/*.safetensors`); the dashed line is a perfect policy's distance.
All numbers: [`gap.md`](../../benchmarks/results/evidence/gap/gap.md).

![Distance to exp(Q/alpha), before the leapfrog and after its steps](../../benchmarks/results/evidence/gap/gap.png)
"""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--measure", action="store_true", help="measure the gap and the leapfrog steps anew")
    if parser.parse_args().measure:
        measure()
    rows = [read_rows(folder) for folder in (STUDY, ABLATION) if folder.exists()]
    runs, of_study = runs_of(pa.concat_tables(rows)), runs_of(rows[0])
    played = json.loads(STEPS.read_text())
    returns = Returns(runs)
    claims = [
        *returns.claims(),
        returns.parameters(),
        *gap_claims(pq.read_table(GAP / ROWS)),
        *step_claims(played),
        Claim("v1 4.2", f"{OURS} covers more states when exploring", "", NOT_TESTED),
    ]
    tables = all_tables(of_study, np.random.default_rng(0))
    write_atomically(PAGE, page(of_study, claims, tables, played).encode())


if __name__ == "__main__":
    main()
