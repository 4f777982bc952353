"""Data as named columns: npz, parquet, class folders, data sets on the Hub."""

from __future__ import annotations

import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import scored
from hubserver import TestHub, connect
from PIL import Image

from dopkit import refs
from dopkit.errors import EvaluationError, HubError
from dopkit.evaluation.tables import Arrays, ClassFolders, HubDataset, Parquet, Table


def read(table: Table, column: str, size: int, rows: int) -> list[list[Any]]:
    return [list(batch[column]) for batch in table.batches([column], size, rows)]


@pytest.fixture
def numbers(tmp_path: Path) -> dict[str, Table]:
    """0 to 9, as an npz file and as a parquet file of three row groups."""
    np.savez(tmp_path / "a.npz", number=np.arange(10), other=np.zeros(3))
    pyarrow.parquet.write_table(pyarrow.table({"number": range(10)}), tmp_path / "a.parquet", row_group_size=4)
    return {"npz": Arrays(tmp_path / "a.npz"), "parquet": Parquet(tmp_path / "a.parquet")}


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_batches(numbers: dict[str, Table], kind: str) -> None:
    """Whatever the size, all rows up to the limit come, in their order, and no batch is larger than asked for."""
    table = numbers[kind]
    assert table.rows("number") == 10
    for size in (1, 3, 4, 10, 64):
        for rows in (1, 5, 10):
            batches = read(table, "number", size, rows)
            assert [value for batch in batches for value in batch] == list(range(rows))
            assert max(map(len, batches)) <= size


def test_columns_of_an_npz_may_differ_in_length(numbers: dict[str, Table]) -> None:
    assert numbers["npz"].names == ("number", "other")
    assert numbers["npz"].rows("other") == 3


def test_the_identity_is_that_of_the_content(numbers: dict[str, Table], tmp_path: Path) -> None:
    first = numbers["npz"].identity()
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes())
    assert Arrays(tmp_path / "b.npz").identity() == first
    np.savez(tmp_path / "b.npz", number=np.arange(1, 11))
    assert Arrays(tmp_path / "b.npz").identity() != first


def make_images(root: Path) -> Path:
    for name, count in (("cat", 3), ("dog", 1)):
        (root / name / "deeper").mkdir(parents=True)
        for index, pixels in enumerate(scored.grey(count)):
            Image.fromarray(pixels).save(root / name / ("deeper" if index == 2 else ".") / f"{index}.PNG")
    (root / "cat" / "notes.txt").write_text("no image")
    (root / ".cache").mkdir()
    Image.fromarray(pixels).save(root / ".cache" / "0.png")
    return root


def test_class_folders_take_turns(tmp_path: Path) -> None:
    table = ClassFolders(make_images(tmp_path / "images"))
    assert read(table, "label", 8, 4) == [["cat", "dog", "cat", "cat"]]
    assert [path.relative_to(tmp_path / "images").as_posix() for path in read(table, "image", 8, 3)[0]] == [
        "cat/0.PNG", "dog/0.PNG", "cat/1.PNG"
    ]  # fmt: skip
    assert ClassFolders(make_images(tmp_path / "again")).identity() == table.identity()
    (tmp_path / "again/dog/0.PNG").rename(tmp_path / "again/dog/1.PNG")
    assert ClassFolders(tmp_path / "again").identity() != table.identity()


def test_class_folders_with_what_is_no_file(tmp_path: Path) -> None:
    make_images(tmp_path / "images")
    (tmp_path / "images/cat/2.png").mkdir()
    table = ClassFolders(tmp_path / "images")
    assert (table.rows("image"), len(table.identity())) == (4, 64)
    (tmp_path / "images/dog/1.png").symlink_to("nowhere")
    with pytest.raises(EvaluationError, match="cannot read .*1.png: No such file"):
        ClassFolders(tmp_path / "images").identity()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"text", None])
def test_a_file_that_is_not_what_its_name_says(tmp_path: Path, content: bytes | None) -> None:
    for name, kind in (("a.npz", Arrays), ("a.parquet", Parquet)):
        if content is None:
            np.save(tmp_path / "a.npy", np.zeros(3))
            (tmp_path / "a.npy").rename(tmp_path / name)
        else:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(EvaluationError, match=f"cannot read .*{name}"):
            kind(tmp_path / name)


