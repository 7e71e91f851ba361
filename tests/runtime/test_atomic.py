"""Folders and files appear whole or not at all, whatever happens to the writer."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from escnet_runtime import atomic
from escnet_runtime.atomic import atomic_directory, atomic_file
from escnet_runtime.errors import InputError

_OLD = "old"
_NEW = "new"
#: A bundle.json as far as it tells a bundle from other folders, with a content.
_FORM = '{"schema_version": "1.0", "digest": "", "model": {}, "stages": {}, "content": "%s"}'


def _fill(folder: Path, content: str) -> None:
    (folder / "bundle.json").write_text(_FORM % content)
    (folder / "graphs").mkdir()
    (folder / "graphs" / "graph.onnx").write_text(content)


def _content(folder: Path) -> str:
    """What a bundle holds, if it is whole."""
    content = (folder / "graphs" / "graph.onnx").read_text()
    assert (folder / "bundle.json").read_text() == _FORM % content
    return content


def _write(target: Path, content: str) -> None:
    with atomic_directory(target) as folder:
        _fill(folder, content)


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A bundle that is already there."""
    _write(tmp_path / "bundle", _OLD)
    return tmp_path / "bundle"


def _start(target: Path, body: str) -> subprocess.Popen[str]:
    """Run ``body`` inside `atomic_directory`, in a process of its own."""
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from escnet_runtime.atomic import atomic_directory\n"
        "target = Path(sys.argv[1])\n"
        "def fill(folder, content):\n"
        f"    (folder / 'bundle.json').write_text({_FORM!r} % content)\n"
        "    (folder / 'graphs').mkdir()\n"
        "    (folder / 'graphs' / 'graph.onnx').write_text(content)\n"
    ) + body
    return subprocess.Popen(
        [sys.executable, "-c", code, str(target)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _interrupted_writer(target: Path) -> subprocess.Popen[str]:
    """A process that has written half a bundle and waits."""
    process = _start(
        target,
        "with atomic_directory(target) as folder:\n"
        "    (folder / 'bundle.json').write_text('half')\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n",
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_new_target_and_its_parents_are_made(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "bundle"
    with atomic_directory(target) as folder:
        assert not target.exists()
        assert folder.parent == target.parent
        assert folder.name.startswith(f".bundle.tmp-{os.getpid()}-")
        _fill(folder, _NEW)
    assert _content(target) == _NEW
    assert _names(target.parent) == ["bundle"]


def test_an_old_bundle_is_replaced(target: Path) -> None:
    (target / "engines").mkdir()
    with atomic_directory(target) as folder:
        _fill(folder, _NEW)
        assert _content(target) == _OLD
    assert _content(target) == _NEW
    assert _names(target) == ["bundle.json", "graphs"]
    assert _names(target.parent) == ["bundle"]


def test_an_empty_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    _write(tmp_path / "bundle", _NEW)
    assert _content(tmp_path / "bundle") == _NEW


def test_others_may_read_it_as_the_umask_allows(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    _write(tmp_path / "bundle", _NEW)
    assert (tmp_path / "bundle").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_stays_and_what_it_points_to_is_replaced(target: Path) -> None:
    link = target.parent / "current"
    link.symlink_to("bundle")
    _write(link, _NEW)
    assert link.is_symlink()
    assert _content(target) == _NEW


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_any_exception_leaves_the_old_bundle_and_nothing_else(
    target: Path, error: type[BaseException]
) -> None:
    def fail() -> None:
        with atomic_directory(target) as folder:
            _fill(folder, _NEW)
            raise error

    with pytest.raises(error):
        fail()
    assert _content(target) == _OLD
    assert _names(target.parent) == ["bundle"]


def test_a_failed_first_write_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with atomic_directory(tmp_path / "bundle") as folder:
            _fill(folder, _NEW)
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    assert _names(tmp_path) == []


@contextmanager
def _files_limited_to(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_write_that_stops_half_way_leaves_the_old_bundle(target: Path) -> None:
    def fail() -> None:
        with atomic_directory(target) as folder:
            _fill(folder, _NEW)
            with _files_limited_to(4096):
                (folder / "large").write_bytes(bytes(100_000))

    with pytest.raises(OSError, match="File too large"):
        fail()
    assert _content(target) == _OLD
    assert _names(target.parent) == ["bundle"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_leaves_the_old_bundle_and_is_reported_as_such(target: Path) -> None:
    def fail() -> None:
        with atomic_directory(target) as folder:
            _fill(folder, _NEW)
            Path("/dev/full").write_bytes(b"x")

    with pytest.raises(OSError, match="No space left") as caught:
        fail()
    assert caught.value.errno == errno.ENOSPC
    assert _content(target) == _OLD
    assert _names(target.parent) == ["bundle"]


def test_interrupting_the_process_leaves_the_old_bundle(target: Path) -> None:
    process = _interrupted_writer(target)
    assert len(_names(target.parent)) == 2
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert _content(target) == _OLD
    assert _names(target.parent) == ["bundle"]


def test_killing_the_process_leaves_the_old_bundle_and_the_next_writer_tidies(
    target: Path,
) -> None:
    process = _interrupted_writer(target)
    process.kill()
    process.communicate(timeout=30)
    assert _content(target) == _OLD
    leftover, _ = _names(target.parent)
    assert leftover.startswith(f".bundle.tmp-{process.pid}-")
    (target.parent / ".bundle2.tmp-1-ab").mkdir()  # of another target: not ours to remove
    _write(target, _NEW)
    assert _content(target) == _NEW
    assert _names(target.parent) == [".bundle2.tmp-1-ab", "bundle"]


def test_the_temporary_folder_of_a_living_writer_stays(target: Path) -> None:
    process = _interrupted_writer(target)
    try:
        _write(target, _NEW)
        assert len(_names(target.parent)) == 2
    finally:
        process.kill()
        process.communicate(timeout=30)


def test_a_writer_whose_process_cannot_be_seen_is_known_by_its_lock(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = _interrupted_writer(target)
    monkeypatch.setattr(atomic, "_is_alive", lambda pid: False)  # as from another container
    try:
        _write(target, _NEW)
        assert len(_names(target.parent)) == 2
    finally:
        process.kill()
        process.communicate(timeout=30)
    _write(target, _NEW)
    assert _names(target.parent) == ["bundle"]


def test_concurrent_writers_and_a_reader_that_always_sees_a_whole_bundle(target: Path) -> None:
    body = (
        "for number in range(40):\n"
        "    with atomic_directory(target) as folder:\n"
        "        fill(folder, sys.argv[0] + str(number))\n"
    )
    writers = [_start(target, body) for _ in range(2)]
    seen = set()
    deadline = time.monotonic() + 60
    while any(writer.poll() is None for writer in writers):
        assert time.monotonic() < deadline
        seen.add(_read_at_once(target))
    for writer in writers:
        _, errors = writer.communicate(timeout=30)
        assert writer.returncode == 0, errors
    seen.add(_content(target))
    assert len(seen - {None}) > 1
    assert _content(target) == "-c39"
    assert _names(target.parent) == ["bundle"]


def _read_at_once(target: Path) -> str | None:
    """Read one version of a bundle through its folder's descriptor; None if it was replaced."""
    folder = os.open(target, os.O_RDONLY | os.O_DIRECTORY)  # fails if the target is ever missing
    try:
        contents = []
        for name in ("bundle.json", "graphs/graph.onnx"):
            with os.fdopen(os.open(name, os.O_RDONLY, dir_fd=folder)) as file:
                contents.append(file.read())
    except FileNotFoundError:
        return None
    finally:
        os.close(folder)
    assert contents[0] == _FORM % contents[1]
    return contents[1]


def test_without_an_exchange_the_target_is_replaced_too(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    _write(target, _NEW)
    assert _content(target) == _NEW
    assert _names(target.parent) == ["bundle"]


def test_without_an_exchange_a_failure_brings_the_old_bundle_back(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def failing(source: Path, destination: Path) -> None:
        if destination == target and ".tmp-" in source.name and (source / "new").exists():
            raise PermissionError(errno.EPERM, "not today")
        rename(source, destination)

    def write() -> None:
        with atomic_directory(target) as folder:
            _fill(folder, _NEW)
            (folder / "new").touch()

    monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(PermissionError, match="not today"):
        write()
    assert _content(target) == _OLD
    assert _names(target.parent) == ["bundle"]


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is a call of Linux")
def test_the_exchange_of_this_system_works(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert atomic._exchange(tmp_path / "a", tmp_path / "b")
    assert _names(tmp_path / "a") == ["b"]
    with pytest.raises(FileNotFoundError):
        atomic._exchange(tmp_path / "a", tmp_path / "missing")


def test_a_folder_that_is_no_bundle_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(InputError, match="neither empty nor a bundle"):
        _write(tmp_path / "photos", _NEW)
    assert _names(tmp_path / "photos") == ["cat.jpg"]
    assert _names(tmp_path) == ["photos"]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ('{"name": "my web bundle"}', "is not a bundle's, it has no digest, model, schema_version"),
        ('["a list"]', "expected an object"),
        ("half of a {", "not valid JSON"),
        (_FORM % "mine", "beside a bundle it holds src. Move that away"),
    ],
)
def test_what_is_called_bundle_json_alone_makes_no_bundle(
    found: str, message: str, tmp_path: Path
) -> None:
    target = tmp_path / "web"
    (target / "src").mkdir(parents=True)
    (target / "bundle.json").write_text(found)
    (target / "src" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=message):
        _write(target, _NEW)
    assert (target / "bundle.json").read_text() == found
    assert (target / "src" / "thesis.txt").read_text() == "mine"
    assert _names(tmp_path) == ["web"]


def test_a_whole_bundle_of_an_older_format_is_replaced(target: Path) -> None:
    for name in ("golden", "engines"):
        (target / name).mkdir()
        (target / name / "file").touch()
    for name in ("tokenizer.json", "parity.json", "parity.html"):
        (target / name).touch()
    _write(target, _NEW)
    assert _content(target) == _NEW
    assert _names(target) == ["bundle.json", "graphs"]


def test_a_folder_that_fills_up_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_directory(tmp_path / "bundle") as folder:
            _fill(folder, _NEW)
            (tmp_path / "bundle").mkdir()
            (tmp_path / "bundle" / "cat.jpg").touch()

    with pytest.raises(InputError, match="neither empty nor a bundle"):
        write()
    assert _names(tmp_path / "bundle") == ["cat.jpg"]


def test_a_file_is_not_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="not a folder"):
        _write(tmp_path / "file", _NEW)
    with pytest.raises(InputError, match="Cannot write at"):
        _write(tmp_path / "file" / "bundle", _NEW)
    with pytest.raises(InputError, match="name a folder inside"):
        _write(Path("/"), _NEW)
    with pytest.raises(InputError, match="mount point"):
        _write(Path("/proc"), _NEW)


@contextmanager
def _as_nobody() -> Iterator[None]:
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(65534)
    except OSError:
        pytest.skip("root cannot become another user here")
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_place_that_is_not_writable_is_named() -> None:
    place = Path(tempfile.mkdtemp())  # pytest's own folders are closed to other users
    place.chmod(0o555)
    try:
        with _as_nobody():
            for write in (_write, _write_file):
                with pytest.raises(InputError, match="Permission denied"):
                    write(place / "bundle", _NEW)
    finally:
        shutil.rmtree(place)


def _write_file(path: Path, content: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(content)


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "labels.png"
    _write_file(path, _OLD)
    with atomic_file(path) as temporary:
        assert temporary.suffix == ".png"
        assert temporary.parent == path.parent
        temporary.write_text(_NEW)
        assert path.read_text() == _OLD
    assert path.read_text() == _NEW
    assert _names(path.parent) == ["labels.png"]


def test_a_file_stays_as_it_was_after_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "labels.png"
    _write_file(path, _OLD)

    def fail() -> None:
        with atomic_file(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == _OLD
    assert _names(tmp_path) == ["labels.png"]


def test_leftover_files_of_dead_processes_are_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".labels.png.tmp-{dead.pid}-0a1b.png").touch()
    (tmp_path / f".labels.png.tmp-{os.getppid()}-0a1b.png").touch()
    _write_file(tmp_path / "labels.png", _NEW)
    assert _names(tmp_path) == [f".labels.png.tmp-{os.getppid()}-0a1b.png", "labels.png"]


def test_leftovers_of_a_process_with_our_own_number_are_removed(tmp_path: Path) -> None:
    """In containers every run has the same one."""
    (tmp_path / f".labels.png.tmp-{os.getpid()}-0a1b.png").write_text("half")
    _write_file(tmp_path / "labels.png", _NEW)
    half = tmp_path / f".bundle.tmp-{os.getpid()}-0a1b"
    half.mkdir()
    (half / "bundle.json").write_text("half")
    _write(tmp_path / "bundle", _NEW)
    assert _names(tmp_path) == ["bundle", "labels.png"]


def test_a_large_folder_is_not_searched_at_each_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = 0
    listdir = os.listdir

    def counting(folder: Path) -> list[str]:
        nonlocal listed
        names = listdir(folder)
        listed += len(names)
        return names

    def leave(name: str) -> None:
        (tmp_path / f".{name}.png.tmp-{os.getpid()}-0a1b.png").touch()

    def left() -> list[str]:
        return [name for name in listdir(tmp_path) if name.startswith(".")]

    monkeypatch.setattr(os, "listdir", counting)
    monkeypatch.setattr(atomic, "_ENTRIES_A_WRITE", 10)
    monkeypatch.setattr(atomic, "_sync", lambda path: None)
    for number in range(50):
        (tmp_path / f"{number}.txt").touch()
    leave("late")
    for number in range(100):
        _write_file(tmp_path / f"{number}.png", _NEW)
    assert listed < 100 * 20
    # What was there at the first write is removed whenever its target is written ...
    _write_file(tmp_path / "late.png", _NEW)
    assert not left()
    # ... and what came later before long.
    leave("later")
    for _ in range(50):
        _write_file(tmp_path / "later.png", _NEW)
    assert not left()


@pytest.mark.parametrize(
    "name",
    [
        "n" * 251 + ".png",
        "n" * 255,
        "日" * 83 + "ab.png",
        "n" * 20 + "." + "s" * 234,
        "n" * 223 + "." + "s" * 31,
    ],
    ids=["png", "no suffix", "wide characters", "no suffix of a format", "longest suffix"],
)
def test_a_name_of_255_bytes(tmp_path: Path, name: str) -> None:
    assert len(os.fsencode(name)) == 255
    path, bundle = tmp_path / "files" / name, tmp_path / "folders" / name
    other = path.with_name("n" * 250 + "z.png")
    half = atomic._temporary_name(other, ".png").name
    for _ in range(2):
        with atomic_file(path) as temporary:
            if len(path.suffix) <= 32:
                assert temporary.name.endswith(path.suffix)
            temporary.write_text(_NEW)
        assert _names(path.parent) == [name]
        _write(bundle, _NEW)
        assert _names(bundle.parent) == [name]
    for left in (temporary.name, half):  # of this target, and of another that begins like it
        (path.parent / left).touch()
    _write_file(path, _NEW)
    assert _names(path.parent) == sorted([name, half])


@pytest.mark.parametrize("locks", [True, False])
def test_what_another_thread_is_writing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    if not locks:  # as on some network file systems
        monkeypatch.setattr(atomic, "exclusive", lambda path: nullcontext(False))
    path, bundle = tmp_path / "labels.png", tmp_path / "bundle"

    def write() -> None:
        _write_file(path, "second")
        _write(bundle, "second")

    with atomic_file(path) as temporary, atomic_directory(bundle) as folder:
        temporary.write_text("first")
        _fill(folder, "first")
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        assert (path.read_text(), _content(bundle)) == ("second", "second")
    assert (path.read_text(), _content(bundle)) == ("first", "first")
    assert _names(tmp_path) == ["bundle", "labels.png"]


def test_a_file_of_another_container_is_known_by_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose process has the number that this one has here."""
    path = tmp_path / "labels.png"
    with atomic_file(path) as temporary:
        temporary.write_text("first")
        monkeypatch.setattr(atomic, "_OWN", set())
        _write_file(path, "second")
    assert path.read_text() == "first"


def test_a_forked_child_leaves_what_its_parent_is_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "exclusive", lambda path: nullcontext(False))
    path = tmp_path / "labels.png"
    with atomic_file(path) as temporary:
        temporary.write_text("first")
        with warnings.catch_warnings():
            # Python 3.12 warns of locks that other threads may hold.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if not child:
            code = 1
            try:
                _write_file(path, "second")
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert path.read_text() == "second"
    assert path.read_text() == "first"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
def test_a_pipe_or_a_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    """For root, /dev/null is a file like any other."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(InputError, match="it is a device or a pipe"):
            _write_file(tmp_path / name, "text")
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link", "pipe"]


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it is a folder"):
        _write_file(tmp_path, _NEW)


def test_a_folder_that_lost_its_marker_is_replaced_if_only_remains_are_in_it(
    tmp_path: Path,
) -> None:
    target = tmp_path / "engines"
    target.mkdir()
    (target / "a.engine").write_text(_OLD)

    def write() -> None:
        with atomic_directory(target, marker="engine.json", remains="*.engine") as folder:
            (folder / "engine.json").write_text(_NEW)

    for name in ("notes.txt", "link.engine", "folder.engine"):
        other = target / name
        if name.startswith("link"):
            other.symlink_to(tmp_path)
        elif name.startswith("folder"):
            other.mkdir()
        else:
            other.write_text("mine")
        with pytest.raises(InputError, match="neither empty nor a bundle"):
            write()
        assert _names(target) == sorted(["a.engine", name])
        other.rmdir() if other.is_dir() and not other.is_symlink() else other.unlink()
    write()
    assert _names(target) == ["engine.json"]
