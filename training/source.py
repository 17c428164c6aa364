"""The pictures to train on: ``@lobehub/fluent-emoji-3d`` (MIT, Fluent Emoji by Microsoft), fetched by ``npm pack``."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

from training.objects import OBJECTS

PACKAGE = "@lobehub/fluent-emoji-3d@1.1.0"
ARCHIVE = "lobehub-fluent-emoji-3d-1.1.0.tgz"  # the name npm gives it
CACHE = Path(__file__).parent / ".cache"  # ignored by git
EMBEDDED = Path(__file__).parents[1] / "pytest_diffaccel/models/embedded"  # where the finished folders are shipped


def fetch_archive(cache: Path) -> Path:
    """The package's archive (16 MB), packed into ``cache`` by npm unless it is there already."""
    archive = cache / ARCHIVE
    if archive.exists():
        return archive
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError(f"npm is not installed; install Node.js, or put {ARCHIVE} into {cache} by hand")
    cache.mkdir(parents=True, exist_ok=True)
    subprocess.run([npm, "pack", PACKAGE, "--silent", "--pack-destination", str(cache)], check=True)
    return archive


def fetch_sprites(cache: Path = CACHE) -> Path:
    """The folder of the curated objects' WebP pictures (256 px with transparency, named by code point)."""
    folder = cache / "sprites"
    if all((folder / f"{thing.code}.webp").exists() for thing in OBJECTS):
        return folder
    archive = fetch_archive(cache)
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as package:
        for thing in OBJECTS:
            member = package.extractfile(f"package/assets/{thing.code}.webp")
            if member is None:
                raise RuntimeError(f"{archive} has no picture {thing.code}; delete it and start again")
            (folder / f"{thing.code}.webp").write_bytes(member.read())
    return folder
