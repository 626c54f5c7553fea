"""Pydantic models as what is stored, and back: by their fields, whatever their serializers would make of them.

Pydantic is optional, and imported only by those who have a model; none is looked for before.
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec

from dgents.runtime.shapes import is_pydantic, is_root_model, stored_names


def model_fields(value: Any) -> Any:
    """Return the fields of a model, and what it allows beside them, under the names that they are stored under."""
    cls = type(value)
    if is_root_model(cls):
        return value.root
    here = value.__dict__
    fields = {under: here[name] for name, under in stored_names(cls).items() if name in here}
    return {**fields, **(value.__pydantic_extra__ or {})}


class Reader:
    """Makes models of what is stored.

    Args:
        classes: the classes that a schema names.

    Raises:
        TypeError: a model has to be read by the names of its fields, which this Pydantic can't do.
    """

    def __init__(self, classes: Collection[type]) -> None:
        self._models: list[Any] = [cls for cls in classes if is_pydantic(cls)]
        self._options: Mapping[str, bool] = {}
        if any(_has_own_names(cls) for cls in self._models):
            if "by_name" not in inspect.signature(self._models[0].model_validate).parameters:
                raise TypeError("a field is read under one name and written under another: that takes pydantic 2.11")
            self._options = {"by_alias": True, "by_name": True}

    def whole(self, schema: Any) -> Callable[[Any], Any] | None:
        """Return what makes a state of any schema that names models; None if it names none, or not even that can."""
        if not self._models:
            return None
        pydantic = sys.modules["pydantic"]
        try:
            adapter = pydantic.TypeAdapter(schema)
        except (TypeError, NameError, pydantic.PydanticUserError):
            return None

        def convert(tree: Any) -> Any:
            try:
                return self._validated(adapter.validate_python, tree)
            except ValueError as error:
                raise msgspec.ValidationError(str(error)) from error

        return convert

    def fit(self, expected: Any, value: Any) -> Any:
        """Return ``value`` as ``expected``, a type that msgspec does not know."""
        cls = typing.get_origin(expected) or expected
        if isinstance(value, cls):
            return value
        if is_pydantic(cls):
            return self._validated(cls.model_validate, value)
        raise ValueError(f"Expected `{cls.__name__}`, got `{type(value).__name__}`")

    def _validated(self, validate: Callable[..., Any], value: Any) -> Any:
        try:
            return validate(value, **self._options)
        except sys.modules["pydantic"].ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            steps = "".join(f".{step}" if isinstance(step, str) else f"[{step}]" for step in first["loc"])
            raise ValueError(f"{first['msg']} - at `${steps}`") from error


def _has_own_names(cls: Any) -> bool:
    """Say whether a field is stored under its own name, though Pydantic looks for it under another."""
    stored = stored_names(cls)
    return any(stored[name] == name and field.validation_alias for name, field in cls.model_fields.items())
