"""Test the gauges for operators, scraped as Prometheus does, and the dashboard that shows them."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import ray
import torch
from prometheus_client.parser import text_string_to_metric_families

from rllib_hpo.experiments.config.run_config import resolve
from rllib_hpo.experiments.runs.files import RunFiles
from rllib_hpo.experiments.runs.train import TrainingRun
from rllib_hpo.experiments.tracking.operator_metrics import METRICS, TAGS, OperatorMetrics
from rllib_hpo.experiments.tracking.training_metrics import flat_metrics
from rllib_hpo.experiments.tracking.wandb_logger import WandbOptions
from tests.experiments.token_cluster import free_ports

DASHBOARD = Path(__file__).resolve().parents[3] / "cluster/grafana/rllib_hpo.json"
TIMEOUT_S = 120.0
TINY = {
    "algorithm": "sac",
    "task": "Pendulum-v1",
    "seed": 7,
    "hidden_units": 8,
    "train_batch_size_per_learner": 8,
    "warmup_steps": 20,
    "evaluation_every": 40,
    "evaluation_episodes": 1,
    "checkpoint_every": 80,
    "steps_per_iteration": 40,
    "steps": 80,
}


@pytest.fixture
def metrics_port() -> Iterator[int]:
    """Start Ray with a Prometheus endpoint, and return its port."""
    (port,) = free_ports(1)
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        _metrics_export_port=port,
        _system_config={"metrics_report_interval_ms": 500},
    )
    try:
        yield port
    finally:
        ray.shutdown()


def scraped(port: int) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Return labels and value of every sample of our metrics, by name."""
    url = f"http://{ray.util.get_node_ip_address()}:{port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as response:
        families = text_string_to_metric_families(response.read().decode())
        samples = [sample for family in families for sample in family.samples]
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for sample in samples:
        if "rllib_hpo" in sample.name:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def exported(port: int, is_whole: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    """Return the gauges' values by name, when they belong to one iteration; all have the run's tags."""
    deadline = time.monotonic() + TIMEOUT_S
    # An export may come between two gauges; the next one has both.
    while True:
        found = attempt(port)
        if is_whole({name: samples[0][1] for name, samples in found.items()}):
            break
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
    tags = {"sweep": "my-sweep", "trial": "run", "algorithm": "sac", "task": "Pendulum-v1", "seed": "7"}
    assert tuple(tags) == TAGS
    for samples in found.values():
        assert len(samples) == 1
        assert tags.items() <= samples[0][0].items()
    return {name: samples[0][1] for name, samples in found.items()}


def attempt(port: int) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Return `scraped`, or nothing while the endpoint is not up, shortly after Ray's start."""
    try:
        return scraped(port)
    except OSError:
        return {}


@pytest.mark.slow
def test_prometheus_gets_the_gauges(metrics_port: int, tmp_path: Path) -> None:
    config = resolve({**TINY, "num_env_runners": 1, "rollout_fragment_length": 4, "max_lead_steps": 0})
    absent = set() if torch.cuda.is_available() else {"rllib_hpo_gpu_memory_bytes"}
    files, disabled = RunFiles(tmp_path / "run"), WandbOptions("disabled")
    with TrainingRun(config, files, sweep="my-sweep", wandb=disabled) as run:
        for env_steps, updates in ((40, 20), (80, 40)):  # one a step after a warm-up of 20
            began = time.perf_counter()
            metrics = flat_metrics(run.iterate())
            took = time.perf_counter() - began
            of_this_one = {
                "ray_rllib_hpo_env_steps": env_steps,
                "ray_rllib_hpo_replay_rows": env_steps,
                "ray_rllib_hpo_policy_lag_updates": 4,
                "ray_rllib_hpo_evaluation_return": pytest.approx(metrics["evaluation/return_mean"], rel=1e-6),
            }

            def is_whole(
                found: dict[str, float], expected: dict[str, Any] = of_this_one, updates: int = updates
            ) -> bool:
                rate = found.get("ray_rllib_hpo_env_steps_per_second", 0.0) * updates / 40
                rates = {"ray_rllib_hpo_updates_per_second": pytest.approx(rate)}
                return all(found.get(name) == value for name, value in (expected | rates).items())

            values = exported(metrics_port, is_whole)
            assert values.keys() == {f"ray_{name}" for name in METRICS.keys() - absent}
            assert values["ray_rllib_hpo_env_steps_per_second"] >= 40 / took


class RecordingGauge:
    """Replace Ray's gauge."""

    made: ClassVar[dict[str, RecordingGauge]] = {}

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        assert (description, tag_keys) == (METRICS[name], TAGS)
        self.values: list[float] = []
        self.made[name] = self

    def set_default_tags(self, tags: dict[str, str]) -> None:
        self.tags = tags

    def set(self, value: float) -> None:
        self.values.append(value)


@pytest.mark.parametrize(("memory", "evaluation"), [(None, -7.0), (2**30, -7.0), (None, None)])
def test_rates_are_those_of_one_iteration(
    monkeypatch: pytest.MonkeyPatch, memory: int | None, evaluation: float | None
) -> None:
    """This holds also after a resume, whose first steps were made in another session, and before an evaluation."""
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.util.metrics.Gauge", RecordingGauge)
    stack = SimpleNamespace(policy_lag=3)
    algorithm: Any = SimpleNamespace(env_steps=1000, num_updates=900, stack=stack)
    operators = OperatorMetrics(dict.fromkeys(TAGS, "x"), algorithm)
    found = {"learner/gpu_memory_bytes": memory, "evaluation/return_mean": evaluation}
    metrics = {"learner/replay_rows": 500.0} | {n: value for n, value in found.items() if value is not None}
    for steps, updates, seconds in ((40, 20, 2.0), (10, 10, 0.5)):
        algorithm.env_steps += steps
        algorithm.num_updates += updates
        operators.iteration(metrics, seconds)
    assert {name.removeprefix("rllib_hpo_"): gauge.values for name, gauge in RecordingGauge.made.items()} == {
        "env_steps_per_second": [20.0, 20.0],
        "updates_per_second": [10.0, 20.0],
        "env_steps": [1040, 1050],
        "replay_rows": [500.0, 500.0],
        "policy_lag_updates": [3, 3],
        "gpu_memory_bytes": [] if memory is None else [memory, memory],
        "evaluation_return": [] if evaluation is None else [evaluation, evaluation],
    }


def test_without_ray_nothing_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if ray.is_initialized():
        ray.shutdown()
    monkeypatch.setattr("ray.util.metrics.Gauge", None)
    with TrainingRun(
        resolve({**TINY, "steps": 40}), RunFiles(tmp_path / "run"), wandb=WandbOptions("disabled")
    ) as run:
        run.iterate()
        assert run.algorithm.stack.policy_lag == 0
        learner = run.algorithm.local_learner
        monkeypatch.setattr("torch.cuda.max_memory_allocated", {torch.device("cuda:0"): 2**20}.get)
        for device, expected in (("cpu", None), ("cuda:0", 2**20)):
            monkeypatch.setattr(learner.trainer, "device", torch.device(device))
            assert learner.flush_metrics().get("gpu_memory_bytes") == expected
    assert not ray.is_initialized()


def test_every_metric_has_its_panel_and_no_other_is_asked_for() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables.keys() == {"datasource", "sweep", "trial"}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    shown = {metric for panel in panels for metric in metrics_in(expressions(panel))}
    assert shown == {f"ray_{name}" for name in METRICS}
    asked = [variables[name]["query"]["query"] for name in ("sweep", "trial")]
    assert all(query.startswith("label_values(") for query in asked)
    assert metrics_in(asked) <= shown


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    """Sources come from the variable, labels and units are known, and panels have unique ids and do not overlap."""
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    assert dashboard["schemaVersion"] >= 38
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            assert set(re.findall(r"(\w+)=~", target["expr"])) <= set(TAGS)
            assert set(re.findall(r"by \(([^)]*)\)", target["expr"])) == {"sweep, trial"}


def expressions(panel: dict[str, Any]) -> list[str]:
    return [target["expr"] for target in panel["targets"]]


def metrics_in(queries: list[str]) -> set[str]:
    """Return every metric of a selection: a name before braces, or the subject of `label_values`."""
    return {name for query in queries for name in re.findall(r"\w+(?={)|(?<=label_values\()\w+", query)}
