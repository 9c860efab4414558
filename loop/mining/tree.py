"""Copies a repository's files, without what its tests do not need. The repository itself is only read."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from loop.errors import ConfigError, PermissionDenied
from loop.words import safe

_LEFT_OUT = {
    ".git", ".hg", ".svn", ".tox", ".nox", ".eggs", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis", ".idea", ".vscode",
    "__pycache__", "node_modules", "build", "dist", ".venv", "venv", "env", ".direnv", "htmlcov", ".ipynb_checkpoints",
}  # fmt: skip
MAX_BYTES = 4 << 30
MAX_FILES = 200_000


def copy_tree(source: Path, target: Path) -> str:
    """Copy the files of a repository to `target`, which must not exist, and give a hash over their paths and contents.

    Left out are version control, caches, builds, virtual environments, compiled files and links that lead out of the tree. Raises
    ConfigError where there is nothing to copy or too much, PermissionDenied where a file cannot be read.
    """
    if not source.is_dir():
        raise ConfigError(f"{safe(source)} is no directory; give the directory of a repository")
    digest, num_files, num_bytes = hashlib.sha256(), 0, 0
    target.mkdir(parents=True)
    try:
        for path in files_of(source):
            name = path.relative_to(source).as_posix()
            num_files, num_bytes = num_files + 1, num_bytes + path.lstat().st_size
            if num_files > MAX_FILES or num_bytes > MAX_BYTES:
                what = f"more than {MAX_FILES:,} files" if num_files > MAX_FILES else f"more than {MAX_BYTES >> 30} GiB"
                raise ConfigError(f"{safe(source)} has {what}; give the directory of one package with its tests")
            copy = target / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.is_symlink():
                copy.symlink_to(os.readlink(path))
                content = os.readlink(path).encode("utf-8", "surrogateescape")
            else:
                shutil.copyfile(path, copy)
                copy.chmod(0o644 | (path.stat().st_mode & stat.S_IXUSR) * 0o111 // stat.S_IXUSR)
                content = copy.read_bytes()
            digest.update(f"{name}\0{len(content)}\0".encode("utf-8", "surrogateescape") + content)
    except PermissionError as error:
        raise PermissionDenied(f"{safe(error.filename)}: cannot be read; give yourself the right to read it") from None
    except OSError as error:
        raise ConfigError(f"{safe(error.filename or source)}: cannot be copied: {error.strerror}") from None
    if not num_files:
        raise ConfigError(f"{safe(source)} has no files; give the directory of a repository")
    return digest.hexdigest()


def files_of(source: Path) -> Iterator[Path]:
    """The files of a repository that are copied, in the order of their paths."""
    root = os.path.realpath(source)
    for folder, folders, names in os.walk(source, onerror=_raise):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if not _is_left_out(here / name))
        linked = [name for name in folders if (here / name).is_symlink()]
        for name in sorted(names + linked):
            path = here / name
            if path.is_symlink():
                if os.path.realpath(path).startswith(root + os.sep) and not os.path.isabs(os.readlink(path)):
                    yield path
            elif not name.endswith((".pyc", ".pyo")) and stat.S_ISREG(path.lstat().st_mode):
                yield path


def _is_left_out(folder: Path) -> bool:
    return folder.name in _LEFT_OUT or folder.name.endswith(".egg-info") or (folder / "pyvenv.cfg").exists()


def _raise(error: OSError) -> None:
    raise error


def commit_of(source: Path) -> str | None:
    """The commit that a repository's files were taken from, as git's own files name it; None without git."""
    try:
        head = (source / ".git" / "HEAD").read_text("utf-8").strip()
        if not head.startswith("ref: "):
            return head[:40] or None
        name = head[5:]
        loose = source / ".git" / name
        if loose.is_file():
            return loose.read_text("utf-8").strip()[:40] or None
        for line in (source / ".git" / "packed-refs").read_text("utf-8").splitlines():
            if line.endswith(" " + name):
                return line.split()[0]
    except (OSError, UnicodeDecodeError):
        pass
    return None
