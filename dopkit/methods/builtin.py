"""The methods that dopkit brings, by name. Each family of methods has a room of its own. Loads no torch."""

from __future__ import annotations

from dopkit.methods import entry_methods, joint_methods, matrix_methods
from dopkit.methods.rule import Method

BUILTIN: dict[str, Method] = {
    method.name: method for method in (*entry_methods.METHODS, *joint_methods.METHODS, *matrix_methods.METHODS)
}
