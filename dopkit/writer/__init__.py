"""The output on disk: a folder that appears whole, shards at planned offsets, a journal to continue from."""

from __future__ import annotations

from dopkit.writer.failing import writing
from dopkit.writer.folder import EVALUATION, JOURNAL, LOCK, RECEIPT, REPORT, OutputFolder, guest_journal
from dopkit.writer.journal import GuestJournal, Journal, parse_lines, read_journal
from dopkit.writer.shards import ShardFile, ShardWriter, copy_file, write_text
from dopkit.writer.tensors import TensorWriter

__all__ = [
    "EVALUATION",
    "JOURNAL",
    "LOCK",
    "RECEIPT",
    "REPORT",
    "GuestJournal",
    "Journal",
    "OutputFolder",
    "ShardFile",
    "ShardWriter",
    "TensorWriter",
    "copy_file",
    "guest_journal",
    "parse_lines",
    "read_journal",
    "write_text",
    "writing",
]
