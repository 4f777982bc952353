"""What a long run tells whoever watches. The library only calls these; showing them is the caller's business."""

from __future__ import annotations


class Progress:
    """Silent by default; override what you want to see. Called from the thread that runs the merge."""

    def stage(self, text: str) -> None:
        """A new part of the work begins: ``reading headers``, ``merging``, ``verifying`` ..."""

    def begin(self, tensors: int, nbytes: int, effort: float) -> None:
        """Merging begins: so many tensors and output bytes are still to be made, at so much effort (rough seconds)."""

    def tensor(self, name: str) -> None:
        """This tensor is in hand now, with those before it that are not done."""

    def advance(self, nbytes: int, effort: float) -> None:
        """So many more output bytes are made, and so much of the effort is spent."""

    def tensor_done(self, name: str) -> None:
        """This tensor is written and journaled."""

    def note(self, text: str) -> None:
        """Something worth a line of its own."""

    def begin_scoring(self, what: str, samples: int) -> None:
        """A model is scored on a task (``step 2: mnist``) of so many samples."""

    def scored(self, samples: int) -> None:
        """So many more of them are scored."""
