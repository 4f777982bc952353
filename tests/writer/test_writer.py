"""The output on disk: offsets, hashes, journal, lock, and the folder that appears whole."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dopkit import layout
from dopkit.errors import OutputError
from dopkit.writer import Journal, OutputFolder, ShardFile, ShardWriter, write_text
from dopkit.writer import journal as journals
from dopkit.writer.folder import RECEIPT

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.arange(5, dtype=torch.bfloat16),
    "c": torch.tensor(7, dtype=torch.int64),
    "empty": torch.zeros(0, 4),
}
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64"}


def shards(max_size: int = 1000) -> tuple[layout.Shard, ...]:
    return layout.lay_out([(name, DTYPES[t.dtype], tuple(t.shape)) for name, t in TENSORS.items()], max_size)


def data(name: str) -> memoryview:
    return memoryview(TENSORS[name].reshape(-1).view(torch.uint8).numpy())


def write(writer: ShardWriter, name: str, parts: int = 1) -> None:
    whole, position = data(name), 0
    for part in range(parts):
        chunk = whole[part * len(whole) // parts : (part + 1) * len(whole) // parts]
        writer.write(name, position, chunk)
        position += len(chunk)
    writer.complete(name, {"rule": "mean"})


@pytest.mark.parametrize("max_size", [1000, 24])
@pytest.mark.parametrize("order", [["c", "a", "empty", "b"], ["b", "empty", "a", "c"]])
def test_safetensors_reads_what_was_written(tmp_path: Path, max_size: int, order: list[str]) -> None:
    """In file order or not, in one file or several; and the hashes are those of the files."""
    journal = Journal(tmp_path, "x", overwrite=False)
    writer = ShardWriter(tmp_path, shards(max_size), journal)
    for name in order:
        write(writer, name, parts=2)
    finished = writer.finish()
    journal.close()
    found: dict[str, torch.Tensor] = {}
    for shard in finished:
        raw = (tmp_path / shard.file).read_bytes()
        assert (shard.size, shard.sha256) == (len(raw), hashlib.sha256(raw).hexdigest())
        found |= load_file(tmp_path / shard.file)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
    assert (tmp_path / layout.INDEX_FILE).exists() is (len(finished) > 1)


def test_a_second_run_takes_over_what_is_good(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "x", overwrite=False)
    writer = ShardWriter(tmp_path, shards(), journal)
    write(writer, "c")
    write(writer, "a")
    writer.write("b", 0, data("b"))  # written, but not completed
    writer.close()
    journal.close()

    journal = Journal(tmp_path, "x", overwrite=False)
    writer = ShardWriter(tmp_path, shards(), journal)
    assert writer.done == {"a", "c"}
    assert journal.entries["a"]["rule"] == "mean"
    for name in ("b", "empty"):
        write(writer, name)
    (shard,) = writer.finish()
    journal.close()
    assert shard.sha256 == hashlib.sha256((tmp_path / shard.file).read_bytes()).hexdigest()
    assert torch.equal(load_file(tmp_path / shard.file)["b"], TENSORS["b"])


def test_a_shard_is_finished_with_its_last_tensor(tmp_path: Path) -> None:
    """Whoever is told of it finds the whole file; a shard that has left the disk is not asked for again."""
    told: list[ShardFile] = []

    def take(shard: ShardFile, path: Path) -> None:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == shard.sha256
        told.append(shard)
        path.unlink()

    journal = Journal(tmp_path, "x", overwrite=False)
    writer = ShardWriter(tmp_path, shards(24), journal, take)
    write(writer, "a")
    assert [shard.file for shard in told] == [shards(24)[0].file]
    writer.close()
    journal.close()

    journal = Journal(tmp_path, "x", overwrite=False)
    writer = ShardWriter(tmp_path, shards(24), journal, take, {told[0].file: told[0]})
    assert writer.done == {"a"}
    for name in ("b", "c", "empty"):
        write(writer, name)
    assert writer.finish() == told and len(told) == len(shards(24))
    journal.close()


def test_finish_insists_on_every_tensor(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "x", overwrite=False)
    writer = ShardWriter(tmp_path, shards(), journal)
    write(writer, "a")
    with pytest.raises(AssertionError, match="before every tensor"):
        writer.finish()
    writer.close()
    journal.close()


def test_a_full_disk_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    journal = Journal(tmp_path, "x", overwrite=False)
    writer = ShardWriter(tmp_path, shards(), journal)
    with pytest.raises(OutputError, match=r"No space left on device\n    Make room and run the same command again"):
        writer.write("a", 0, data("a"))
    writer.close()
    journal.close()


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "x", overwrite=False)
    with pytest.raises(OutputError, match="another dopkit is writing to"):
        Journal(tmp_path, "x", overwrite=True)
    journal.close()
    Journal(tmp_path, "x", overwrite=False).close()


def test_seconds_add_up_over_sessions(tmp_path: Path) -> None:
    lines = [
        '{"fingerprint": "x", "at": 0.0}', '{"name": "a", "crc": 1, "at": 2.5, "peak": 10}', '{"name": "b", "cr',
        '{"fingerprint": "x", "at": 0.0}', '{"name": "b", "crc": 2, "at": 4.0, "peak": 7}',
    ]  # fmt: skip
    (tmp_path / "journal.jsonl").write_text("\n".join(lines) + "\n")
    journal = Journal(tmp_path, "x", overwrite=False)
    assert journal.seconds_before == 6.5
    assert journal.peak_before == 10
    assert journal.entries.keys() == {"a", "b"}
    journal.close()


def test_the_folder_appears_whole(tmp_path: Path) -> None:
    output = OutputFolder(tmp_path / "deep" / "out")
    assert output.obstacle() is None
    partial = output.prepare()
    (partial / RECEIPT).write_text('{"fingerprint": "x"}')
    assert not output.path.exists()
    output.publish()
    assert output.finished("x") and not partial.exists()
    with pytest.raises(OutputError, match="holds another merge"):
        output.finished("y")
    (output.path / RECEIPT).write_text("[]")
    with pytest.raises(OutputError, match="holds another merge"):
        output.finished("x")


def test_overwrite_replaces_only_what_dopkit_made(tmp_path: Path) -> None:
    output = OutputFolder(tmp_path / "out", overwrite=True)
    output.path.mkdir()
    (output.path / RECEIPT).write_text('{"fingerprint": "old"}')
    assert output.obstacle() is None and not output.finished("new")
    (output.prepare() / RECEIPT).write_text('{"fingerprint": "new"}')
    output.publish()
    assert os.listdir(tmp_path) == ["out"]
    assert output.path.joinpath(RECEIPT).read_text() == '{"fingerprint": "new"}'
    output.path.joinpath(RECEIPT).rename(output.path / "mine.txt")
    obstacle = output.obstacle()
    assert obstacle is not None and "dopkit did not make" in obstacle.what


def test_a_small_file_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where two processes write it at once, each in its own time."""
    file, pid, rename = tmp_path / "a.json", os.getpid(), Path.rename

    def meanwhile(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        monkeypatch.setattr(os, "getpid", lambda: pid + 1)
        write_text(file, "another's")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", meanwhile)
    write_text(file, "one's own")
    assert file.read_text() == "one's own" and os.listdir(tmp_path) == ["a.json"]


def test_a_small_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    for file in (tmp_path / "a.json", tmp_path / "nowhere" / "b.json"):
        with pytest.raises(OutputError, match=f"cannot write to {file}"):
            write_text(file, "text")
    assert os.listdir(tmp_path) == ["a.json"]


def test_what_stands_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    obstacle = OutputFolder(tmp_path / "file").obstacle()
    assert obstacle is not None and obstacle.what == "is in the way: it is a file"
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine").write_text("")
    obstacle = OutputFolder(tmp_path / "out").obstacle()
    assert obstacle is not None and obstacle.place == str(tmp_path / "out.partial")
    (tmp_path / "empty").mkdir()
    assert OutputFolder(tmp_path / "empty").obstacle() is None


FULL = r"No space left on device\n    Make room and run the same command again"


def full(*_: object, **__: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def no_locks(*_: object, **__: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


def test_a_disk_that_has_no_room_for_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files have their room from the start, so that this is where a disk that others fill shows."""
    journal = Journal(tmp_path, "x", overwrite=False)
    writer = ShardWriter(tmp_path, shards(), journal)
    writer.write("a", 0, data("a"))
    with monkeypatch.context() as patch, pytest.raises(OutputError, match=FULL):
        patch.setattr(os, "write", full)
        writer.complete("a", {})
    writer.close()
    journal.close()
    with monkeypatch.context() as patch, pytest.raises(OutputError, match=FULL):
        patch.setattr(Path, "write_text", full)
        write_text(tmp_path / "config.json", "{}")
    with monkeypatch.context() as patch, pytest.raises(OutputError, match="No locks"):
        patch.setattr(journals.FileLock, "acquire", no_locks)
        Journal(tmp_path, "x", overwrite=False)


def test_what_the_system_takes_in_pieces_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of the journal, and the header of a shard."""
    write_some, place_some = os.write, os.pwrite
    monkeypatch.setattr(os, "write", lambda handle, data: write_some(handle, bytes(data)[:7]))
    monkeypatch.setattr(os, "pwrite", lambda handle, data, offset: place_some(handle, bytes(data)[:7], offset))
    journal = Journal(tmp_path, "x", overwrite=False)
    writer = ShardWriter(tmp_path, shards(), journal)
    for name in TENSORS:
        write(writer, name)
    (shard,) = writer.finish()
    writer.close()
    journal.close()
    assert journals.read_journal(tmp_path)[1:] == list(journal.entries.values())
    assert shard.sha256 == hashlib.sha256((tmp_path / shard.file).read_bytes()).hexdigest()
    assert torch.equal(load_file(tmp_path / shard.file)["a"], TENSORS["a"])


def test_what_is_large_is_let_go_before_the_next_is_made(tmp_path: Path) -> None:
    """Small pieces wait for their hash in memory, a few megabytes of them; of a large one nobody has counted that."""
    large, small = torch.zeros(9_000_000, dtype=torch.uint8), torch.zeros(1000, dtype=torch.uint8)
    placed = layout.lay_out([("small", "U8", (1000,)), ("large", "U8", (9_000_000,))], 10**9)
    journal = Journal(tmp_path, "x", overwrite=False)
    writer = ShardWriter(tmp_path, placed, journal)
    gate = threading.Event()
    writer._hashing.put(1, gate.wait)
    writer.write("small", 0, memoryview(small.numpy()))
    thread = threading.Thread(target=writer.write, args=("large", 0, memoryview(large.numpy())))
    thread.start()
    thread.join(0.3)
    held = thread.is_alive()
    gate.set()
    thread.join()
    assert held and not writer._hashing._calls
    for name in ("small", "large"):
        writer.complete(name, {})
    (shard,) = writer.finish()
    assert shard.sha256 == hashlib.sha256((tmp_path / shard.file).read_bytes()).hexdigest()
    writer.close()
    journal.close()


def test_more_files_than_a_process_may_have_open(tmp_path: Path) -> None:
    """Made beforehand, written, and looked at again by a second run."""
    names = [f"t{number}" for number in range(60)]
    many = layout.lay_out([(name, "U8", (8,)) for name in names], 8)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir("/dev/fd")}
    thirty_more = [number for number in range(len(used) + 30) if number not in used][29]
    resource.setrlimit(resource.RLIMIT_NOFILE, (thirty_more + 1, hard))
    try:
        for done in (len(names) - 1, len(names)):
            journal = Journal(tmp_path, "x", overwrite=False)
            writer = ShardWriter(tmp_path, many, journal)
            writer.preallocate()
            for name in names[:done]:
                writer.write(name, 0, memoryview(b"12345678"))
                writer.complete(name, {})
            writer.close()
            journal.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(writer.finish()) == len(names)


def test_a_copy_beside_the_folder_is_left_alone(tmp_path: Path) -> None:
    """As ``mv out out.replaced`` makes one."""
    (tmp_path / "out.replaced").mkdir()
    (tmp_path / "out.replaced" / RECEIPT).write_text("mine")
    output = OutputFolder(tmp_path / "out", overwrite=True)
    for text in ("one", "two"):
        (output.prepare() / RECEIPT).write_text(text)
        output.publish()
    assert sorted(os.listdir(tmp_path)) == ["out", "out.replaced"]
    assert [(tmp_path / name / RECEIPT).read_text() for name in ("out", "out.replaced")] == ["two", "mine"]


def test_killed_before_its_journal_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or while it threw away another merge: the folder is dopkit's, and the next run says so."""
    output = OutputFolder(tmp_path / "out")
    folder = output.prepare()
    (folder / "journal.lock").write_text("")
    assert output.obstacle() is None
    (folder / "journal.jsonl").write_text('{"fingerprint": "old"}\n{"name": "a", "crc": 1}\n')
    for name in ("a.safetensors", "z.safetensors"):
        (folder / name).write_text("")
    (folder / "steps").mkdir()

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(journals.shutil, "rmtree", killed)
        Journal(folder, "new", overwrite=True)
    with pytest.raises(OutputError, match="holds an unfinished merge of another recipe"):
        Journal(folder, "new", overwrite=False)
    Journal(folder, "new", overwrite=True).close()
    assert sorted(os.listdir(folder)) == ["journal.jsonl", "journal.lock"]


def test_a_disk_that_is_mounted_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container with a volume for the result. What cannot be foreseen is said at the end."""
    (tmp_path / "out").mkdir()
    output = OutputFolder(tmp_path / "out")
    assert output.obstacle() is None
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "out")
        obstacle = output.obstacle()
    assert obstacle is not None and obstacle.what.startswith("is where a disk is mounted")
    assert obstacle.remedy.endswith(str(tmp_path / "out" / "merged"))

    def busy(path: Path) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    output.prepare()
    with monkeypatch.context() as patch, pytest.raises(OutputError, match="Device or resource busy"):
        patch.setattr(Path, "rmdir", busy)
        output.publish()


def test_files_that_came_meanwhile_are_not_taken_away(tmp_path: Path) -> None:
    """Somebody has put something there while the merge went on."""
    output = OutputFolder(tmp_path / "out")
    assert output.obstacle() is None
    (output.prepare() / RECEIPT).write_text("made")
    output.path.mkdir()
    (output.path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"(?s)dopkit did not make.*Move it away and run the same command again"):
        output.publish()
    (output.path / "mine.txt").rename(tmp_path / "mine.txt")
    output.publish()
    assert sorted(os.listdir(tmp_path)) == ["mine.txt", "out"] and (output.path / RECEIPT).read_text() == "made"
