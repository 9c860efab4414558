"""The interpreter that runs a repository's tests: the one that the user names, that of the repository, or a new one."""

from __future__ import annotations

import configparser
import json
import os
import shlex
import subprocess
import tomllib
import venv
from pathlib import Path
from typing import Any

from loop.errors import ConfigError
from loop.grading.inside.view import TREE
from loop.grading.repositories import Environment
from loop.words import one_line, safe

OLDEST = (3, 11)
"""Of the Pythons that can run what runs inside."""
_PROBE = """
import importlib.metadata as metadata, json, os, sys, sysconfig
names = {}
for one in metadata.distributions():
    names[one.metadata["Name"]] = one.version
json.dump({"version": list(sys.version_info[:3]), "python": os.path.realpath(sys.executable), "path": sys.path, "prefix": sys.prefix,
           "base": sys.base_prefix, "packages": names, "sites": [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]}, sys.stdout)
"""
_EXTRAS = ("test", "tests", "testing", "dev")
_KEPT_OPTIONS = (
    "--import-mode",
    "--strict",
    "-p",
    "--pyargs",
    "-W",
    "-o",
    "--override-ini",
    "--asyncio-mode",
    "--ds",
    "--pythonwarnings",
)
_WITH_VALUE = ("-p", "-W", "-o")


def python_for(source: Path, directory: Path, named: Path | None) -> Path:
    """The interpreter to use; one is made under `directory` if there is none. Raises ConfigError."""
    if named is not None:
        return named.expanduser().absolute()  # not resolved: a virtual environment is known by the path of its link
    for name in (".venv", "venv", "env"):
        if os.access(python := source.absolute() / name / "bin" / "python", os.X_OK):
            return python
    return _made(source, directory.absolute())


def environment_of(python: Path, source: Path, roots: tuple[str, ...], options: list[str]) -> Environment:
    """What a sandbox needs to run this interpreter. `roots` are folders of the tree from which its packages are imported.

    Raises ConfigError where the interpreter cannot be run, is too old or has no pytest.
    """
    try:
        # not isolated: what is installed for this interpreter is what its user sees
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        done = subprocess.run(
            [python, "-c", _PROBE], capture_output=True, check=True, cwd="/", env=clean, stdin=subprocess.DEVNULL
        )
        known: dict[str, Any] = json.loads(done.stdout)
    except OSError as error:
        raise ConfigError(
            f"--python {safe(python)}: {error.strerror}; give a Python that has the repository's packages"
        ) from None
    except (subprocess.CalledProcessError, ValueError):
        raise ConfigError(
            f"--python {safe(python)}: is no Python that runs; give one that has the repository's packages"
        ) from None
    version = ".".join(map(str, known["version"]))
    if tuple(known["version"][:2]) < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise ConfigError(f"--python {safe(python)}: is Python {version}; give one of at least {wanted}")
    packages = {name.lower(): number for name, number in known["packages"].items() if name}
    if "pytest" not in packages:
        raise ConfigError(f'{safe(python)} has no pytest, which runs the tests; "{python} -m pip install pytest"')
    inside = os.path.realpath(source)
    path = [
        name
        for name in known["path"]
        if name and os.path.exists(name) and not _is_tree(os.path.realpath(name), inside, known)
    ]
    shown_folders = [known["base"], known["prefix"], *path]
    hidden = [
        f"{site}/{name}"
        for site in dict.fromkeys(known["sites"])
        for root in roots
        for name in sorted(
            {part.name for part in (source / root).iterdir() if _is_importable(part)}
            if (source / root).is_dir()
            else ()
        )
        if os.path.exists(f"{site}/{name}")
    ]
    return Environment(
        python=known["python"],
        version=version,
        shown=tuple(_outermost(shown_folders)),
        path=(*(f"{TREE}/{root}".rstrip("/.") for root in roots), *path),
        hidden=tuple(hidden),
        options=tuple(options),
        variables={"PATH": f"{known['prefix']}/bin:/usr/local/bin:/usr/bin:/bin"},
        packages=packages,
    )


