from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from gpubench.cache import Cache, content
from gpubench.errors import CacheError, InputError

RECIPE = {"what": "a file", "n": 1}


def write(at: Path) -> None:
    (at / "sub").mkdir()
    (at / "a").write_bytes(b"hello")
    (at / "sub" / "b").write_bytes(b"world!")


def never(at: Path) -> None:
    pytest.fail("made again")


def test_an_entry_is_made_once(tmp_path: Path) -> None:
    first, second = Cache(tmp_path / "c"), Cache(tmp_path / "c")
    path = first.get_or_make("thing", RECIPE, write)
    assert second.get_or_make("thing", {"n": 1, "what": "a file"}, never) == path
    assert (path / "sub" / "b").read_bytes() == b"world!"
    assert [entry.hit for entry in first.log + second.log] == [False, True]
    assert first.log[0].seconds == second.log[0].seconds > 0
    second.get_or_make("thing", RECIPE, never)
    assert len(second.log) == 1


def test_recipes_and_kinds_are_apart(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    paths = {
        cache.get_or_make("a", RECIPE, write),
        cache.get_or_make("b", RECIPE, write),
        cache.get_or_make("a", RECIPE | {"n": 2}, write),
    }
    assert len(paths) == 3
    assert len({content(path) for path in paths}) == 1


def flip(path: Path) -> None:
    data = bytearray((path / "a").read_bytes())
    data[2] ^= 1
    (path / "a").write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda path: (path / "a").unlink(),
        lambda path: (path / "more").touch(),
        lambda path: (path / "manifest.json").unlink(),
        lambda path: (path / "manifest.json").write_text('{"recipe":'),
    ],
    ids=["flipped bit", "missing file", "foreign file", "no manifest", "cut manifest"],
)
def test_damage_is_seen_and_repaired(
    tmp_path: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    path = Cache(tmp_path).get_or_make("thing", RECIPE, write)
    assert callable(damage)
    damage(path)
    again = Cache(tmp_path)
    again.get_or_make("thing", RECIPE, write)
    assert (path / "a").read_bytes() == b"hello"
    assert not again.log[0].hit
    assert "damaged" in caplog.text
    Cache(tmp_path).get_or_make("thing", RECIPE, never)


def test_a_failing_maker_leaves_nothing(tmp_path: Path) -> None:
    def fail(at: Path) -> None:
        write(at)
        raise FileNotFoundError("the maker's own")

    cache = Cache(tmp_path)
    with pytest.raises(FileNotFoundError, match="the maker's own"):
        cache.get_or_make("thing", RECIPE, fail)
    assert cache.info() == []
    assert not [p for p in tmp_path.rglob("*") if p.suffix != ".lock" and p.parent != tmp_path]
    assert cache.clear() == 0
    assert [p.name for p in tmp_path.iterdir()] == ["in-use.lock"]
    cache.get_or_make("thing", RECIPE, write)


def test_time_of_nested_entries_is_counted_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def inner(at: Path) -> None:
        time.sleep(0.2)

    cache.get_or_make("outer", RECIPE, lambda at: void(cache.get_or_make("inner", RECIPE, inner)))
    inner_entry, outer_entry = cache.log
    assert (inner_entry.kind, outer_entry.kind) == ("inner", "outer")
    assert inner_entry.seconds >= 0.2 > outer_entry.seconds


def void(value: object) -> None:
    """Drop a result."""


_MAKER = """
import os, sys, time
from pathlib import Path
from gpubench.cache import Cache
def make(at):
    (at / "part").write_text("half")
    print("making", flush=True)
    time.sleep(float(sys.argv[2]))
    (at / "whole").write_text(str(os.getpid()))
cache = Cache(Path(sys.argv[1]))
path = cache.get_or_make("thing", {}, make)
print((path / "whole").read_text(), cache.log[0].hit, flush=True)
"""


def start(root: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _MAKER, str(root), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_make_one_entry(tmp_path: Path) -> None:
    makers = [start(tmp_path, 0.5) for _ in range(2)]
    lines = [(maker.communicate(timeout=60)[0]).split("\n") for maker in makers]
    made = [words for words in lines if words[0] == "making"]
    assert len(made) == 1
    assert len({words[-2].split()[0] for words in lines}) == 1
    assert sorted(words[-2].split()[1] for words in lines) == ["False", "True"]


def test_a_killed_maker_leaves_no_half_entry(tmp_path: Path) -> None:
    with start(tmp_path, 60) as maker:
        assert maker.stdout
        assert maker.stdout.readline() == "making\n"
        maker.send_signal(signal.SIGKILL)
    cache = Cache(tmp_path)
    assert cache.info() == []
    path = cache.get_or_make("thing", {}, write)
    assert sorted(p.name for p in path.iterdir()) == ["a", "manifest.json", "sub"]
    assert not list(tmp_path.rglob("*.tmp"))


def test_directories_are_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        path = Cache(tmp_path / "new" / "root").get_or_make("thing", RECIPE, write)
    finally:
        os.umask(before)
    for directory in (path, path.parent, path.parent.parent):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_shared_root_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(CacheError, match="writable by its owner only"):
        Cache(tmp_path)


@pytest.mark.parametrize("inside", [True, False])
def test_a_shared_folder_in_it_is_refused_like_the_root(tmp_path: Path, inside: bool) -> None:
    """By whoever opens the cache, so that nothing is measured first."""
    folder = tmp_path / "thing"
    folder.mkdir(mode=0o700)
    if inside:
        Cache(tmp_path).get_or_make("thing", RECIPE, write)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "photo.jpg").touch()
    for path in (folder, tmp_path / "foreign"):
        path.chmod(0o770)
    with pytest.raises(CacheError, match=r"thing .* writable by its owner only"):
        Cache(tmp_path)


def test_a_root_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match="--cache-dir"):
        Cache(tmp_path / "file" / "root")


