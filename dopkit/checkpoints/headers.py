"""From the names of a model's files to its specs: the index, every header, and whether the two agree.

Reads through callables, so a folder and a Hub repository are judged by the same rules.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor

from dopkit.checkpoints import files
from dopkit.errors import CheckpointError
from dopkit.specs import TensorSpec

_AT_ONCE = 8  # headers read side by side: over a network each is a wait, not work


def read_specs(
    names: Collection[str],
    shown: str,
    read_text: Callable[[str], str],
    read_header: Callable[[str, str], Mapping[str, TensorSpec]],
    wanted: files.Names = files.MODEL,
) -> dict[str, TensorSpec]:
    """All tensors of a model, shard by shard in order of file name.

    ``names`` are its files; ``read_text(file)`` gives an index, ``read_header(kind, file)`` one weight file's tensors
    (``kind`` is files.SAFETENSORS or files.PICKLE; called from several threads). Raises CheckpointError when there
    are no weights, when two files hold one name, or when the index names what no file has.
    """
    found = files.find_weights(names, shown, wanted)
    weight_map: dict[str, str] = {}
    shards = list(found.files)
    if found.index is not None:
        weight_map = files.read_index(read_text(found.index), found.index, names, shown)
        shards = sorted(set(weight_map.values()))
    specs: dict[str, TensorSpec] = {}
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="dopkit-header") as pool:
        for header in pool.map(lambda file: read_header(found.kind, file), shards):
            if twice := specs.keys() & header.keys():
                name = min(twice)
                raise CheckpointError(f"{shown}: {name} is in both {specs[name].file} and {header[name].file}")
            specs.update(header)
    if missing := sorted(weight_map.keys() - specs.keys()):
        raise CheckpointError(f"{shown}: {found.index} names {missing[0]}, which is in none of the files")
    return specs
