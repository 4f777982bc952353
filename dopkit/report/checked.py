"""Data of others, taken in only as far as it has the shape it should have."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ValidationError

from dopkit.errors import OutputError
from dopkit.report.scales import finite

Number = Annotated[float | None, BeforeValidator(finite)]  # what cannot be drawn is unknown
Shape = TypeVar("Shape", bound=BaseModel)


def checked(shape: type[Shape], data: Any, what: str) -> Shape | None:
    """``data`` as ``shape``, None when there is none. Raises OutputError naming ``what`` when it is damaged."""
    if data is None:
        return None
    try:
        return shape.model_validate(data)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        place = f"{what}: {where}" if where else what
        raise OutputError(f"{place} is missing or not what it should be") from None
