"""The cache of converted parameters: faithful, whole or absent, and never a reason to fail."""

import dataclasses
import logging
import multiprocessing
import os
from pathlib import Path

import pytest
from checkpoints import assert_same, edit_tensors, write
from support import TINY

from jaxprobe import convert
from jaxprobe.configs import DTypeName
from jaxprobe.convert import cache, checkpoint, layout


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "model", TINY["mamba"])


@pytest.fixture
def converted(monkeypatch):
    """The list grows by one with every conversion from the source."""
    calls = []
    convert_anew = checkpoint._read

    def read(*arguments):
        calls.append(arguments)
        return convert_anew(*arguments)

    monkeypatch.setattr(checkpoint, "_read", read)
    return calls


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", TINY)
def test_an_entry_gives_the_same_parameters(name, dtype: DTypeName, tmp_path, converted):
    folder = write(tmp_path / "model", TINY[name])
    plain = convert.load(folder, dtype=dtype)
    kept = tmp_path / "kept"
    first = convert.load(folder, dtype=dtype, cache_dir=kept)
    second = convert.load(folder, dtype=dtype, cache_dir=kept)
    assert len(converted) == 2
    for loaded in (first, second):
        assert_same(loaded.params, plain.params)
        # JAX on CPU shares its memory: written to, it would change a model.
        assert not any(array.flags.writeable for array in layout.flatten(loaded.params).values())
        assert (loaded.config, loaded.certificate) == (plain.config, plain.certificate)
    assert [entry.name for entry in kept.iterdir()] == [f"{plain.certificate.sha256}-{dtype}-v1"]


def test_another_source_or_dtype_is_another_entry(source, tmp_path, converted):
    kept = tmp_path / "kept"
    convert.load(source, cache_dir=kept)
    convert.load(source, dtype="float64", cache_dir=kept)
    edit_tensors(source, lambda tensors: {key: tensor + 1 for key, tensor in tensors.items()})
    changed = convert.load(source, cache_dir=kept)
    assert len(converted) == len(list(kept.iterdir())) == 3
    assert_same(changed.params, convert.load(source).params)


def largest_file(entry: Path) -> Path:
    return max((file for file in entry.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def flip_a_bit(entry: Path) -> None:
    file = largest_file(entry)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


# Orbax leaves an event loop behind when a file is missing.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "spoil",
    [
        lambda entry: os.truncate(largest_file(entry), largest_file(entry).stat().st_size // 2),
        flip_a_bit,
        lambda entry: largest_file(entry).unlink(),
        lambda entry: (entry / "manifest.json").unlink(),
        lambda entry: (entry / "manifest.json").write_text("{"),
        lambda entry: (entry / "manifest.json").write_text("{}"),
    ],
    ids=["truncated", "bit flipped", "file gone", "no manifest", "bad manifest", "empty manifest"],
)
def test_damaged_entries_are_rebuilt_and_said(spoil, tmp_path, converted, caplog):
    # With this vocabulary the parameters are the largest file of an entry.
    source = write(tmp_path / "model", dataclasses.replace(TINY["mamba"], vocab_size=500))
    kept = tmp_path / "kept"
    plain = convert.load(source, cache_dir=kept)
    [entry] = kept.iterdir()
    spoil(entry)
    with caplog.at_level(logging.WARNING, "jaxprobe"):
        again = convert.load(source, cache_dir=kept)
    assert_same(again.params, plain.params)
    [record] = [record for record in caplog.records if record.name.startswith("jaxprobe")]
    assert "rebuilding the damaged cache entry" in record.message and "\n" not in record.message
    assert list(kept.iterdir()) == [entry] and len(converted) == 2
    convert.load(source, cache_dir=kept)
    assert len(converted) == 2


def test_a_place_that_cannot_be_written_is_said(source, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING, "jaxprobe"):
        loaded = convert.load(source, cache_dir=tmp_path / "file" / "kept")
    assert_same(loaded.params, convert.load(source).params)
    [record] = [record for record in caplog.records if record.name.startswith("jaxprobe")]
    assert "cannot keep converted parameters" in record.message and "\n" not in record.message


def test_a_full_disk_is_said_and_leaves_nothing(source, tmp_path, caplog, monkeypatch):
    class FullDisk:
        def save(self, path: Path, params: dict) -> None:
            path.mkdir()
            (path / "part").write_text("")
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "_checkpointer", FullDisk)
    with caplog.at_level(logging.WARNING, "jaxprobe"):
        convert.load(source, cache_dir=tmp_path / "kept")
    assert [r.message for r in caplog.records if "No space left on device" in r.message]
    assert list((tmp_path / "kept").iterdir()) == []


def test_an_entry_that_another_process_finished_first_is_kept(source, tmp_path, converted, caplog):
    kept = tmp_path / "kept"
    params = convert.load(source, cache_dir=kept).params
    [entry] = kept.iterdir()
    before = {file: file.stat().st_mtime_ns for file in entry.rglob("*")}
    cache.store(entry, params)
    assert {file: file.stat().st_mtime_ns for file in entry.rglob("*")} == before
    assert list(kept.iterdir()) == [entry] and not caplog.records


def load_in_a_process(source: Path, kept: Path, start, results) -> None:
    start.wait()
    loaded = convert.load(source, cache_dir=kept)
    results.put(float(loaded.params["final_norm"]["scale"].sum()))


def test_processes_at_once(source, tmp_path):
    spawn = multiprocessing.get_context("spawn")
    start, results = spawn.Barrier(2), spawn.Queue()
    arguments = (source, tmp_path / "kept", start, results)
    workers = [spawn.Process(target=load_in_a_process, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    sums = {results.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert sums == {float(convert.load(source).params["final_norm"]["scale"].sum())}
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_small_checkpoints_are_kept_only_where_asked(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXPROBE_CACHE", str(tmp_path))
    assert cache.entries_folder(None, cache.MINIMUM_BYTES - 1) is None
    large = cache.entries_folder(None, cache.MINIMUM_BYTES)
    assert large == tmp_path / "params"
    assert cache.entries_folder(tmp_path, 1) == tmp_path
    assert cache.entry_path(tmp_path, "hash", "float64") == tmp_path / "hash-float64-v1"
    monkeypatch.delenv("JAXPROBE_CACHE")
    home = cache.entries_folder(None, cache.MINIMUM_BYTES)
    assert home == Path("~/.cache/jaxprobe/params").expanduser()
