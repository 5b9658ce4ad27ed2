"""`doctor` names all that is missing at once, and each cure is one."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from click.testing import CliRunner

from embedding_assets.cli import cli
from embedding_assets.errors import PermanentError
from embedding_assets.operations import doctor
from embedding_assets.operations.doctor import Examined, examine
from embedding_assets.pgvector.schema import migrations
from embedding_assets_tests.support.harness import MODELS, REGIONS, SOURCE, Sandbox

EU = "eu-west-1"


def wrong(box: Sandbox) -> dict[str, Examined]:
    return {one.what: one for one in examine(box.deployment) if not one.well}


def test_all_is_well_where_a_run_would_go_well_and_nothing_is_left_behind(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.write(refunds="Refunds take five days.")
    for name, value in sandbox.environment().items():
        monkeypatch.setenv(name, value)

    ran = CliRunner().invoke(cli, ["doctor", "--json"])

    things = {one["what"] for one in json.loads(ran.stdout) if one["well"]}
    assert ran.exit_code == 0
    assert things == {
        "locale", "home", "model v1", "model v2", f"source {SOURCE}",
        *(f"{what} {region}" for what in ("store", "database") for region in REGIONS),
    }  # fmt: skip
    assert sandbox.objects() == {}


def test_all_that_is_missing_is_named_at_once_with_its_cure(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    monkeypatch.setattr("locale.getpreferredencoding", lambda do_setlocale: "ANSI_X3.4-1968")
    monkeypatch.setattr(doctor, "_LEAST_FREE", 1 << 60)
    api = {"provider": "openai", "name": "a-model", "dimensions": 64, "api_key_env": "NO_SUCH_KEY"}
    away = {**sandbox.dsns, EU: "postgresql://nobody@127.0.0.1:9/nothing"}
    box = replace(sandbox, models={**MODELS, "v2": api}, dsns=away)
    store = box.root / "stores" / EU
    store.parent.mkdir(parents=True, exist_ok=True)
    store.write_text("a file where the store's folder is to be")
    (box.docs).rmdir()

    found = wrong(box)
    assert found.keys() == {"locale", "home", "model v2", f"source {SOURCE}", f"store {EU}", f"database {EU}"}
    assert all(one.trouble and one.cure for one in found.values())
    assert "NO_SUCH_KEY" in (found["model v2"].trouble or "")

    # Each cure.
    monkeypatch.setattr("locale.getpreferredencoding", lambda do_setlocale: "UTF-8")
    monkeypatch.setattr(doctor, "_LEAST_FREE", 1)
    monkeypatch.setenv("NO_SUCH_KEY", "a key")
    store.unlink()
    box.write(refunds="Refunds take five days.")
    assert wrong(replace(box, dsns=sandbox.dsns)) == {}


def test_a_clock_that_is_another_is_named(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) + timedelta(days=1)

    sandbox.write(refunds="Refunds take five days.")
    monkeypatch.setattr(doctor, "datetime", Tomorrow)

    found = wrong(sandbox)

    assert found.keys() == {f"{what} {region}" for what in ("store", "database") for region in REGIONS}
    assert all("NTP" in (one.cure or "") for one in found.values())


def test_what_a_run_would_refuse_of_a_database_is_named(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.write(refunds="Refunds take five days.")
    with psycopg.connect(sandbox.dsns[EU], autocommit=True) as admin:
        admin.execute("CREATE SCHEMA elsewhere")
        admin.execute("CREATE TEXT SEARCH CONFIGURATION elsewhere.klingon (COPY = simple)")
    box = replace(sandbox, more={"hybrid": {"language": "klingon"}})

    found = wrong(box)

    assert found.keys() == {f"database {region}" for region in REGIONS}
    assert all("'klingon'" in (one.trouble or "") and "`simple`" in (one.cure or "") for one in found.values())
    with pytest.raises(PermanentError, match="'klingon'"):
        box.deployment.prepare(EU)

    monkeypatch.setattr(migrations, "OLDEST_POSTGRES", 990_000)
    assert all("too old" in (one.trouble or "") for one in wrong(sandbox).values())
    assert wrong(sandbox).keys() == found.keys()
