"""The output on disk: a folder that appears whole, shards at planned offsets, a journal to continue from."""

from __future__ import annotations

from dopkit.writer.folder import EVALUATION, JOURNAL, RECEIPT, REPORT, OutputFolder
from dopkit.writer.journal import Journal, read_journal
from dopkit.writer.shards import ShardFile, ShardWriter, write_text

__all__ = [
    "EVALUATION",
    "JOURNAL",
    "RECEIPT",
    "REPORT",
    "Journal",
    "OutputFolder",
    "ShardFile",
    "ShardWriter",
    "read_journal",
    "write_text",
]
