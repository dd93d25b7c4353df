"""Say which of the papers' claims the evidence shows, from its rows and policies: docs/benchmarks/evidence.md.

    python -m benchmarks.evidence_page --measure     # what kept policies do: gap, steps, exploration; then the page
    python -m benchmarks.evidence_page               # the page alone

Rows and policies are those of `python -m benchmarks.evidence`. Each claim has the number that it was judged by, with
a 95 % interval. It holds if the whole interval says so, does not hold if the whole interval says the opposite, and is
undecided otherwise.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import coverage, machine
from rllib_hpo.analysis import statistics
from rllib_hpo.analysis.gap_files import write_gap
from rllib_hpo.analysis.gap_tables import ROWS, Line, Stage, lines_of
from rllib_hpo.analysis.parameters import parameter_counts
from rllib_hpo.analysis.runs import Run, TaskId, runs_of
from rllib_hpo.analysis.statistics import Floats, Interval
from rllib_hpo.analysis.tables import Scores, Table, all_tables, final, scores_of
from rllib_hpo.deployment import load_policy_file
from rllib_hpo.experiments.runs.evaluate import evaluate_checkpoint
from rllib_hpo.results import read_rows, write_atomically

STUDY = machine.RESULTS / "evidence"
ABLATION = machine.RESULTS / "evidence-ablation"
GAP, STEPS, COVERAGE = STUDY / "gap", STUDY / "leapfrog_steps.json", STUDY / "coverage.json"
PAGE = machine.ROOT / "docs" / "benchmarks" / "evidence.md"
LEAPFROG_STEPS = (0, 1, 2, 3, 5, 10)
EPISODES = 10
OURS, SAC, SAC_NF = "SAC-HPO", "SAC", "SAC-NF"
NOT_TESTED, TOO_FEW = "not tested here", "too few seeds"
"""Verdicts on claims that these rows and policies cannot decide."""


ABLATED = {
    "baseline-1": ("arXiv Table II", "The gated force is better than the conventional leapfrog (baseline-1)"),
    "baseline-2": ("arXiv Table II", "It is better than a Gaussian that explores by leapfrog (baseline-2)"),
    "baseline-3": ("arXiv Table II", "Exploring by leapfrog is better than by the Gaussian (baseline-3)"),
    "no-momentum": ("arXiv Figure 6", "Random momentum is needed (no-momentum)"),
}
"""What the papers say of variants of SAC-HPO, by the variant."""


class Claim(NamedTuple):
    """One claim of a paper, and what was found."""

    source: str
    """Paper and place."""
    claim: str
    found: str
    """The number that it was judged by, with its interval."""
    verdict: str


def are_enough(ours: int, theirs: int) -> bool:
    """Return whether so many seeds can differ significantly: a bootstrap of two or three seeds is too narrow.

    Where all of one side are above all of the other, the exact two-sided test of ranks has
    p = 2 / binom(ours + theirs, ours), which must be at most 0.05.
    """
    return 2 / math.comb(ours + theirs, ours) <= 0.05


def verdict(interval: Interval | None, threshold: float, *, enough: bool = True) -> str:
    """Say whether the value is above a threshold, as far as its interval, and enough seeds, show that."""
    if interval is None:
        return NOT_TESTED
    if not enough:
        return TOO_FEW
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
                source = "ICASSP 5.1, arXiv V-A"
                yield self._judged(source, f"{OURS} ends higher than {other}", task, other, self._finals)
                claim = f"{OURS} is higher than {other} while it learns"
                yield self._judged(source, claim, task, other, self._means)
        for task in self.tasks:
            yield self._spread(task)
        yield from self.ablation()

    def ablation(self) -> Iterator[Claim]:
        """Judge what the papers say of parts of the method."""
        hopper = next(task for task in self.tasks if task.name == "hopper")
        for variant, (source, claim) in ABLATED.items():
            yield self._judged(source, claim, hopper, f"{OURS} ({variant})", self._finals)

    def _judged(self, source: str, claim: str, task: TaskId, other: str, scores: Scores) -> Claim:
        """Judge whether scores of SAC-HPO are higher than those of another label."""
        ours, theirs = scores.of(task, OURS), scores.of(task, other)
        claim, chance, found = f"{claim}: {task.env_id}", None, ""
        if len(ours) and len(theirs):
            rng = np.random.default_rng(0)
            chance = statistics.bootstrap_improvement(ours[:, None], theirs[:, None], rng)
            seeds = f"{len(ours)} and {len(theirs)} seeds"
            found = f"probability of improvement over {other} {shown(chance)}, {seeds}"
        return Claim(source, claim, found, verdict(chance, 0.5, enough=are_enough(len(ours), len(theirs))))

    def _spread(self, task: TaskId) -> Claim:
        """Judge whether the final returns of SAC-HPO's seeds differ less than those of SAC's."""
        ours, theirs = self._finals.of(task, OURS), self._finals.of(task, SAC)
        rng, deviations = np.random.default_rng(0), list[Floats]()
        for values in (theirs, ours):
            drawn = values[rng.integers(len(values), size=(2_000, len(values)))]
            deviations.append(drawn.std(-1, ddof=1))
        less = deviations[0] - deviations[1]
        interval = Interval(
            np.asarray(theirs.std(ddof=1) - ours.std(ddof=1)), *np.quantile(less, [0.025, 0.975])
        )
        found = f"{SAC}'s standard deviation less that of {OURS}: {shown(interval, 0)}"
        enough = are_enough(len(ours), len(theirs))
        claim = f"Seeds of {OURS} differ less than those of {SAC}: {task.env_id}"
        return Claim("arXiv V-A", claim, found, verdict(interval, 0.0, enough=enough))

    def parameters(self) -> Claim:
        """Judge what the papers say of the number of parameters."""
        counts = {}
        for label in (SAC, SAC_NF, OURS):
            run = next(run for run in self._runs if run.label == label and run.task.name == "hopper")
            found = parameter_counts(run.config, run.task.env_id)
            assert found is not None
            counts[label] = sum(found)
        listed = ", ".join(f"{label} {count:,}" for label, count in counts.items())
        claim = f"{OURS}'s policy has fewer parameters than {SAC}'s of two layers: Hopper-v4"
        fewer = counts[OURS] < counts[SAC]
        return Claim("ICASSP 5.1, arXiv IV-C", claim, listed, "**holds**" if fewer else "does not hold")


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
        start = lines[policy, Stage("", 0)]
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


# --- exploration ----------------------------------------------------------------------------------------------------


def coverage_claims(measured: Sequence[Mapping[str, Any]]) -> Iterator[Claim]:
    """Judge whether SAC-HPO's policies visit more of the state space when they explore, and by their steps."""
    for task in sorted({one["task"] for one in measured}):
        with_steps = coverage.find(measured, task, "sac-hpo", steps=True)
        others = {
            f"than {SAC}'s": coverage.find(measured, task, "sac"),
            "than the same policy without its steps": coverage.find(measured, task, "sac-hpo"),
        }
        for other, entropies in others.items():
            wider = None
            if with_steps is not None and entropies is not None:
                wider = statistics.stratified_bootstrap(
                    (np.array(with_steps) - np.array(entropies))[:, None],
                    lambda values: values.mean((-2, -1)),
                    np.random.default_rng(0),
                )
            yield Claim(
                "v1 4.2", f"When it explores, {OURS}'s last policy visits more of the state space {other}: {task}",
                f"entropy of the states, the difference in nats: {shown(wider)}", verdict(wider, 0.0),
            )  # fmt: skip


