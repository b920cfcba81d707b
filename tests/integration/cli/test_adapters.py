"""Adapters get into the store and the catalogue whole, or not at all."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from db import Database
from db.repositories.adapters import AdapterRepository
from lorayard.cli.adapter_store import AdapterStore
from lorayard.contract.errors import LorayardError
from lorayard.contract.pool import pool_id
from tests.integration.cli.conftest import ADAPTERS, BASE, Command
from workers.engine.lora import adapter_digest

UPPER, SORT = ADAPTERS / "upper", ADAPTERS / "sort"


def changed(tmp_path: Path, **config: Any) -> Path:
    """Copy a shipped adapter and change its configuration; None removes a key."""
    folder = tmp_path / "changed"
    shutil.copytree(UPPER, folder)
    path = folder / "adapter_config.json"
    values = json.loads(path.read_text()) | config
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))
    return folder


def revisions_in(store: Path) -> list[Path]:
    """The folders of a store, without its marker."""
    return [entry for entry in store.iterdir() if entry.is_dir()]


def listed(lorayard: Command) -> list[dict[str, Any]]:
    """Read the catalogue through the command."""
    return [json.loads(line) for line in lorayard("adapters", "list", "--json").out.splitlines()]


def test_an_added_adapter_is_kept_and_listed(lorayard: Command, store: Path) -> None:
    ran = lorayard("adapters", "add", "upper", str(UPPER))

    digest = adapter_digest(UPPER)
    assert ran.status == 0, ran.err
    assert f"upper: revision {digest}, rank 4" in ran.out
    assert [(row["name"], row["revision"]) for row in listed(lorayard)] == [("upper", digest)]
    assert [folder.name for folder in revisions_in(store)] == [digest.removeprefix("sha256:")]
    assert adapter_digest(store / digest.removeprefix("sha256:")) == digest


@pytest.mark.parametrize("was", ["collecting", "collected"])
def test_a_revision_added_again_on_its_way_out_is_whole_and_served(
    lorayard: Command, database: Database, store: Path, was: str
) -> None:
    lorayard("adapters", "add", "upper", str(UPPER))
    lorayard("adapters", "remove", "upper")
    digest = adapter_digest(UPPER)
    with database.transaction() as connection:
        connection.execute(
            text("UPDATE adapter_revisions SET state = :was, unused_since = now()"), {"was": was}
        )
    if was == "collected":
        shutil.rmtree(store / digest.removeprefix("sha256:"))

    ran = lorayard("adapters", "add", "upper", str(UPPER))

    assert ran.status == 0, ran.err
    assert adapter_digest(store / digest.removeprefix("sha256:")) == digest
    with database.transaction() as connection:
        rows = connection.execute(text("SELECT state, unused_since FROM adapter_revisions")).all()
    assert rows == [("active", None)]


def test_behaviour_33_the_list_has_base_revision_rank_size_and_state_and_outlives_every_process(
    lorayard: Command, database: Database
) -> None:
    lorayard("adapters", "add", "upper", str(UPPER))
    lorayard("adapters", "add", "sort", str(SORT))
    pool = pool_id(BASE, "float32")
    digest = adapter_digest(SORT)
    database.run(lambda connection: AdapterRepository(connection).quarantine(pool, digest, "damaged"))

    # Each command opens the ledger anew and no worker runs: what it shows is kept in Postgres.
    rows = {row.pop("name"): row for row in listed(lorayard)}

    size = sum(file.stat().st_size for file in UPPER.iterdir())
    assert rows["upper"] == {
        "state": "active",
        "base": str(BASE),
        "model": "",
        "pool": pool,
        "rank": 4,
        "bytes": size,
        "revision": adapter_digest(UPPER),
        "warnings": [],
        "reason": None,
    }
    told = [rows["sort"][key] for key in ("state", "revision", "reason")]
    assert told == ["quarantined", digest, "damaged"]
    assert f"{size:,}" in lorayard("adapters", "list").out


def test_adding_the_same_files_again_changes_nothing(lorayard: Command, store: Path) -> None:
    for name in ("upper", "upper", "alias"):
        assert lorayard("adapters", "add", name, str(UPPER)).status == 0

    assert [row["name"] for row in listed(lorayard)] == ["alias", "upper"]
    assert len(revisions_in(store)) == 1


def test_a_known_name_gets_a_new_revision_and_the_old_files_stay(lorayard: Command, store: Path) -> None:
    lorayard("adapters", "add", "mine", str(UPPER))
    lorayard("adapters", "add", "mine", str(SORT))

    assert [row["revision"] for row in listed(lorayard)] == [adapter_digest(SORT)]
    assert len(revisions_in(store)) == 2


def test_a_removed_adapter_is_not_listed_and_keeps_its_files(lorayard: Command, store: Path) -> None:
    lorayard("adapters", "add", "upper", str(UPPER))

    assert lorayard("adapters", "remove", "upper").out == "upper is removed\n"
    assert "has no adapters: `lorayard adapters add NAME PATH` adds one" in lorayard("adapters", "list").out
    assert len(revisions_in(store)) == 1


def test_removing_what_is_not_there_names_it(lorayard: Command) -> None:
    ran = lorayard("adapters", "remove", "uper")

    assert ran.status == 1
    assert "serves no adapter named 'uper': `lorayard adapters list` shows" in ran.err


def test_behaviour_10_a_name_like_a_path_reaches_no_file(lorayard: Command, store: Path) -> None:
    assert lorayard("adapters", "add", "a/../../../etc", str(UPPER)).status == 0

    assert [folder.name for folder in revisions_in(store)] == [adapter_digest(UPPER).removeprefix("sha256:")]
    assert {entry.name for entry in store.parent.iterdir()} == {store.name}


@pytest.mark.parametrize("name", ["", "a b", "-x", "x" * 201, "a\n", "../../etc", "/etc"])
def test_a_name_that_no_job_could_carry_is_refused(name: str, lorayard: Command, store: Path) -> None:
    ran = lorayard("adapters", "add", "--", name, str(UPPER))

    assert ran.status == 1
    assert "cannot name an adapter: use 1 to 200 letters" in ran.err
    assert not store.exists()


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"base_model_name_or_path": "someone/other"}, "trained on 'someone/other'"),
        ({"r": 99}, "rank 99"),
        ({"target_modules": ["nowhere"]}, "target_modules=['nowhere']"),
        ({"use_dora": True}, "use_dora"),
        ({"r": ...}, "r"),
    ],
    ids=lambda part: str(part)[:30],
)
def test_an_adapter_that_cannot_be_served_is_refused_and_leaves_nothing(
    config: dict[str, Any], complaint: str, tmp_path: Path, lorayard: Command, store: Path
) -> None:
    ran = lorayard("adapters", "add", "bad", str(changed(tmp_path, **config)))

    assert ran.status == 1
    assert ran.err.startswith("error: adapter 'bad'")
    assert complaint in ran.err
    assert "Traceback" not in ran.err
    assert listed(lorayard) == []
    assert not store.exists()


def test_an_adapter_trained_on_the_served_folder_itself_is_added(tmp_path: Path, lorayard: Command) -> None:
    ran = lorayard("adapters", "add", "own", str(changed(tmp_path, base_model_name_or_path=f"{BASE}/")))

    assert ran.status == 0, ran.err
    assert [row["name"] for row in listed(lorayard)] == ["own"]


def test_another_published_base_is_refused_until_its_owner_says_that_both_are_one(
    tmp_path: Path, lorayard: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(changed(tmp_path, base_model_name_or_path="someone/other"))

    refused = lorayard("adapters", "add", "own", folder)
    assert "trained on 'someone/other', but 'lorayard/tiny' is served" in refused.err
    assert "--base-name" in refused.err
    assert "(served_model_name, in the pipeline LORAYARD_SERVED_MODEL_NAME)" in refused.err
    assert "trained on 'a/b'" in lorayard("adapters", "add", "own", folder, "--base-name", "a/b").err

    said = lorayard("adapters", "add", "own", folder, "--base-name", "lorayard/tiny")
    monkeypatch.setenv("LORAYARD_SERVED_MODEL_NAME", "other")
    served = lorayard("adapters", "add", "own", folder)

    assert (said.status, said.err) == (served.status, served.err) == (0, "")


def test_a_base_name_that_tells_nothing_is_a_warning_wherever_the_adapter_is_shown(
    tmp_path: Path, lorayard: Command, database: Database
) -> None:
    ran = lorayard("adapters", "add", "own", str(changed(tmp_path, base_model_name_or_path="/out/\x1b[31m")))

    (row,) = listed(lorayard)
    assert ran.status == 0
    (warning,) = row["warnings"]
    assert warning.startswith(r"it calls its base '/out/\x1b[31m'; whether that is 'lorayard/tiny' cannot be")
    assert ran.err == f"warning: own: {warning}\n"
    assert "cannot be known" in lorayard("adapters", "list").out
    lorayard("adapters", "add", "own", str(UPPER))  # the name moves, the warning stays with its revision
    assert listed(lorayard)[0]["warnings"] == []


def test_twenty_adapters_are_added_by_one_command_or_none(tmp_path: Path, lorayard: Command) -> None:
    pairs = [part for number in range(20) for part in (f"a{number}", str((UPPER, SORT)[number % 2]))]

    assert "39 arguments after the first adapter's" in lorayard("adapters", "add", *pairs, "odd").err
    assert "1 argument after the first adapter's" in lorayard("adapters", "add", *pairs[:2], "odd").err
    assert "no folder" in lorayard("adapters", "add", *pairs, "bad", str(tmp_path / "gone")).err
    assert listed(lorayard) == []
    assert lorayard("adapters", "add", *pairs).status == 0
    assert len(listed(lorayard)) == 20


def test_a_name_given_twice_is_refused_before_anything_is_added(lorayard: Command) -> None:
    ran = lorayard("adapters", "add", "mine", str(UPPER), "mine", str(SORT))

    assert ran.status == 1
    assert "mine is given twice" in ran.err
    assert listed(lorayard) == []


def test_the_pool_is_that_of_the_model_named(lorayard: Command, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(BASE, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config, indent=3))  # another pool

    lorayard("adapters", "add", "upper", str(UPPER), "--model", str(other))

    assert listed(lorayard) == []
    assert "upper" in lorayard("adapters", "list", "--model", str(other)).out
    assert lorayard("adapters", "remove", "upper", "--model", str(other)).status == 0


def test_a_truncated_file_is_refused(tmp_path: Path, lorayard: Command) -> None:
    folder = changed(tmp_path)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])

    assert "adapter_model.safetensors" in lorayard("adapters", "add", "bad", str(folder)).err


def test_a_corrupt_header_is_refused(tmp_path: Path, lorayard: Command) -> None:
    folder = changed(tmp_path)
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")

    assert "adapter_model.safetensors" in lorayard("adapters", "add", "bad", str(folder)).err


def test_pickled_weights_are_refused(tmp_path: Path, lorayard: Command) -> None:
    folder = changed(tmp_path)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")

    assert "adapter_model.bin is a pickle" in lorayard("adapters", "add", "bad", str(folder)).err


def test_a_folder_that_is_not_there_is_named(lorayard: Command) -> None:
    ran = lorayard("adapters", "add", "bad", "/nowhere/at/all")

    assert (ran.status, "/nowhere/at/all" in ran.err) == (1, True)


def test_only_the_files_of_the_adapter_are_kept(tmp_path: Path, lorayard: Command, store: Path) -> None:
    folder = changed(tmp_path)
    (folder / "README.md").write_text("notes")

    lorayard("adapters", "add", "mine", str(folder))

    kept = {file.name for revision in revisions_in(store) for file in revision.iterdir()}
    assert kept == {"adapter_config.json", "adapter_model.safetensors"}


def test_a_damaged_copy_in_the_store_is_mended(lorayard: Command, store: Path) -> None:
    lorayard("adapters", "add", "upper", str(UPPER))
    (revision,) = revisions_in(store)
    (revision / "adapter_model.safetensors").unlink()

    lorayard("adapters", "add", "upper", str(UPPER))

    assert adapter_digest(revision) == adapter_digest(UPPER)
    assert revisions_in(store) == [revision]


def test_files_that_change_while_they_are_copied_are_refused(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "store")
    store.open(may_be_new=True)

    with pytest.raises(LorayardError, match="changed while it was copied"):
        store.put(UPPER, adapter_digest(SORT))

    assert revisions_in(tmp_path / "store") == []


def test_a_store_that_is_not_mounted_is_refused_and_not_made(lorayard: Command, store: Path) -> None:
    lorayard("adapters", "add", "upper", str(UPPER))
    store.rename(store.parent / "elsewhere")

    for mount_point in (None, store):
        if mount_point:
            (mount_point / "lost+found").mkdir(parents=True)
        ran = lorayard("adapters", "add", "sort", str(SORT))
        assert ran.status == 1
        assert (
            f"LORAYARD_ADAPTER_STORE={store} is not an adapter store (it has no .lorayard-store)" in ran.err
        )
        assert "--new-store makes a new store there" in ran.err
    assert [entry.name for entry in store.iterdir()] == ["lost+found"]
    assert [row["name"] for row in listed(lorayard)] == ["upper"]

    assert lorayard("adapters", "add", "--new-store", "sort", str(SORT)).status == 0
    assert [folder.name for folder in store.glob("[0-9a-f]*")] == [
        adapter_digest(SORT).removeprefix("sha256:")
    ]


def test_a_ledger_that_is_not_there_is_told_in_one_line(
    lorayard: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAYARD_DATABASE_URL", "postgresql://me:secret@127.0.0.1:1/x")

    ran = lorayard("adapters", "add", "upper", str(UPPER))

    assert ran.status == 1
    assert ran.err.count("\n") == 1
    assert "LORAYARD_DATABASE_URL" in ran.err
    assert "secret" not in ran.err
