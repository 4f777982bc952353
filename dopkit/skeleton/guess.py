"""The role of a tensor by its name and shape alone, for checkpoints whose class cannot be built."""

from __future__ import annotations

import re

from dopkit.roles import Role

_BUFFER = re.compile(r"(running_(mean|var)|num_batches_tracked|position_ids|inv_freq|position_index)$")
# at the start of the name, or one level down
_HEAD = re.compile(r"(\w+\.)?(lm_head|classifier|score|qa_outputs|head)\.|cls\.")
_NORM = re.compile(r"norm|(^|[._])(ln|bn)\d*([._]|$)")
_EMBEDDING = re.compile(r"emb|wte|wpe|tok")


def guess_role(name: str, shape: tuple[int, ...]) -> Role:
    """Cautious: what is not recognised is PARAMETER, to which no rule for matrices applies."""
    name = name.lower()
    owner, _, last = name.rpartition(".")
    if _BUFFER.search(name):
        return Role.BUFFER
    if _HEAD.match(name):
        return Role.HEAD
    if len(shape) <= 1:
        return _guess_vector(owner, last)
    if len(shape) == 3 and "expert" in name:
        return Role.EXPERTS
    if last != "weight":
        return Role.PARAMETER
    if len(shape) == 2:
        # only the owner's own name: a projection inside "embeddings" is a linear layer
        return Role.EMBEDDING if _EMBEDDING.search(owner.rpartition(".")[2]) else Role.LINEAR
    return Role.CONV if len(shape) >= 4 or "conv" in name else Role.PARAMETER


def _guess_vector(owner: str, last: str) -> Role:
    if last in ("weight", "bias", "gamma", "beta") and _NORM.search(owner.rpartition(".")[2]):
        return Role.NORM
    return Role.BIAS if last.endswith("bias") else Role.PARAMETER
