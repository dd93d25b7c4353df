"""Make the pages of the reference from the code: commands, settings, tasks, sweep files, result rows, modules."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer.main
from pydantic import BaseModel

from rllib_hpo.algorithms.registry import BUILT_IN, find_settings, title
from rllib_hpo.cli import app
from rllib_hpo.experiments.config import search_config, sweep_config
from rllib_hpo.experiments.config.run_config import RunSettings
from rllib_hpo.experiments.runs.zoo import residents
from rllib_hpo.experiments.tracking.operator_metrics import METRICS, TAGS
from rllib_hpo.experiments.tracking.training_metrics import MEANINGS
from rllib_hpo.results.schema import SCHEMA, SCHEMA_VERSION, VOLATILE_COLUMNS
from rllib_hpo.tasks import all_tasks

ROOT = Path(__file__).resolve().parents[2]
NO_PAGE = ("rllib_hpo.moved", "rllib_hpo.cli", "rllib_hpo.rllib._private")
"""Modules whose interface is not Python's, or not for others."""


def pages() -> dict[str, str]:
    """Return Markdown by path on the site."""
    return {
        "reference/cli.md": cli_page(),
        "reference/settings/index.md": settings_index(),
        **{f"reference/settings/{name}.md": settings_page(name) for name in BUILT_IN},
        "reference/tasks.md": tasks_page(),
        "reference/sweep-file.md": sweep_file_page(),
        "reference/search-file.md": search_file_page(),
        "reference/results.md": results_page(),
        "reference/metrics.md": metrics_page(),
        "reference/zoo.md": zoo_page(),
        **{api_uri(module): f"::: {module}\n" for module in modules()},
    }


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines) + "\n"


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def code(value: object) -> str:
    """Write a value as inline code, as YAML writes it; nothing for nothing."""
    if value is None or isinstance(value, bool):
        value = {None: "null", True: "true", False: "false"}[value]
    return f"`{value}`" if str(value) else ""


# --- commands -----------------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, Any]]:
    """Yield each command with its full name, in the order of `rllib-hpo --help`."""

    def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        if hasattr(command, "commands"):
            for child, inner in command.commands.items():
                yield from walk(f"{name} {child}", inner)
        else:
            yield name, command

    yield from walk("rllib-hpo", typer.main.get_command(app))


def cli_page() -> str:
    """List every command with its arguments and options."""
    parts = [
        "# Command line\n\nExit codes: 0, or 2 for a mistake that one sentence explains, 1 for an internal error.\n"
    ]
    for name, command in commands():
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option"]
        usage = " ".join([name, *(_usage(p) for p in arguments), "[OPTIONS]" if options else ""]).strip()
        parts.append(f"\n## `{name}`\n\n{inspect.cleandoc(command.help or '')}\n\n```\n{usage}\n```\n")
        if arguments:
            parts.append(
                "\n" + table(("argument", "meaning"), ((code(_usage(p)), p.help or "") for p in arguments))
            )
        if options:
            rows = (
                (code(", ".join(p.opts + p.secondary_opts)), _takes(p), _default(p), p.help or "")
                for p in options
            )
            parts.append("\n" + table(("option", "value", "default", "meaning"), rows))
    return "".join(parts)


def _usage(argument: Any) -> str:
    name = (argument.metavar or argument.name.upper()).strip("[].")
    more = "..." if argument.nargs == -1 else ""
    return f"{name}{more}" if argument.required else f"[{name}]{more}"


def _takes(option: Any) -> str:
    """Say what an option takes: what its annotation says, or its own name for them."""
    annotation = option.type_descriptor.annotation
    if annotation is bool:
        return ""
    if get_origin(annotation) is Literal:
        return " ".join(code(choice) for choice in get_args(annotation))
    name = option.metavar or {"str": "TEXT", "int": "INTEGER", "float": "NUMBER"}.get(
        annotation.__name__, "PATH"
    )
    bounds = [
        f"{sign} {bound}" for sign, bound in (("≥", option.min), ("≤", option.max)) if bound is not None
    ]
    return " ".join([code(name), ", ".join(bounds), "(many times)" if option.multiple else ""]).strip()


def _default(option: Any) -> str:
    value = option.default
    if option.required:
        return "required"
    return "" if value is None or value is False or callable(value) else code(value)


# --- settings -----------------------------------------------------------------------------------------------------


def settings_index() -> str:
    """List all algorithms with links, and the settings of a run that are no hyperparameters."""
    algorithms = (
        (f"[`{name}`]({name}.md)", title(name), _first_sentence(find_settings(name))) for name in BUILT_IN
    )
    return (
        "# Settings\n\nThe same names are used by `--set`, in `--config` and sweep files, in Python's `training()`, "
        "and in `config_json` of result rows. `rllib-hpo settings ALGORITHM` prints them.\n\n"
        + table(("algorithm", "in figures", "settings"), algorithms)
        + "\n## Settings of a run\n\nThey apply to every algorithm. In Python they are methods of RLlib's "
        "`AlgorithmConfig`, such as `env_runners(num_env_runners=...)`.\n\n" + model_table(RunSettings)
    )


