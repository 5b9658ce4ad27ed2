import os
import re
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from pydantic import ValidationError

from embedding_assets import machine
from embedding_assets.operations.deployment import Deployment
from embedding_assets.pgvector.indexes.hnsw import SERVERS, Means
from embedding_assets.pgvector.options import TARGET_RECALL, USUAL, Hnsw
from embedding_assets.settings.current import current_settings
from embedding_assets.settings.default import default_settings
from embedding_assets.settings.home import CONFIG, HOME, home
from embedding_assets.settings.models import FilesSource, JsonlSource, Region, Settings, SettingsError
from embedding_assets.settings.yaml_file import load_settings

# A settings file as users have them, which has to stay valid: on purpose with a spelling and order of its own.
FIXED = """\
primary_region: us-east-1
regions:
  us-east-1: {store: "file://./stores/us east", database: "embedded"}
  eu-west-1: {store: "s3://bucket/prefix/", database: "postgresql://u:sekret@db.example:5433/docs"}
models:
  v1: {provider: local, name: wordllama-256, dimensions: 256}
  v2: {provider: openai, name: text-embedding-3-large, dimensions: 3072, base_url: "https://e.example/v1"}
live_model: v1
sources:
  handbook: {kind: files, path: ./docs, include: ["**/*.md", "**/*.txt"], chunking: {max_tokens: 256, overlap: 32}}
  tickets:  {kind: jsonl, path: ../tickets/*.jsonl, id: id, text: body, metadata: [title, team]}
"""