def test_the_default_root_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Cache().root == tmp_path / "gpubench"


def test_info_and_clear(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    paths = [cache.get_or_make("a", {"n": n}, write) for n in range(2)]
    cache.get_or_make("b", {}, write)
    (tmp_path / "a" / "notes.txt").write_text("the user's own")
    left = tmp_path / "b" / ("0" * 64 + ".tmp")
    left.mkdir()
    (left / "part").write_bytes(b"123")
    left.with_suffix(".lock").touch()  # as a killed maker does
    assert [(u.kind, u.entries) for u in cache.info()] == [("a", 2), ("b", 1)]
    total = sum(usage.bytes for usage in cache.info())
    assert total == sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) - 17
    assert cache.clear() == total + 3
    assert cache.info() == []
    assert not any(path.exists() for path in paths)
    assert (tmp_path / "a" / "notes.txt").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "in-use.lock"]


def manifest(recipe: str) -> str:
    return f'{{"recipe":{recipe},"files":{{}},"seconds":0}}'


@pytest.mark.parametrize(
    "inside",
    [{}, {"_data": "theirs"}, {"manifest.json": "{}"}, {"manifest.json": manifest('{"of": 1}')}],
    ids=["empty", "a volume", "another manifest", "a manifest of another name"],
)
@pytest.mark.parametrize("suffix", ["", ".tmp"])
def test_what_carries_no_manifest_of_ours_stays(
    tmp_path: Path, suffix: str, inside: dict[str, str]
) -> None:
    ours = Cache(tmp_path).get_or_make("volumes", RECIPE, write)
    foreign = tmp_path / "volumes" / ("ab" * 32 + suffix)
    commit = tmp_path / "refs" / "0123456789ab-01234567"
    for folder in (foreign, commit, tmp_path / "empty"):
        folder.mkdir(parents=True)
    for name, body in inside.items():
        (foreign / name).write_text(body)
    said: list[str] = []
    freed = Cache(tmp_path).clear(note=said.append)
    assert freed > 0
    assert not ours.exists()
    assert {p.name: p.read_text() for p in foreign.iterdir()} == inside
    assert commit.is_dir()
    assert (tmp_path / "empty").is_dir()
    assert said == [f"{foreign.parent}: 1 folder carries no manifest of this cache, and stays"]


@pytest.mark.parametrize(
    "use",
    [
        lambda cache: cache.get_or_make("thing", RECIPE, never),
        lambda cache: cache.store("thing", RECIPE, lambda _: b""),
        lambda cache: Cache(cache.root).info(),
        lambda cache: Cache(cache.root).clear(),
    ],
)
def test_a_link_in_the_cache_is_not_followed(
    tmp_path: Path, use: Callable[[Cache], object]
) -> None:
    there, root = tmp_path / "there", tmp_path / "root"
    made = Cache(there).get_or_make("thing", RECIPE, write)
    cache = Cache(root)
    (root / "thing").symlink_to(there / "thing")
    with pytest.raises(CacheError, match="thing is a link"):
        use(cache)
    assert sorted(p.name for p in made.iterdir()) == ["a", "manifest.json", "sub"]


