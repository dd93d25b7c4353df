"""Read a YAML file into a pydantic model, with the line of every mistake."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from rllib_hpo.documents import YamlLines, read_documents
from rllib_hpo.errors import UserError, nearest, shown

ModelT = TypeVar("ModelT", bound=BaseModel)


class FileModel(BaseModel):
    """Keys of a file, or of a part of it; others are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelLines(YamlLines):
    """A file with one document, and the line of every value.

    Args:
        path: A YAML file.
        kind: The file's kind in messages, such as "sweep file".
        parts: Models of the values of a key, or of each element below it.
    """

    def __init__(self, path: Path, kind: str, parts: Mapping[str, type[BaseModel]]) -> None:
        (document,) = read_documents(path, kind, many=False)
        super().__init__(path, document.root)
        self._kind, self._parts = kind, parts

    def parsed(self, model: type[ModelT]) -> ModelT:
        """The file as a model.

        Raises:
            SettingsError: Naming the line of what does not fit.
        """
        try:
            return model(**self.values)
        except ValidationError as error:
            # A key misspelt says more than that the right one is missing.
            first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
            place = tuple(first["loc"])
            if first["type"] == "extra_forbidden":
                inner = self._parts.get(str(place[0]), model) if len(place) > 1 else model
                close = nearest(str(place[-1]), inner.model_fields)
                hint = f". Did you mean '{close}'?" if close else f". Valid: {', '.join(inner.model_fields)}"
                raise self.error(place, f"'{place[-1]}' is not a valid key here{hint}") from None
            name = ".".join(str(part) for part in place)
            reason = first["msg"].removeprefix("Input should be ")
            if first["type"] == "missing":
                raise self.error(place[:-1], f"'{name}' is missing") from None
            if first["type"] == "value_error":
                raise self.error(place, f"{name}: {reason.removeprefix('Value error, ')}") from None
            raise self.error(place, f"{name}={shown(first['input'])} must be {reason}") from None

    def located(self, place: tuple[Any, ...], function: Callable[..., Any], *args: Any) -> Any:
        """Call `function`, and add the line of `place` to a UserError."""
        try:
            return function(*args)
        except UserError as error:
            raise self.error(place, str(error)) from None

    def among(self, place: tuple[Any, ...], value: str, allowed: Sequence[str], kind: str) -> None:
        """Check that `allowed`, which the file lists elsewhere, has a value."""
        if value not in allowed:
            close = nearest(value, allowed)
            hint = f"Did you mean '{close}'?" if close else f"It has {', '.join(allowed)}."
            raise self.error(place, f"the {self._kind.split()[0]} has no {kind} '{value}'. {hint}")