def _is_tree(path: str, tree: str, known: dict[str, Any]) -> bool:
    """Whether this part of sys.path is the repository itself, installed to be edited, and not its virtual environment."""
    own = os.path.realpath(known["prefix"])
    return (path == tree or path.startswith(tree + os.sep)) and not path.startswith(own + os.sep)


def _is_importable(path: Path) -> bool:
    return path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))


def _outermost(folders: list[str]) -> list[str]:
    """The folders that lie in none of the others, nor in what every sandbox shows."""
    kept: list[str] = []
    for folder in sorted(dict.fromkeys(folders), key=len):
        if os.path.isdir(folder) and not any(
            folder == name or folder.startswith(name + "/") for name in ("/usr", *kept)
        ):
            kept.append(folder)
    return kept


def pytest_options(source: Path) -> list[str]:
    """pytest's options for a repository: of those that it sets itself the ones that say how tests are imported.

    Options that run tests in parallel, measure coverage, reorder or stop early would be in the way.
    """
    words = shlex.split(_own_options(source))
    kept: list[str] = []
    for place, word in enumerate(words):
        if word.split("=")[0] in _KEPT_OPTIONS:
            kept += [word, words[place + 1]] if word in _WITH_VALUE and place + 1 < len(words) else [word]
    return ["-o", f"addopts={shlex.join(kept)}", "-p", "no:randomly", "-p", "no:xdist", "--rootdir", TREE]


def _own_options(source: Path) -> str:
    for name in ("pytest.ini", ".pytest.ini", "pyproject.toml", "tox.ini", "setup.cfg"):
        try:
            text = (source / name).read_text("utf-8")
            if name == "pyproject.toml":
                value = tomllib.loads(text).get("tool", {}).get("pytest", {}).get("ini_options", {}).get("addopts")
            else:
                parser = configparser.ConfigParser(interpolation=None, strict=False)
                parser.read_string(text)
                value = parser.get("tool:pytest" if name == "setup.cfg" else "pytest", "addopts", fallback=None)
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, configparser.Error, AttributeError):
            continue
        if value:
            return shlex.join(map(str, value)) if isinstance(value, list) else str(value)
    return ""


def _made(source: Path, directory: Path) -> Path:
    """Make a virtual environment with what the repository's files name."""
    python = directory / "bin" / "python"
    wanted = _wanted(source)
    try:
        venv.create(directory, with_pip=True, symlinks=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "pytest", *wanted]
        subprocess.run(command, check=True, capture_output=True, text=True, cwd=source, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        reason = one_line(said.strip().splitlines()[-1] if said.strip() else "pip failed")
        remedy = "make an environment for the repository and name its interpreter with --python"
        raise ConfigError(f"no environment can be made for {safe(source)}: {reason}; {remedy}") from None
    return python


def _wanted(source: Path) -> list[str]:
    """What pip is to install: what the lock names, else the requirements, else the dependencies in pyproject.toml."""
    for name in ("pylock.toml", "requirements.lock", "requirements-lock.txt"):
        if (source / name).is_file():
            return ["-r", name]
    wanted: list[str] = []
    for name in (
        "requirements.txt",
        "requirements-test.txt",
        "requirements-dev.txt",
        "test-requirements.txt",
        "dev-requirements.txt",
    ):
        if (source / name).is_file():
            wanted += ["-r", name]
    try:
        data = tomllib.loads((source / "pyproject.toml").read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return wanted
    project, groups = data.get("project", {}), data.get("dependency-groups", {})
    wanted += project.get("dependencies", [])
    for name in _EXTRAS:
        wanted += project.get("optional-dependencies", {}).get(name, [])
        wanted += [line for line in groups.get(name, []) if isinstance(line, str)]
    return wanted


def own_packages() -> tuple[str, ...]:
    """Where this process has coverage.py, for interpreters that lack it."""
    import coverage

    return (str(Path(coverage.__file__).parent),)
