"""An adapter and its base as one model: every tensor is the base's with what the adapter does to it.

Nothing but the tensor in hand is ever made. Computed in float32 (in float64 where the base is) and handed on so.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dopkit.checkpoints import files
from dopkit.checkpoints.adapter_config import CONFIG, AdapterConfig, read_adapter_config
from dopkit.checkpoints.adapter_names import sort_tensors
from dopkit.checkpoints.adapter_places import Placed, place
from dopkit.checkpoints.checkpoint import Checkpoint, Read
from dopkit.checkpoints.deltas import Change, LowRank
from dopkit.checkpoints.folder import open_folder
from dopkit.checkpoints.repository import open_repository
from dopkit.checkpoints.shared import Shared
from dopkit.errors import CheckpointError, Problem, count
from dopkit.refs import ModelRef
from dopkit.roles import Role

if TYPE_CHECKING:
    import torch

_BLOCK = 1 << 22  # elements read at once where a whole tensor's norms are needed

Rows = tuple[int, int]


class AdapterCheckpoint(Checkpoint):
    """See ``open_adapter``. ``adapter`` holds the adapter's own tensors."""

    def __init__(
        self, ref: ModelRef, base: Shared, adapter: Checkpoint, placed: Placed, lora: AdapterConfig, config_text: str
    ) -> None:
        specs = {**base.specs, **placed.own}
        super().__init__(ref, specs, _own_config(base, placed), base.side_files, "")
        facts = hashlib.sha256(f"{adapter.identity}\0{config_text}".encode()).hexdigest()
        own = adapter.identity if adapter.ref.repo else f"sampled:{facts}"
        self.identity = f"{own}+{base.identity}"
        self.complete = base.complete and adapter.complete
        self.notes = (*base.notes, *adapter.notes, *placed.notes)
        self.streams = base.streams or adapter.streams
        self.base = base
        self.adapter = adapter
        self.changes: Mapping[str, Change] = placed.changes
        self.lora = lora
        self._placed = placed
        self._config_text = config_text
        self._held: tuple[str, dict[str, torch.Tensor]] | None = None  # factors of the tensor in hand
        self._norms: tuple[str, torch.Tensor] | None = None  # of its columns, for DoRA
        self._lock = threading.Lock()

    @property
    def state(self) -> str:
        return f"{self.identity}:{self.adapter.state}:{self.base.state}"

    @property
    def download_bytes(self) -> int:
        return self.adapter.download_bytes + self.base.download_bytes

    @property
    def missing(self) -> frozenset[str]:
        return self.adapter.missing | self.base.missing

    @property
    def sources(self) -> tuple[Checkpoint, ...]:
        return self.adapter, self.base

    @property
    def factors(self) -> dict[str, int]:
        """Bytes that are read of the adapter for each tensor that it changes."""
        own = self.adapter.specs
        return {
            name: sum(own[tensor].nbytes for tensor in (*change.tensors, *filter(None, (change.whole,))))
            for name, change in self.changes.items()
        }

    @property
    def whole(self) -> frozenset[str]:
        """The tensors that nothing is read of the base for."""
        return frozenset(name for name, change in self.changes.items() if change.whole is not None)

    def streamed(self) -> Checkpoint:
        base, adapter = self.base.streamed(), self.adapter.streamed()
        if base is self.base and adapter is self.adapter:
            return self
        return AdapterCheckpoint(self.ref, base, adapter, self._placed, self.lora, self._config_text)

    def fetch(self) -> None:
        self.adapter.fetch()
        self.base.fetch()

    def reads(self, name: str, rows: Rows | None) -> Iterator[Read]:
        change = self.changes.get(name)
        if change is None or change.whole is None:
            yield self.base, name, rows
        else:
            yield self.adapter, change.whole, rows
        if change is not None and (rows is None or rows[0] == 0):  # they are held for the rows that follow
            for own in change.tensors:
                yield self.adapter, own, None

    def read(self, name: str, rows: Rows | None = None) -> torch.Tensor:
        import torch

        change = self.changes.get(name)
        if change is None:
            return self.base.read(name, rows)
        if change.whole is not None and not change.tensors:
            return self.adapter.read(change.whole, rows)
        part = self._raw(name, change, rows)
        # a copy even where nothing is converted: what comes from the base is lent
        part = part.to(torch.float64 if part.dtype is torch.float64 else torch.float32, copy=True).contiguous()
        spec = self.specs[name]
        with self._lock:
            factors = self._factors(name, change)
            for product in change.low_rank:
                norms = self._column_norms(name, change, product, factors) if product.norms_span_rows else None
                product.apply(part, rows or (0, spec.rows), factors, norms)
            for one in change.rest:
                one.apply(part, rows or (0, spec.rows), factors)
        return part

    def _raw(self, name: str, change: Change, rows: Rows | None) -> torch.Tensor:
        """What the change begins with."""
        return self.base.lend(name, rows) if change.whole is None else self.adapter.read(change.whole, rows)

    def _factors(self, name: str, change: Change) -> dict[str, torch.Tensor]:
        if self._held is None or self._held[0] != name:
            self._held = None
            self._held = name, {own: self.adapter.read(own) for own in change.tensors}
        return self._held[1]

    def _column_norms(
        self, name: str, change: Change, product: LowRank, factors: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """The norm of every column after the product is added, over all rows."""
        import torch

        if self._norms is None or self._norms[0] != name:
            spec = self.specs[name]
            step = max(1, _BLOCK * spec.rows // max(1, spec.numel))
            squares = torch.zeros(spec.shape[1], dtype=torch.float64)
            for start in range(0, spec.rows, step):
                rows = (start, min(spec.rows, start + step))
                block = self._block(name, change, rows)
                product.add(block, rows, factors)
                squares += block.square().sum(0, dtype=torch.float64)
            self._norms = name, squares.sqrt()
        return self._norms[1].to(torch.float64 if self.specs[name].dtype == "F64" else torch.float32)

    def _block(self, name: str, change: Change, rows: Rows) -> torch.Tensor:
        import torch

        # not through the base's memory: it holds the part in hand
        raw = self.base.aside(name, rows) if change.whole is None else self.adapter.read(change.whole, rows)
        return raw.to(torch.float64 if raw.dtype is torch.float64 else torch.float32, copy=True).contiguous()

    def side_file(self, name: str) -> Path:
        return self.base.side_file(name)

    def digests(self, name: str) -> frozenset[str]:
        return self.base.digests(name)

    def close(self) -> None:
        self.adapter.close()
        self.base.close()
        self._held = self._norms = None


def open_adapter(ref: ModelRef, base: Shared) -> AdapterCheckpoint:
    """Open the adapter of ``ref``, pinned, on its ``base``, from headers alone.

    Raises CheckpointError with every reason why it cannot be merged as a model, HubError.
    """
    adapter, shown = ref.adapter, ref.short
    assert adapter is not None
    opened: Checkpoint
    if adapter.folder is not None:
        opened = open_folder(adapter, adapter.folder, files.ADAPTER)
    else:
        opened = open_repository(adapter, files.ADAPTER)
    text = _config_text(opened)
    config = read_adapter_config(text, adapter.short)
    parts = sort_tensors(opened.specs)
    placed = place(parts, config, opened.specs, base.names, base.ref.short)
    if placed.problems:
        opened.close()
        raise CheckpointError(f"{adapter.short} cannot be applied to {base.ref.short}", placed.problems)
    if parts.copies:
        what = "left unread: copies that PEFT keeps beside the trained ones"
        placed.notes.append(f"{count(len(parts.copies), 'tensor')} {what}")
    placed.notes = [f"{shown}: {note}" for note in (*_summary(placed, base), *other_base(config, base), *placed.notes)]
    return AdapterCheckpoint(ref, base, opened, placed, config, text)


_LABELS_BY_DEFAULT = 2  # transformers leaves them out of a config.json


def _own_config(base: Shared, placed: Placed) -> Mapping[str, Any] | None:
    """The base's config, with as many labels as the adapter's own classifier has outputs."""
    if base.config is None:
        return None
    heads = [name for name in placed.own if name in base.specs and base.names.role(name) is Role.HEAD]
    rows = {pair for name in heads if len(set(pair := (base.specs[name].rows, placed.own[name].rows))) == 2}
    labels = len(base.config.get("id2label") or ()) or base.config.get("num_labels") or _LABELS_BY_DEFAULT
    if [before for before, _ in rows] != [labels]:
        return base.config
    ((_, own),) = rows
    named = {str(label): f"LABEL_{label}" for label in range(own)}
    kept = {key: value for key, value in base.config.items() if key not in ("id2label", "label2id", "num_labels")}
    return {**kept, "id2label": named, "label2id": {name: int(label) for label, name in named.items()}}


def _config_text(adapter: Checkpoint) -> str:
    try:
        return files.read_text(adapter.side_file(CONFIG), adapter.ref.short)
    except FileNotFoundError:
        what = f"it has no {CONFIG}, so its scale is not known"
        raise CheckpointError(f"{adapter.ref.short} is no adapter of PEFT", [Problem("", what)]) from None


def base_named(adapter: ModelRef) -> tuple[str | None, str | None]:
    """The base that an adapter names, and its revision; None where it names none. Raises CheckpointError, HubError."""
    from dopkit import hub

    assert adapter.folder is not None or adapter.repo is not None
    path = adapter.folder / CONFIG if adapter.folder is not None else hub.fetch(adapter, CONFIG)
    config = read_adapter_config(files.read_text(path, adapter.short), adapter.short)
    return config.base, config.revision


def _summary(placed: Placed, base: Checkpoint) -> Iterator[str]:
    changes = placed.changes.values()
    ranks = sorted({product.rank for change in changes for product in change.low_rank})
    number, other = (sum(1 for change in changes if bool(change.low_rank) is low) for low in (True, False))
    if not ranks:
        yield f"adapter that changes {other} of {count(len(base.specs), 'tensor')}"
        return
    rank = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    more = f", and {other} more changed otherwise" if other else ""
    yield f"adapter of rank {rank} on {number} of {count(len(base.specs), 'tensor')}{more}"


def other_base(config: AdapterConfig, base: Checkpoint) -> Iterator[str]:
    """That the adapter was trained on something else than it is applied to, if it says so."""
    if config.base is None:
        return
    ref = base.ref
    same = config.base == ref.repo if ref.repo else Path(config.base).name == ref.name
    if not same:
        yield f"it was trained on {config.base} and is applied to {ref.short}"