def settings_navigation() -> list[str]:
    """Return the pages of settings, the index first."""
    return ["reference/settings/index.md", *(f"reference/settings/{name}.md" for name in BUILT_IN)]


def settings_page(algorithm: str) -> str:
    """List every setting of one algorithm, those of its own first."""
    model = find_settings(algorithm)
    parts = [f"# Settings of `{algorithm}`\n\n{inspect.cleandoc(model.__doc__ or '')}\n"]
    left = set(model.model_fields)
    for owner in model.__mro__:
        own = [name for name in getattr(owner, "__annotations__", {}) if name in left]
        if own:
            left -= set(own)
            link = f"[`{owner.__name__}`][{owner.__module__}.{owner.__name__}]"
            parts.append(f"\n## {link}\n\n" + model_table(model, own))
    return "".join(parts)


def model_table(model: type[BaseModel], names: Iterable[str] | None = None) -> str:
    """List fields of a model, by default all: name, values, default, meaning."""
    schema = model.model_json_schema()
    documented = attribute_docstrings(model)
    properties, definitions = schema["properties"], schema.get("$defs", {})
    rows = []
    for name in properties if names is None else names:
        field = model.model_fields[name]
        meaning = field.description or documented.get(name, "")
        default = "required" if field.is_required() else code(field.get_default(call_default_factory=True))
        rows.append((code(name), values(properties[name], definitions), default, meaning))
    return table(("setting", "values", "default", "meaning"), rows)