def config(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(folder: Path, text: str) -> list[str]:
    """The lines of the error, without the file's name."""
    path = config(folder, text)
    with pytest.raises(SettingsError) as refused:
        load_settings(path)
    lines = str(refused.value).splitlines()
    assert all(line.startswith(f"{path}:") for line in lines)
    return [line.removeprefix(f"{path}:") for line in lines]


def changed(old: str, new: str) -> str:
    assert FIXED.count(old) == 1
    return FIXED.replace(old, new)


def test_the_fixed_schema_loads_with_paths_relative_to_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "con fig"
    folder.mkdir()
    settings = load_settings(config(folder, FIXED))

    assert (settings.primary_region, settings.live_model) == ("us-east-1", "v1")
    assert settings.regions["us-east-1"].store == f"file://{tmp_path}/con%20fig/stores/us%20east"
    assert settings.regions["eu-west-1"].store == "s3://bucket/prefix"
    assert settings.regions["us-east-1"].dsn() is None
    assert settings.regions["eu-west-1"].dsn() == "postgresql://u:sekret@db.example:5433/docs"
    assert settings.models["v2"].dimensions == 3072
    handbook, tickets = settings.sources["handbook"], settings.sources["tickets"]
    assert isinstance(handbook, FilesSource)
    assert isinstance(tickets, JsonlSource)
    assert (handbook.path, handbook.include) == (folder / "docs", ("**/*.md", "**/*.txt"))
    assert (handbook.chunking.max_tokens, handbook.chunking.overlap) == (256, 32)
    assert (tickets.path, tickets.metadata) == (tmp_path / "tickets" / "*.jsonl", ("title", "team"))
    assert (tickets.id, tickets.text, tickets.max_deleted) == ("id", "body", 0.2)


def test_a_file_named_relative_to_the_working_directory_resolves_against_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    config(tmp_path, FIXED)
    monkeypatch.chdir(tmp_path / "here")
    assert load_settings(Path("../settings.yaml")).sources["handbook"].path == tmp_path / "docs"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            changed("live_model: v1", "live_model: v1\nwork: {backend: celery}"),
            "9: work: workers need a broker. Cure: add `broker: env:NAME`",
        ),
        (
            changed("live_model: v1", "live_model: v1\nwork: {backend: celery, broker: 'amqp://u:sekret@h'}"),
            "9: work.broker: not a variable. Cure: write env:NAME",
        ),
        (
            changed("live_model: v1", "live_model: v1\nwork: {backend: clery}"),
            "9: work.backend: is not known here. Cure: write 'local' or 'celery'",
        ),
        (changed("live_model", "live_modle"), "8: live_modle: is not a setting. Cure: write live_model"),
        (changed("live_model: v1\n", ""), "1: live_model: is missing. Cure: add `live_model: …`"),
        (changed("live_model: v1", "live_model: v3"), "8: live_model: is not known here. Cure: write 'v1' or 'v2'"),
        (
            changed("region: us-east-1", "region: us-est-1"),
            "1: primary_region: there is no region 'us-est-1'. Cure: wri",
        ),
        (
            changed("live_model: v1", "live_model: v2").replace("  v2:", "  #"),
            "8: live_model: slot v2 is empty. Cure: wri",
        ),
        (re.sub(r"models:\n.*\n.*\nlive.*\n", "models: {}\n", FIXED), "5: models: no model is bound. Cure: add `v1:"),
        (changed("  v2:", "  v3:"), "7: models.v3: is not known here. Cure: write 'v1' or 'v2'"),
        (changed("3072", "4001"), "7: models.v2.dimensions: 4001 is more than 4000, the most that pgvector's HNSW"),
        (changed("3072", "0"), "7: models.v2.dimensions: it should be greater than or equal to 1"),
        (
            changed("dimensions: 256", "dimensions: 257"),
            "6: models.v1: wordllama-256 has 256 dimensions, not 257. Cure: write dimensions: 256",
        ),
        (changed("provider: openai", "provider: opneai"), "7: models.v2.provider: is not known here"),
        (changed("provider: openai, ", ""), "7: models.v2.provider: is missing"),
        (changed("3072,", "3072, hnsw: {m: 101},"), "7: models.v2.hnsw.m: it should be less than or equal to 100"),
        (
            changed("3072,", "3072, hnsw: {m: 32, ef_construction: 63},"),
            "7: models.v2.hnsw: ef_construction, 63, is less than twice m, 32. Cure: write ef_construction: 64 or more",
        ),
        (
            changed("live_model: v1", "live_model: v1\nquiet_hours: 1-5"),
            "9: quiet_hours: not hours of a day. Cure: wri",
        ),
        (
            changed("live_model: v1", "live_model: v1\nquiet_hours: 23:30-00:29"),
            "9: quiet_hours: 59 minutes are too short",
        ),
        (changed("live_model: v1", "live_model: v1\ntarget_recall: 98"), "9: target_recall: it should be less than or"),
        (changed("3072,", "3072, dimension: 1,"), "7: models.v2.dimension: is not a setting. Cure: write dimensions"),
        (changed("3072,", "3072, api_key_env: sk-sekret,"), "7: models.v2.api_key_env: not the name of an environ"),
        (changed("eu-west-1:", "EU:"), "4: regions.EU: not a name: names are partition keys"),
        (changed("eu-west-1:", "7:"), "4: regions.7: the name is not a string. Cure: put it in quotes"),
        (changed("handbook:", "hand|book:"), "10: sources.hand|book: not a name"),
        (changed("handbook:", "h" * 49 + ":"), "10: sources." + "h" * 49 + ": not a name"),
        (changed("s3://bucket/prefix/", "file://stores/eu"), "4: regions.eu-west-1.store: not a store"),
        (changed("s3://bucket/prefix/", "s3://key:sekret@bucket"), "4: regions.eu-west-1.store: not a store"),
        (changed("s3://bucket/prefix/", "./stores"), "4: regions.eu-west-1.store: not a store"),
        (
            changed("s3://bucket/prefix/", "file://./stores/us%20east/"),
            "4: regions.eu-west-1.store: us-east-1 has the same",
        ),
        (
            changed('"embedded"', '"postgresql://x@db.example:5433/docs"'),
            "4: regions.eu-west-1.database: us-east-1 has th",
        ),
        (changed("postgresql://u:", "mysql://u:"), "4: regions.eu-west-1.database: not a database"),
        (changed(":5433/docs", ":54:33/do%zzcs"), "4: regions.eu-west-1.database: not a database"),
        (changed("kind: files, ", ""), "10: sources.handbook.kind: is missing, or unknown. Cure: write `kind: files`"),
        (changed("kind: files", "kind: folder"), "10: sources.handbook.kind: is missing, or unknown"),
        (changed("text: body, ", ""), "11: sources.tickets.text: is missing. Cure: add `text: …`"),
        (changed("chunking:", "chunkin:"), "10: sources.handbook.chunkin: is not a setting. Cure: write chunking"),
        (changed("overlap: 32", "overlap: 128"), "10: sources.handbook.chunking.overlap: 128 is not less than half of"),
        (
            changed(", overlap: 32", "").replace("tokens: 256", "tokens: 64"),
            "10: sources.handbook.chunking.overlap: 32 is n",
        ),
        (
            changed("max_tokens: 256", "max_tokens: lots"),
            "10: sources.handbook.chunking.max_tokens: it should be a valid",
        ),
        (changed("**/*.txt", "../*.txt"), "10: sources.handbook.include.1: not a pattern below"),
        (changed("path: ./docs", 'path: "./do\\0cs"'), "10: sources.handbook.path: has a NUL character"),
        (changed("s3://bucket/prefix/", "file://./a%00b"), "4: regions.eu-west-1.store: not a store"),
        (changed("**/*.txt", "/etc/*"), "10: sources.handbook.include.1: not a pattern below"),
        (
            changed("[title, team]}", "[title], max_deleted: 20}"),
            "11: sources.tickets.max_deleted: it should be less than",
        ),
    ],
)
def test_each_problem_is_named_with_its_line_and_a_cure(tmp_path: Path, text: str, expected: str) -> None:
    found = problems(tmp_path, text)
    assert any(line.startswith(expected) for line in found), found
    assert all("Cure: " in line for line in found)
    assert "sekret" not in "".join(found)