# --- measuring ------------------------------------------------------------------------------------------------------


def policy_files() -> list[Path]:
    """Return the kept policies of algorithms with a temperature."""
    return [path for path in sorted((STUDY / "policies").glob("*.safetensors")) if "td3" not in path.name]


def measure() -> None:
    """Measure gap and exploration of kept policies, and the returns of SAC-HPO's by number of leapfrog steps."""
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
    measure_coverage()


def measure_coverage() -> None:
    """Measure how much of the state space the kept policies visit when they explore."""
    measured = coverage.entropies(list(coverage.explore(policy_files())))
    write_atomically(COVERAGE, (json.dumps(measured, indent=1) + "\n").encode())


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

Seeds so far: {seeds}.

![Learning curves](../images/curves.png)

## Claims

A claim **holds** if the whole 95 % interval says so, *does not hold* if the whole interval says the opposite, and is
*undecided* otherwise. There are *too few seeds* where even a complete separation of them would have p > 0.05 (exact
test of ranks). Intervals of an algorithm's returns come from a bootstrap over seeds. Those of one policy come from a
bootstrap over its states or episodes, which says nothing about other seeds. The entropy of the states that a policy
visits with the noise of training is estimated in {coverage.BATCHES} batches of {coverage.STEPS:,} steps
(`benchmarks/coverage.py`).

{claims_table(claims)}
## Returns

{chr(10).join(table.to_markdown() for table in tables)}
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


def as_one_sweep(tables: Sequence[pa.Table]) -> pa.Table:
    """Join rows of several sweeps under the name of the first, so that no label names a sweep."""
    joined = pa.concat_tables(tables)
    column = joined.schema.get_field_index("sweep")
    name = pa.array([tables[0]["sweep"][0].as_py()] * len(joined), joined.schema.field(column).type)
    return joined.set_column(column, joined.schema.field(column), name)


def make_page() -> str:
    """Return the page of what is stored now."""
    rows = [read_rows(folder) for folder in (STUDY, ABLATION) if folder.exists()]
    of_study, played = runs_of(rows[0]), json.loads(STEPS.read_text())
    returns = Returns(runs_of(as_one_sweep(rows)))
    claims = [
        *returns.claims(),
        returns.parameters(),
        *gap_claims(pq.read_table(GAP / ROWS)),
        *step_claims(played),
        *coverage_claims(json.loads(COVERAGE.read_text())),
    ]
    return page(of_study, claims, all_tables(of_study, np.random.default_rng(0)), played)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--measure", action="store_true", help="measure the gap and the leapfrog steps anew")
    if parser.parse_args().measure:
        measure()
    write_atomically(PAGE, make_page().encode())


if __name__ == "__main__":
    main()