def test_what_a_run_uses_is_not_cleared(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    path = cache.get_or_make("thing", RECIPE, write)
    with cache.hold(), Cache(tmp_path).hold():  # two runs
        with pytest.raises(CacheError, match="running uses it, so nothing was removed"):
            Cache(tmp_path).clear()
        assert path.is_dir()
    assert Cache(tmp_path).clear() > 0


def test_only_some_kinds_are_cleared_and_the_history_never(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    path = cache.get_or_make("thing", RECIPE, write)
    cache.get_or_make("other", RECIPE, write)
    tree = environment(tmp_path, "0123456789ab-01234567")
    session = tmp_path / "aa" / "0123456789abcdef" / "1.jsonl"
    session.parent.mkdir(parents=True, mode=0o700)
    session.write_bytes(b"12345")
    assert {u.kind: (u.entries, u.bytes) for u in cache.info()}["aa"] == (1, 5)
    for kind in ("aa", "nothing"):
        with pytest.raises(InputError, match=rf"'{kind}': .* has \['other', 'refs', 'thing'\]"):
            cache.clear([kind])
    assert cache.clear(["refs"]) == 6
    assert not tree.parent.exists()
    assert path.is_dir()
    cache.clear()
    assert [usage.kind for usage in cache.info()] == ["aa"]
    assert cache.clear(["refs"]) == 0


def test_what_changes_is_stored(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.stored("note", RECIPE) == b""
    for _ in range(2):
        cache.store("note", RECIPE, lambda now: now + b"!")
    assert Cache(tmp_path).stored("note", RECIPE) == b"!!"
    [file] = tmp_path.glob("note/*/content")
    file.write_bytes(b"another's")
    assert cache.stored("note", RECIPE) == b""
    cache.store("note", RECIPE, lambda now: now + b"?")
    assert cache.stored("note", RECIPE) == b"?"
    assert cache.clear() > 0
    assert not file.parent.parent.exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOLCK, "No locks available"), "cannot be locked: choose a --cache-dir"),
        (NotImplementedError("no flock"), "cannot be locked: choose a --cache-dir"),
        (OSError(errno.ENOSPC, "No space left"), "free some space"),
        (OSError(errno.EROFS, "Read-only file system"), "the right to write"),
        (OSError(errno.EIO, "Input/output error"), "look at that disk"),
    ],
)
def test_the_remedy_is_of_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def fail(_: FileLock) -> None:
        raise error

    monkeypatch.setattr(FileLock, "acquire", fail)
    with pytest.raises(CacheError, match=said):
        Cache(tmp_path).get_or_make("thing", RECIPE, never)


def test_clear_spares_what_is_being_made(tmp_path: Path) -> None:
    with start(tmp_path, 1) as maker:
        assert maker.stdout
        maker.stdout.readline()
        assert Cache(tmp_path).clear() == 0
        assert maker.stdout.readline().split()[1] == "False"


def environment(root: Path, name: str, *, ready: bool = True) -> Path:
    """As `gpubench.run.ab.interpreters` leaves one: 6 bytes, a link, a lock."""
    path = root / "refs" / name
    (path / ".venv/bin").mkdir(parents=True)
    (path / "pyproject.toml").write_bytes(b"123456")
    (path / ".venv/bin/python").symlink_to(sys.executable)
    path.with_suffix(".lock").touch()
    if ready:
        path.with_suffix(".ready").touch()
    return path


def test_environments_of_commits_are_listed_and_cleared(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    whole = environment(tmp_path, "0123456789ab-01234567")
    half = environment(tmp_path, "0123456789ac-01234567", ready=False)
    own = environment(tmp_path, "the-users-own")
    assert [(u.kind, u.entries, u.bytes) for u in cache.info()] == [("refs", 2, 12)]
    assert cache.clear() == 12
    assert cache.info() == []
    assert not whole.exists()
    assert not whole.with_suffix(".ready").exists()
    assert not half.exists()
    assert own.exists()


def test_an_environment_in_the_making_is_spared(tmp_path: Path) -> None:
    path = environment(tmp_path, "0123456789ab-01234567")
    with FileLock(path.with_suffix(".lock")):
        assert Cache(tmp_path).clear() == 0
    assert path.is_dir()
    assert path.with_suffix(".ready").exists()
