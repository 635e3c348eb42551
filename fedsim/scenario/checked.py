"""A dataclass from plain values, as strictly as a scenario is read: no unknown keys, no silent conversions.

Values go through JSON, because pydantic's strict mode accepts lists for tuples and blocks for dataclasses only there.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, create_model
from pydantic.errors import PydanticUserError

from fedsim.facts import BadInput
from fedsim.scenario.errors import BadInputs
from fedsim.scenario.plain_words import problems

T = TypeVar("T")
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def checked(cls: type[T], parameters: dict[str, Any], beside: Iterable[str] = ()) -> T:
    """An instance of the dataclass. parameters: JSON-able; BadInputs at locations within them if they do not fit.

    beside: further keys that may stand in the same block; a misspelt one is corrected too.
    """
    try:
        # A plain dataclass takes over the strictness of the model that it is a field of.
        wrapper = create_model("Wrapper", __config__=_STRICT, value=(cls, ...))
        return cast(T, wrapper.model_validate_json(json.dumps({"value": parameters})).value)  # type: ignore[attr-defined]
    except ValidationError as error:
        schema = schema_of(cls)
        schema["properties"] = {**schema.get("properties", {}), **{name: {} for name in beside}}
        raise BadInputs(problems(error, parameters, schema, root="value")) from None
    except (PydanticUserError, NameError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"the parameter types of {cls.__qualname__} cannot be read: {reason}") from None
    except Exception as error:  # a __post_init__ of the user's own
        raise BadInput(f"{cls.__qualname__} fails on these parameters: {type(error).__name__}: {error}") from error


def checked_model(cls: type[BaseModel], values: dict[str, Any]) -> Any:
    """An instance of the pydantic model, read from `values` as from a file; BadInputs if they do not fit."""
    try:
        return cls.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise BadInputs(problems(error, values, cls.model_json_schema())) from None


def schema_of(cls: type[Any], ref_template: str = "#/$defs/{model}") -> dict[str, Any]:
    """The JSON Schema of a dataclass; of its field names alone where pydantic knows no schema for a type."""
    try:
        with warnings.catch_warnings(action="ignore"):  # defaults that JSON cannot say are left out
            return TypeAdapter(cls).json_schema(ref_template=ref_template)
    except Exception:  # user types have many ways not to be JSON
        names = [f.name for f in fields(cls) if f.init] if is_dataclass(cls) else []
        return {"type": "object", "properties": {name: {} for name in names}}
