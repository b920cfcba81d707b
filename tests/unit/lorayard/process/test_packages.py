"""Nothing but our distributions, of one release, may own a package of ours."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lorayard.process.environment import BAD_ENVIRONMENT
from lorayard.process.packages import packages_problem, require_own_packages


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for all that is installed."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


def install(site: Path, name: str, *files: str, release: str = "0.1.0", top_level: str | None = None) -> None:
    folder = site / f"{name.replace('-', '_')}-{release}.dist-info"
    folder.mkdir()
    folder.joinpath("METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: {release}\n")
    folder.joinpath("RECORD").write_text("".join(f"{file},,\n" for file in files))
    if top_level is not None:
        folder.joinpath("top_level.txt").write_text(top_level)


def test_ours_may_own_them(site: Path) -> None:
    install(site, "lorayard", "lorayard/__init__.py")
    install(site, "Lorayard_Server", "db/__init__.py", "kernels/__init__.py")
    install(site, "dbutils", "dbutils/__init__.py", "other/db/__init__.py", "kernels_of_others.py")

    assert packages_problem() is None


def test_a_clone_owns_what_no_distribution_names(site: Path) -> None:
    install(site, "lorayard", "__editable__.lorayard-0.1.0.pth")

    assert packages_problem() is None


@pytest.mark.parametrize(
    ("files", "top_level", "owned"),
    [
        (("kernels/__init__.py", "kernels/lockfile.py"), None, "kernels"),
        (("db.py",), None, "db"),
        (("__editable__.pth",), "scheduler\nworkers\n", "scheduler, workers"),
    ],
)
def test_another_distribution_is_refused_by_name(
    site: Path, files: tuple[str, ...], top_level: str | None, owned: str
) -> None:
    install(site, "lorayard", "lorayard/__init__.py")
    install(site, "foreign", *files, release="0.17.2", top_level=top_level)

    assert packages_problem() == (
        f"foreign 0.17.2 is installed here and has a package {owned}, as Lorayard has, "
        "which cannot run beside it: pip uninstall foreign"
    )


def test_what_it_has_overwritten_is_to_be_put_back(site: Path) -> None:
    install(site, "lorayard-server", "kernels/__init__.py", release="0.3.1")
    install(site, "kernels", "kernels/__init__.py")

    remedy = "pip uninstall kernels && pip install --force-reinstall --no-deps lorayard-server==0.3.1"
    assert str(packages_problem()).endswith(remedy)


def test_two_releases_of_ours_are_refused(site: Path) -> None:
    install(site, "lorayard", "lorayard/__init__.py", release="0.2.0")
    install(site, "lorayard-server", "db/__init__.py", release="0.1.0")

    assert packages_problem() == (
        "lorayard 0.2.0 and lorayard-server 0.1.0 are installed, which must be of one release: "
        "pip install 'lorayard[server]==0.2.0'"
    )


def test_a_service_ends_with_the_sentence(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(site, "kernels", "kernels/__init__.py")

    with pytest.raises(SystemExit) as ended:
        require_own_packages("scheduler")

    assert ended.value.code == BAD_ENVIRONMENT
    assert capsys.readouterr().err.startswith("scheduler: kernels 0.1.0 is installed here")