def test_a_file_that_is_damaged_in_the_middle(tmp_path: Path) -> None:
    """Its headers are whole: what is wrong is found when it is read."""
    numbers = np.random.default_rng(0).integers(0, 255, 10_000)
    np.savez_compressed(tmp_path / "a.npz", number=numbers)
    pyarrow.parquet.write_table(pyarrow.table({"number": numbers}), tmp_path / "a.parquet", compression="gzip")
    for name, kind in (("a.npz", Arrays), ("a.parquet", Parquet)):
        raw = bytearray((tmp_path / name).read_bytes())
        raw[len(raw) // 2 : len(raw) // 2 + 500] = bytes(500)
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(EvaluationError, match=f"cannot read .*{name}"):
            read(kind(tmp_path / name), "number", 64, 10_000)


def test_what_is_no_array_in_an_npz(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("notes", "text")
    with pytest.raises(EvaluationError, match="cannot read .*a.npz: notes is no array"):
        Arrays(tmp_path / "a.npz").rows("notes")


def test_an_npz_with_python_objects_is_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", label=np.array([{"code": 1}], dtype=object))
    with pytest.raises(EvaluationError, match="cannot read .*a.npz: .*allow_pickle"):
        Arrays(tmp_path / "a.npz").rows("label")


# What is not installed


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(EvaluationError) as caught:
        Parquet(tmp_path / "a.parquet")
    assert str(caught.value).splitlines() == [
        "a.parquet, a parquet file, needs pyarrow", "  pip install 'dopkit[eval]'"
    ]  # fmt: skip


def test_a_data_set_on_the_hub_without_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(EvaluationError) as caught:
        HubDataset(refs.parse("user/mnist", Path()), None, "test")
    assert str(caught.value).splitlines() == [
        "user/mnist, a data set on the Hub, needs datasets", "  pip install 'dopkit[eval]'"
    ]  # fmt: skip


class FakeSplit:
    """What ``datasets.load_dataset`` gives, of three rows."""

    column_names = ("image", "label")

    def __init__(self, columns: tuple[str, ...] = column_names) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return 3

    def select_columns(self, columns: list[str]) -> FakeSplit:
        return FakeSplit(tuple(columns))

    def __getitem__(self, rows: slice) -> dict[str, list[int]]:
        return {name: list(range(3))[rows] for name in self.columns}


def test_a_data_set_is_loaded_at_the_commit_it_has_now(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[Any, ...]] = []

    def load_dataset(repo: str, config: str | None, split: str, revision: str) -> FakeSplit:
        asked.append((repo, config, split, revision))
        return FakeSplit()

    fake = types.ModuleType("datasets")
    monkeypatch.setattr(fake, "load_dataset", load_dataset, raising=False)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    ref = refs.parse("user/images", Path())
    with TestHub() as server:
        connect(monkeypatch, server, tmp_path / "cache")
        first = server.create_repo("user/images", {"a.parquet": b"1"}, kind="datasets")
        table = HubDataset(ref, "plain", "test")
        assert (table.names, table.rows("label"), read(table, "label", 2, 3)) == (("image", "label"), 3, [[0, 1], [2]])
        assert HubDataset(ref, "plain", "test").identity() == table.identity()
        assert HubDataset(ref, "plain", "train").identity() != table.identity()
        second = server.upload("user/images", {"a.parquet": b"2"}, kind="datasets")
        assert HubDataset(ref, "plain", "test").identity() != table.identity()
        assert server.crashes == []
    assert [revision for *_, revision in asked] == [first, first, first, second]
    assert asked[0] == ("user/images", "plain", "test", first)


def test_a_data_set_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its revision becomes a commit before `datasets`, here a module that must not be asked, sees it."""
    monkeypatch.setitem(sys.modules, "datasets", types.ModuleType("datasets"))
    with TestHub() as server:
        connect(monkeypatch, server, tmp_path / "cache")
        with pytest.raises(HubError, match="user/none does not exist on the Hub, or is private"):
            HubDataset(refs.parse("user/none", Path()), None, "test")