def test_all_problems_are_listed_at_once_in_the_order_of_the_lines(tmp_path: Path) -> None:
    text = """\
primary_region: nowhere
regions:
  us-east-1: {store: "file:///same"}
  eu-west-1:
    store: "file:///same/"
    colour: red
models:
  v1: {provider: local, name: wordllama-256, dimensions: 256}
live_model: v2
sources:
  handbook:
    kind: files
    path: docs
    chunking:
      overlap: 200
"""
    assert [line.split(". Cure:")[0] for line in problems(tmp_path, text)] == [
        "1: primary_region: there is no region 'nowhere'",
        "5: regions.eu-west-1.store: us-east-1 has the same store",
        "6: regions.eu-west-1.colour: is not a setting",
        "9: live_model: slot v2 is empty",
        "15: sources.handbook.chunking.overlap: 200 is not less than half of max_tokens, 256",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "1: the settings are no mapping"),
        ("- a\n- b\n", "1: the settings are no mapping"),
        ("a: 1\nb: [sekret\n", "3: not YAML"),
        ('a: 1\n\nb: "sekret', "3: not YAML"),
        ("a: 1\n\tb: sekret\n", "2: not YAML"),
        ("a: 1\n---\nb: 2\n", "2: not YAML"),
        ("a: *nobody\n", "1: not YAML"),
        ("a: 1\nb: !!python/object/apply:os.system [sekret]\n", "2: not YAML"),
        ("a: 1\n? [b, c]\n: 2\n", "2: not YAML"),
        ("a: 1\nb: \x07\n", "2: not YAML"),
        (FIXED + "live_model: v2\n", "12: live_model: stands twice"),
        (changed("kind: files,", "kind: files, kind: jsonl,"), "10: kind: stands twice"),
        ("a: &a {b: *a}\n", "1: a: is not a setting"),
    ],
)
def test_a_file_that_is_not_one_mapping_is_refused_by_line_and_not_quoted(tmp_path: Path, text: str, line: str) -> None:
    found = problems(tmp_path, text)
    assert any(one.startswith(line) for one in found), found
    assert "sekret" not in "".join(found)


