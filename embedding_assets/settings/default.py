"""The demo's settings."""

from pathlib import Path

from embedding_assets.settings.models import Settings


def default_settings(home: Path) -> Settings:
    """The demo: two sources that `demo.input` writes, two regions, two bundled models; no file, key or network."""
    return Settings.model_validate(
        {
            "primary_region": "us-east-1",
            "regions": {
                region: {"store": (home / "stores" / region).absolute().as_uri(), "database": "embedded"}
                for region in ("us-east-1", "eu-west-1")
            },
            "models": {
                "v1": {"provider": "local", "name": "wordllama-256", "dimensions": 256},
                "v2": {"provider": "local", "name": "minilm-l6-384", "dimensions": 384},
            },
            "live_model": "v1",
            "sources": {
                "reference": {"kind": "files", "path": home / "input" / "reference", "include": ["**/*.rst"]},
                "packages": {
                    "kind": "jsonl",
                    "path": home / "input" / "packages.jsonl",
                    "id": "name",
                    "text": "description",
                    "metadata": ["version", "summary", "license"],
                },
            },
        }
    )
