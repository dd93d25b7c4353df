"""Export a policy to a file, and read one back from safetensors."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from rllib_hpo.algorithms.registry import make_method
from rllib_hpo.deployment.metadata import PolicyMetadata
from rllib_hpo.deployment.policy import DeployedPolicy
from rllib_hpo.documents import reason
from rllib_hpo.errors import CheckpointError, SettingsError, UserError, unknown_name
from rllib_hpo.results.atomic import write_atomically
from rllib_hpo.tasks import import_modules

METADATA = "rllib_hpo"
"""The key of the metadata in a file."""
OPSET = 18


def write_policy(policy: DeployedPolicy, file_format: str, out: Path) -> list[Path]:
    """Write `policy` to `out`, atomically.

    Args:
        policy: What to write.
        file_format: One of `FORMATS`.
        out: The file.

    Returns:
        The files written.

    Raises:
        UnknownNameError: If there is no such format.
        UserError: If `out` cannot be written, or a package is missing that the format needs.
    """
    if file_format not in FORMATS:
        raise unknown_name("export format", file_format, FORMATS)
    if out.is_dir():
        raise UserError(f"{out} is a directory; give a file.")
    with torch.no_grad(), _quiet():
        contents = FORMATS[file_format](policy, out)
    for path, content in contents.items():
        write_atomically(path, content)
    return list(contents)


def _torch_export(policy: DeployedPolicy, out: Path) -> dict[Path, bytes]:
    """A `torch.export` program: `torch.export.load(file).module()(obs)` needs torch and nothing else."""
    batch = torch.export.Dim("batch")
    example = _example(policy)
    parts = policy.encoder.parts
    of_obs = policy.encoder.nested([{0: batch}] * len(parts)) if parts else {0: batch}
    shapes: Any = (of_obs, *([({0: batch},) * (len(example) - 1)] if len(example) > 1 else []))
    program = torch.export.export(policy, example, dynamic_shapes=shapes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # which holds the paths of whoever exported
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA: policy.metadata.to_json()})
    return {out: buffer.getvalue()}


def _onnx(policy: DeployedPolicy, out: Path) -> dict[Path, bytes]:
    """An ONNX model from "obs" to "action"; metadata are a property of it.

    A structured observation has an input for each part, by its name.
    """
    _need("onnxscript")
    encoder, (obs, *memory) = policy.encoder, _example(policy)
    names, tensors = [part.name for part in encoder.parts] or ["obs"], encoder.leaves(obs) or [obs]
    batch = {0: "batch"}
    program = torch.onnx.export(
        _WithParts(policy) if encoder.parts else policy,
        (*tensors, *memory),
        dynamo=True,
        dynamic_shapes=((batch,) * len((*tensors, *memory)),)
        if encoder.parts
        else (batch, *([(batch,) * len(memory)] if memory else [])),
        input_names=[*names, *policy.memory],
        output_names=["action", *(f"next_{name}" for name in policy.memory)],
        opset_version=OPSET,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    for node in [*model.graph.node, *(node for function in model.functions for node in function.node)]:
        del node.metadata_props[:]  # stack traces again
    model.metadata_props.add(key=METADATA, value=policy.metadata.to_json())
    _need("onnx").checker.check_model(model, full_check=True)
    return {out: model.SerializeToString()}


def _safetensors(policy: DeployedPolicy, out: Path) -> dict[Path, bytes]:
    """The actor's weights as safetensors, with the metadata as JSON in the file's header and beside it."""
    return {
        out: to_safetensors(policy),
        out.with_name(out.name + ".json"): policy.metadata.to_json().encode(),
    }


FORMATS: dict[str, Callable[[DeployedPolicy, Path], dict[Path, bytes]]] = {
    "torch-export": _torch_export,
    "onnx": _onnx,
    "safetensors": _safetensors,
}
"""Functions by name that return the contents of each file."""


def to_safetensors(policy: DeployedPolicy) -> bytes:
    """The safetensors file that `load_policy_file` reads: the actor's weights, and the metadata in the header.

    Raises:
        UserError: If the package safetensors is missing.
    """
    weights = {name: value.contiguous() for name, value in policy.actor.state_dict().items()}
    content: bytes = _need("safetensors.torch").save(weights, metadata={METADATA: policy.metadata.to_json()})
    return content


def check_safetensors() -> None:
    """Check that the package safetensors is installed.

    Raises:
        UserError: If the package safetensors is missing.
    """
    _need("safetensors.torch")


def load_policy_file(path: Path) -> DeployedPolicy:
    """Load the policy of a safetensors file, which holds no code, without ray.

    Raises:
        CheckpointError: If there is no such file, or it is something else.
        UserError: If a module that it needs cannot be imported.
        UnknownNameError: If its algorithm is of a package that is not imported.
    """
    safetensors = _need("safetensors")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA, "")
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except Exception as error:  # a damaged header may raise anything
        raise CheckpointError(f"{path} cannot be read as safetensors: {reason(error)}.") from error
    metadata = PolicyMetadata.from_json(text, str(path))
    import_modules(metadata.imports, str(path))
    dims = metadata.observation_space.shape[0], metadata.action_space.shape[0]
    try:
        settings = metadata.parsed_settings()
    except SettingsError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    held = sum(value.numel() * value.element_size() for value in weights.values())
    try:
        method = make_method(settings)
        if sum(part.num_bytes for part in method.actor_parts(*dims)) > held:
            raise ValueError("there are too few")  # told before memory is taken for those that are missing
        actor = method.make_actor(*dims, seed=0)
        actor.load_state_dict(weights)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"The weights in {path} are not those of its metadata.") from error
    if not all(torch.isfinite(value).all() for value in weights.values()):
        raise CheckpointError(f"The weights in {path} are damaged: some are not finite.")
    return DeployedPolicy(actor, metadata)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporters' log messages; a failed export still raises."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class _WithParts(torch.nn.Module):
    """Take the parts of an observation one by one, since the inputs of an ONNX model are tensors."""

    def __init__(self, policy: DeployedPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, *inputs: torch.Tensor) -> Any:
        number = len(self.policy.encoder.parts)
        return self.policy(self.policy.encoder.nested(inputs[:number]), *inputs[number:])


def _example(policy: DeployedPolicy) -> tuple[Any, ...]:
    """Example inputs for tracing, of two rows, since exporters take a batch of one for a constant."""
    encoder = policy.encoder
    obs = encoder.example(2) if encoder.parts else torch.zeros((2, policy.actor.obs_dim))
    return obs, *policy.begin(obs)


def _need(module: str) -> ModuleType | Any:
    try:
        return __import__(module, fromlist=["_"])
    except ImportError as error:
        raise UserError(
            f"This format needs a package that is not installed ({error}): pip install 'rllib-hpo[export]'."
        ) from error