@pytest.mark.parametrize("what", ["missing", "a folder", "not UTF-8", "large", "nested"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, what: str) -> None:
    path = tmp_path / "settings.yaml"
    if what == "a folder":
        path.mkdir()
    elif what == "not UTF-8":
        path.write_bytes(b"a: \xff")
    elif what == "large":
        path.write_bytes(b"#" * (1 << 21))
    elif what == "nested":
        path.write_text("a: " + "[" * 2_000)
    with pytest.raises(SettingsError) as refused:
        load_settings(path)
    assert str(path) in str(refused.value)
    assert "Cure: " in str(refused.value)


def test_anchors_and_merge_keys_may_be_used(tmp_path: Path) -> None:
    text = FIXED + "  more: &more {kind: files, path: ./more}\n  still: {<<: *more, path: ./still}\n"
    settings = load_settings(config(tmp_path, text))
    assert settings.sources["still"].path == tmp_path / "still"


def test_no_password_is_ever_shown(tmp_path: Path) -> None:
    settings = load_settings(config(tmp_path, FIXED))
    assert "sekret" not in f"{settings} {settings!r} {settings.model_dump()} {settings.model_dump_json()}"
    for broken in (changed("postgresql://u:", "mysql://u:"), changed("live_model: v1", "live_model: v3")):
        with pytest.raises(SettingsError) as refused:
            load_settings(config(tmp_path, broken))
        assert "sekret" not in "".join(traceback.format_exception(refused.value))
    with pytest.raises(ValidationError) as invalid:
        Region.model_validate({"store": "file:///a", "database": "mysql://u:sekret@h", "typo": "sekret"})
    assert "sekret" not in str(invalid.value)


def test_a_dsn_may_come_from_the_environment_when_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCS_DSN", raising=False)
    text = changed("postgresql://u:sekret@db.example:5433/docs", "env:DOCS_DSN")
    region = load_settings(config(tmp_path, text)).regions["eu-west-1"]

    with pytest.raises(SettingsError, match=r"DOCS_DSN.*not set"):
        region.dsn()
    monkeypatch.setenv("DOCS_DSN", "sekret")
    with pytest.raises(SettingsError, match="holds no DSN") as refused:
        region.dsn()
    assert "sekret" not in str(refused.value)
    monkeypatch.setenv("DOCS_DSN", "postgresql:///docs")
    assert region.dsn() == "postgresql:///docs"


def test_settings_made_in_code_are_checked_like_a_file(tmp_path: Path) -> None:
    fine = default_settings(tmp_path)
    with pytest.raises(ValidationError, match=r"live_model: slot v1 is empty\. Cure:"):
        type(fine).model_validate({**dict(fine), "models": {"v2": fine.models["v2"]}})
    region = fine.regions["us-east-1"]
    with pytest.raises(ValidationError, match="a has the same store"):
        type(fine).model_validate({**dict(fine), "primary_region": "a", "regions": {"a": region, "b": region}})


def test_the_default_is_the_demo_and_touches_nothing(tmp_path: Path) -> None:
    settings = default_settings(tmp_path / "my home")
    assert settings.regions["eu-west-1"].store == f"file://{tmp_path}/my%20home/stores/eu-west-1"
    assert {name: binding.dimensions for name, binding in settings.models.items()} == {"v1": 256, "v2": 384}
    assert {name: source.kind for name, source in settings.sources.items()} == {
        "reference": "files",
        "packages": "jsonl",
    }
    assert settings.sources["packages"].path == tmp_path / "my home" / "input" / "packages.jsonl"
    assert list(tmp_path.iterdir()) == []


def test_the_environment_names_the_home_and_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(HOME, "my home")
    monkeypatch.delenv(CONFIG, raising=False)
    assert home() == tmp_path / "my home"
    assert current_settings() == default_settings(tmp_path / "my home")
    monkeypatch.setenv(CONFIG, str(config(tmp_path, FIXED)))
    assert current_settings().sources.keys() == {"handbook", "tickets"}
    monkeypatch.delenv(HOME)
    assert home().is_absolute()
    assert home().name == ".embedding_assets"


def test_importing_and_the_default_settings_need_no_environment(tmp_path: Path) -> None:
    code = "import embedding_assets.settings.current as s; print(s.current_settings().primary_region)"
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "us-east-1\n"
    assert list(tmp_path.iterdir()) == []


def test_an_index_is_built_as_usual_unless_a_model_says_otherwise_which_changes_no_vector(tmp_path: Path) -> None:
    usual = default_settings(tmp_path)
    given = usual.model_dump()
    given["models"]["v1"]["hnsw"] = {"m": 32}
    other = Settings.model_validate(given)

    assert Deployment(usual, tmp_path).hnsw == USUAL
    assert usual.target_recall == TARGET_RECALL
    assert Deployment(other, tmp_path).hnsw == {**USUAL, "v1": Hnsw(m=32, ef_construction=200)}
    assert other.models["v1"].identity() == usual.models["v1"].identity()


def test_a_build_may_use_what_its_region_says_or_a_quarter_of_the_machine_of_an_embedded_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "memory", lambda: 64 << 30)
    settings = default_settings(tmp_path).model_dump()
    regions = settings["regions"]
    regions["us-east-1"] |= {"build_memory": "8GiB", "build_workers": 15}
    regions["ap-south-1"] = {"store": "s3://ap-south", "database": "postgresql://somebody@somewhere/db"}

    deployment = Deployment(Settings.model_validate(settings), tmp_path)

    assert deployment.build_means("us-east-1") == Means(8 << 30, 15)
    assert deployment.build_means("eu-west-1") == Means(16 << 30, None)
    assert deployment.build_means("ap-south-1") == SERVERS
