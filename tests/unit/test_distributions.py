"""Producers and servers are two distributions with no file in common, each whole without a clone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import HeaderParser
from importlib.metadata import distribution
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PACKAGES: Final = {"lorayard": ("lorayard",), "lorayard-server": ("db", "kernels", "scheduler", "workers")}
# Without PYTHONPATH: a clone, from which tests run, must not lend its packages.
BARE: Final = {
    "PATH": "/usr/bin:/bin",
    "LORAYARD_DATABASE_URL": "postgresql://127.0.0.1:1/none",
    **dict.fromkeys(("UV_NO_CACHE", "UV_NO_CONFIG", "UV_OFFLINE"), "1"),
}
UV: Final = str(Path(sys.executable).with_name("uv"))
LEFTOVERS: Final = ("__pycache__", "*.so", "*.egg-info", "build", "build-*")


class Environment(NamedTuple):
    """Fresh, without a clone on its path, and with what the distributions ask for."""

    folder: Path
    wheels: dict[str, Path]

    def run(self, *command: str, status: int = 0) -> str:
        return run(str(self.folder / "bin" / command[0]), *command[1:], status=status)

    def install(self, wheel: Path) -> None:
        run(UV, "pip", "install", "--quiet", "--no-deps", "--python", str(self.folder), str(wheel))

    def uninstall(self, name: str) -> None:
        run(UV, "pip", "uninstall", "--quiet", "--python", str(self.folder), name)

    def files(self, name: str) -> set[Path]:
        """List what a distribution has installed."""
        site = self.folder / SITE
        (record,) = site.glob(f"{name.replace('-', '_')}-*.dist-info/RECORD")
        return {Path(os.path.normpath(site / line.split(",")[0])) for line in record.read_text().splitlines()}


SITE: Final = Path("lib", f"python3.{sys.version_info.minor}", "site-packages")


def run(*command: str, status: int = 0) -> str:
    ran = subprocess.run(command, cwd="/", env=BARE, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == status, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Build both from a copy, since setuptools writes into the folder; each wheel is made from its sdist."""
    clone, out = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    for name in ("distributions", *PACKAGES["lorayard"], *PACKAGES["lorayard-server"]):
        shutil.copytree(ROOT / name, clone / name, symlinks=True, ignore=shutil.ignore_patterns(*LEFTOVERS))
    for folder in (clone, clone / "distributions/server"):
        run(
            UV, "build", "--quiet", "--no-build-isolation", "--python", sys.executable,
            "--out-dir", str(out), str(folder),
        )  # fmt: skip
    return {name: next(out.glob(f"{name.replace('-', '_')}-[0-9]*.whl")) for name in PACKAGES}


@pytest.fixture(scope="module")
def installed(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("environment") / "venv", wheels)
    run(UV, "venv", "--quiet", "--python", sys.executable, str(environment.folder))
    for name in needed(wheels, "lorayard[server]"):
        for part in parts(name):
            (environment.folder / SITE / part).symlink_to(Path(sysconfig.get_path("purelib")) / part)
    for wheel in wheels.values():
        environment.install(wheel)
    return environment


def needed(wheels: dict[str, Path], *asked: str) -> set[str]:
    """Name every distribution that an installer would bring, but for ours."""
    seen, todo = set[tuple[str, str]](), [Requirement(one) for one in asked]
    while todo:
        one = todo.pop()
        name = canonicalize_name(one.name)
        told = (
            metadata(wheels[name]).get_all("Requires-Dist") if name in wheels else distribution(name).requires
        )
        for extra in {"", *one.extras} - {extra for other, extra in seen if other == name}:
            seen.add((name, extra))
            todo += [other for line in told or [] if is_asked(other := Requirement(line), extra)]
    return {name for name, _ in seen} - wheels.keys()


