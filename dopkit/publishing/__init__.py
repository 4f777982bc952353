"""From a merged folder to a model repository on the Hub. How files get there is the business of ``hub``."""

from __future__ import annotations

from dopkit.publishing.ahead import Ahead, shipped
from dopkit.publishing.folder import Pushed, push
from dopkit.publishing.place import PushOptions, obstacles

__all__ = ["Ahead", "PushOptions", "Pushed", "obstacles", "push", "shipped"]