def values(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Say in words what values a JSON schema allows."""
    if "anyOf" in schema or "oneOf" in schema:
        return " or ".join(values(part, definitions) for part in schema.get("anyOf") or schema["oneOf"])
    if "$ref" in schema:
        definition = definitions[schema["$ref"].rsplit("/", 1)[-1]]
        keys = " ".join(code(key) for key in definition.get("properties", {}))
        return f"mapping of {keys}" if keys else values(definition, definitions)
    if "const" in schema:
        return code(schema["const"])
    if "enum" in schema:
        return " or ".join(code(choice) for choice in schema["enum"])
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {values(schema.get('items', {}), definitions)}"
    word = {"object": "mapping", "boolean": "true or false", "string": "text", "null": "none"}.get(kind, kind)
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    bounds = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema and schema[key] < 1e9]
    return " ".join([word, ", ".join(bounds)]).strip()


def attribute_docstrings(model: type) -> dict[str, str]:
    """Return the string below each attribute of a class."""
    body = ast.parse(inspect.getsource(model)).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        ast.unparse(field.target): inspect.cleandoc(text.value.value)
        for field, text in zip(body.body, body.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def _first_sentence(documented: Any) -> str:
    return inspect.cleandoc(documented.__doc__ or "").split("\n\n")[0]


# --- tasks, sweep files, rows and metrics ---------------------------------------------------------------------------


def tasks_page() -> str:
    """List registered tasks with the settings that they change."""
    rows = []
    for task in all_tasks():
        cost = ", ".join(f"{key}: {value}" for key, value in task.constraint.items())
        changed = {name: task.settings_for(name) for name in task.defaults}
        hpo = ", ".join(
            f"{key}={value}"
            for key, value in changed.get("sac-hpo", {}).items()
            if key not in task.constraint
        )
        rows.append((code(task.name), code(task.env_id), f"{task.steps:,}", hpo, cost))
    return (
        "# Tasks\n\n`--task` takes one of these names, or any gymnasium id. The settings shown are those of `sac-hpo`; "
        "`rllib-hpo train` prints the resolved ones of any algorithm, each with its origin.\n\n"
        + table(("task", "environment", "steps", "settings of `sac-hpo`", "cost"), rows)
    )


def sweep_file_page() -> str:
    """Describe a sweep file, and list the files that come with the package."""
    parts = [f"# Sweep file\n\n{inspect.cleandoc(sweep_config.__doc__ or '')}\n"]
    for heading, model in (
        ("Keys", sweep_config.SweepFile),
        ("Keys of a variant", sweep_config.Variant),
        ("Keys of an override", sweep_config.Override),
    ):
        parts.append(f"\n## {heading}\n\n" + model_table(model))
    rows = []
    for path in sorted((ROOT / "tune_configs").glob("*.yaml")):
        sweep = sweep_config.read_sweep(path)
        steps = sum(trial.config.run.steps for trial in sweep.trials) / 1e6
        link = f"[`{path.stem}`](../../tune_configs/{path.name})"
        rows.append((link, len(sweep.trials), f"{steps:g} M", sweep.description))
    parts.append(
        "\n## Files that come with the package\n\nTheir names stand for their paths: `rllib-hpo sweep NAME`.\n\n"
        + table(("sweep", "trials", "steps", "what it is for"), rows)
    )
    return "".join(parts)


def search_file_page() -> str:
    """Describe a search file, and list the files that come with the package."""
    parts = [f"# Search file\n\n{inspect.cleandoc(search_config.__doc__ or '')}\n"]
    for heading, model in (
        ("Keys", search_config.SearchFile),
        ("Keys of a searched setting", search_config.Domain),
        ("Keys of `asha`", search_config.Asha),
        ("Keys of `pbt`", search_config.Pbt),
    ):
        parts.append(f"\n## {heading}\n\n" + model_table(model))
    rows = []
    for path in sorted((ROOT / "tune_configs" / "search").glob("*.yaml")):
        search = search_config.read_search(path)
        steps = search.file.trials * search.steps / 1e6
        link = f"[`{path.name}`](../../tune_configs/search/{path.name})"
        rows.append((link, search.file.trials, f"{steps:g} M", search.file.description))
    parts.append(
        "\n## Files in `tune_configs/search/`\n\n"
        + table(("file", "trials", "steps, at most", "what it is for"), rows)
    )
    return "".join(parts)


def results_page() -> str:
    """List the columns of a result row."""
    rows = []
    for field in SCHEMA:
        marks = ("yes" if mark else "" for mark in (field.nullable, field.name in VOLATILE_COLUMNS))
        rows.append((code(field.name), code(field.type), *marks, field.metadata[b"description"].decode()))
    return (
        f"# Result columns\n\nOne row is one evaluation. This is schema version {SCHEMA_VERSION}; rows of earlier "
        "versions are read, too. Equal runs agree in all columns but those that describe time, machine and build "
        "(volatile).\n\n" + table(("column", "type", "may be null", "volatile", "meaning"), rows)
    )


def metrics_page() -> str:
    """List the metrics of training, and the gauges that Ray exports to Prometheus."""
    tags = ", ".join(code(tag) for tag in TAGS)
    metrics = ((code(name), text) for name, text in MEANINGS.items())
    gauges = ((code(f"ray_{name}"), text) for name, text in METRICS.items())
    return (
        "# Metrics\n\nWeights & Biases and TensorBoard get these over environment steps, where an algorithm, task or "
        "layout has them. In RLlib's results `learner/X` is `learners/default_policy/X`. Diagnostics are taken every "
        "`diagnostics_interval` updates; result rows hold the latest. Returns of training episodes (`train/`) are for "
        "watching; [evaluations](../concepts/evaluation.md) are results.\n\n"
        + table(("metric", "meaning"), metrics)
        + f"\n## Prometheus\n\nEach gauge has the tags {tags}.\n\n"
        + table(("gauge", "meaning"), gauges)
    )


def zoo_page() -> str:
    """List the policies of the zoo."""
    rows = (
        (
            code(one.name),
            code(one.env_id),
            f"{one.env_steps:,}",
            f"{one.return_mean:,.1f} ± {one.return_std:,.1f}",
            code(one.command),
        )
        for one in residents()
    )
    return (
        "# Zoo\n\nTrained policies that come with the package: `rllib-hpo enjoy POLICY` plays one, "
        "`rllib_hpo.deployment.load_policy_file` loads its file. Each was trained with one seed; a return is mean ± "
        "standard deviation over the episodes of its last evaluation. Rows are in [`zoo/`](../../zoo).\n\n"
        + table(("policy", "environment", "steps", "return", "trained by"), rows)
    )


# --- modules ------------------------------------------------------------------------------------------------------


@cache
def modules() -> list[str]:
    """Return names of the modules that have a page, parents first."""
    names = []
    for path in sorted((ROOT / "rllib_hpo").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if name != "rllib_hpo" and not name.startswith(NO_PAGE):
            names.append(name)
    return sorted(names, key=lambda name: name.split("."))


def api_uri(module: str) -> str:
    """Return the path on the site of a module's page; the page of a package is the index of its folder."""
    path = module.replace(".", "/")
    return f"reference/api/{path}/index.md" if (ROOT / path).is_dir() else f"reference/api/{path}.md"


def api_navigation() -> list[Any]:
    """Return the modules as nested entries of the navigation."""

    def entries(prefix: str) -> list[Any]:
        depth = prefix.count(".") + 1
        children = [name for name in modules() if name.startswith(f"{prefix}.") and name.count(".") == depth]
        return [
            {name.rsplit(".", 1)[-1]: [api_uri(name), *below] if (below := entries(name)) else api_uri(name)}
            for name in children
        ]

    return entries("rllib_hpo")