def is_asked(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def parts(name: str) -> set[str]:
    """Name the files and folders at the top of site-packages that a distribution has."""
    return {file.parts[0] for file in distribution(name).files or []} - {"..", "__pycache__"}


def sources(package: str) -> Iterator[str]:
    for folder, folders, names in os.walk(ROOT / package):
        folders[:] = [one for one in folders if one != "__pycache__"]
        yield from (
            str((Path(folder) / name).relative_to(ROOT)) for name in names if not name.endswith(".so")
        )


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return HeaderParser().parsestr(archive.read(name).decode())


def test_they_are_of_one_release_and_each_asks_for_it(wheels: dict[str, Path]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    producer, server = (metadata(wheel) for wheel in wheels.values())
    asked = producer.get_all("Requires-Dist", [])

    assert [producer["Version"], server["Version"]] == [version, version]
    assert f'lorayard-server=={version}; extra == "server"' in asked
    assert f'lorayard-server[worker]=={version}; extra == "worker"' in asked
    assert server.get_all("Requires-Dist") == [
        f"lorayard[server-dependencies]=={version}",
        f'lorayard[worker-dependencies]=={version}; extra == "worker"',
    ]
    images = re.findall(r"image: lorayard-\w+:(\S+)", (ROOT / "docker-compose.yml").read_text())
    assert set(images) == {version}
    for name in ("Requires-Python", "License-Expression", "License-File", "Classifier"):
        assert producer.get_all(name) == server.get_all(name)


@pytest.mark.parametrize("name", PACKAGES)
def test_each_has_its_packages_whole_and_no_other_file(installed: Environment, name: str) -> None:
    site = installed.folder / SITE
    files = {str(path.relative_to(site)) for path in installed.files(name) if path.is_relative_to(site)}

    assert {file for file in files if ".dist-info/" not in file} == {
        source for package in PACKAGES[name] for source in sources(package)
    }


def test_no_file_belongs_to_both(installed: Environment) -> None:
    assert installed.files("lorayard").isdisjoint(installed.files("lorayard-server"))


def test_a_producer_keeps_every_file_when_the_servers_leave(installed: Environment) -> None:
    ours, theirs = installed.files("lorayard"), installed.files("lorayard-server")
    installed.uninstall("lorayard-server")

    assert all(path.exists() for path in ours)
    assert not any(path.exists() for path in theirs)
    assert installed.run("lorayard", "--version").startswith("lorayard 0.")
    assert installed.run("lorayard", "jobs", status=1).endswith(
        "this verb needs the package db of lorayard-server: pip install 'lorayard[server]'\n"
    )

    installed.install(installed.wheels["lorayard-server"])
    assert theirs == installed.files("lorayard-server")


def test_the_servers_keep_every_file_when_the_producer_leaves(installed: Environment) -> None:
    ours, theirs = installed.files("lorayard"), installed.files("lorayard-server")
    installed.uninstall("lorayard")

    assert not any(path.exists() for path in ours)
    assert all(path.exists() for path in theirs)

    installed.install(installed.wheels["lorayard"])
    assert ours == installed.files("lorayard")


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A wheel of a distribution called `kernels`, as Hugging Face has one, with a package of that name."""
    wheel = tmp_path / "kernels-0.17.2-py3-none-any.whl"
    info = "kernels-0.17.2.dist-info"
    files = {
        "kernels/__init__.py": "from kernels.layer import use_kernel_mapping\n",
        "kernels/layer.py": "def use_kernel_mapping(): ...\n",
        f"{info}/METADATA": "Metadata-Version: 2.4\nName: kernels\nVersion: 0.17.2\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return wheel


def test_no_server_starts_beside_another_owner_of_its_packages(installed: Environment, foreign: Path) -> None:
    installed.install(foreign)
    refusal = "kernels 0.17.2 is installed here and has a package kernels, as Lorayard has"
    remedy = "pip uninstall kernels && pip install --force-reinstall --no-deps lorayard-server=="
    model = ROOT / "examples/tiny/base"

    for module in ("scheduler", "workers", "workers.webhooks"):
        told = installed.run("python", "-m", module, status=2)
        assert told.startswith(f"{module}: {refusal}")
        assert remedy in told
    assert f"error: {refusal}" in installed.run("lorayard", "up", "--model", str(model), status=1)

    installed.uninstall("kernels")
    installed.install(installed.wheels["lorayard-server"])
    # Each with what it imports: the first that is missing in its environment is a setting.
    for module, setting in (("scheduler", "MODEL"), ("workers", "MODEL"), ("workers.webhooks", "SECRET_KEY")):
        assert f"LORAYARD_{setting}" in installed.run("python", "-m", module, status=2)


def test_whatever_is_imported_is_asked_for(wheels: dict[str, Path]) -> None:
    all_of_it = {part for name in needed(wheels, "lorayard[local]") for part in parts(name)}
    ours = {package for packages in PACKAGES.values() for package in packages}
    imported = {
        module
        for package in ours
        for path in (ROOT / package).rglob("*.py")
        for module in re.findall(
            r"^ *(?:from|import) (\w+)(?:[\w.]* import|[\w.]*(?: as \w+)?$)", path.read_text(), re.MULTILINE
        )
    }

    assert "tokenizers" in imported
    assert imported - ours - sys.stdlib_module_names <= {part.removesuffix(".py") for part in all_of_it}
