"""Compiled kernels in one archive, carried to a machine with a GPU, and Triton's cache filled with them there.

Triton knows a compiled kernel by the source, the options and the build of Triton itself, and its cache by absolute
paths. So a kernel is filed anew where it arrives: under the key that it has there, if source, options, Triton's version
and the assembler are those by which it was compiled. Launchers, C modules for one version of Python, are found by their
own text. An archive holds ``manifest.json``, ``kernels/NUMBER/`` and ``modules/KEY/``.
"""

import hashlib
import io
import json
import os
import platform
import re
import sysconfig
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from bench.gpu.desk.recorded import Seen

ARCH = 90
MANIFEST = "manifest.json"


class CarriedError(Exception):
    """An archive that is not one, or not for here; the message says why."""


class Compiler(NamedTuple):
    """By what kernels are compiled and launched.

    Attributes:
        triton: the version.
        ptxas: the assembler's.
        key: of the build of Triton, as its cache takes it, shortened.
        python: the version, and the ending of C modules that it can load.
    """

    triton: str
    ptxas: str
    key: str
    python: str
    modules: str

    @classmethod
    def here(cls) -> "Compiler":
        """That of this process."""
        from triton import __version__
        from triton.backends.nvidia.compiler import get_ptxas_version
        from triton.runtime.cache import triton_key

        found = re.search(r"release [\d.]+, V([\d.]+)", get_ptxas_version(ARCH))
        return cls(
            triton=__version__,
            ptxas=found[1] if found else "unknown",
            key=hashlib.sha256(triton_key().encode()).hexdigest()[:16],
            python=platform.python_version(),
            modules=str(sysconfig.get_config_var("EXT_SUFFIX")),
        )

    def __str__(self) -> str:
        return f"triton {self.triton} (key {self.key}), ptxas {self.ptxas}, Python {self.python}"


class Source(NamedTuple):
    """A kernel as Triton is to compile it, and what its cache knows it by."""

    source: Any
    key: str  # of what is compiled, and how; not of by what
    hash: str  # of all

    @property
    def name(self) -> str:
        """Of its files."""
        return str(self.source.name)[:150]


@dataclass(frozen=True)
class Kernel:
    """A line of the manifest: a kernel, what it was compiled from, and the names of its files."""

    seen: Seen
    key: str
    name: str


def source_of(seen: Seen) -> Source:
    """What Triton would compile here.

    Raises:
        CarriedError: there is no such kernel.
    """
    from triton._C.libtriton import get_cache_invalidating_env_vars
    from triton.runtime.cache import get_cache_key

    function = function_of(seen)
    found: list[Source] = []

    def keep(
        key: Any, signature: Any, device: int, constants: Any, options: Any, attributes: Any, warmup: bool
    ) -> None:
        source = function.ASTSource(function, signature, constants, attributes)
        backend = function.device_caches[device][3]
        options = backend.parse_options(options.__dict__ | source.parse_options())
        variables = get_cache_invalidating_env_vars()
        whole = get_cache_key(source, backend, options, env_vars=variables)
        part = f"{source.hash()}-{options.hash()}-{sorted(variables.items())}"
        found.append(Source(source, *(hashlib.sha256(text.encode()).hexdigest() for text in (part, whole))))

    function._do_compile = keep
    try:
        function.preload(seen.specialization)
    finally:
        del function._do_compile
    return found[0]


def function_of(seen: Seen) -> Any:
    """The jitted function.

    Raises:
        CarriedError: there is none.
    """
    try:
        return getattr(import_module(seen.module), seen.name)
    except (ImportError, AttributeError) as error:
        raise CarriedError(f"there is no kernel {seen.module}.{seen.name}: {error}") from error


def files_of(source: Source) -> dict[str, Path] | None:
    """The files of a kernel in Triton's cache, or None where it is not there whole."""
    from triton.runtime.cache import get_cache_manager

    group = get_cache_manager(source.hash).get_group(f"{source.name}.json") or {}
    wanted = [f"{source.name}.json", f"{source.name}.cubin"]
    return {name: Path(group[name]) for name in wanted} if set(wanted) <= set(group) else None


def pack(archive: Path, kernels: Sequence[Seen], cache: Path, revision: str | None) -> int:
    """Put kernels that are in the cache, and the launchers that are, into an archive; how many kernels.

    Raises:
        CarriedError: a kernel is not in the cache.
    """
    archive.parent.mkdir(parents=True, exist_ok=True)
    part = archive.with_name(f".{archive.name}")
    lines: list[Kernel] = []
    with tarfile.open(part, "w:xz", preset=6) as made:
        known: set[str] = set()
        for seen in sorted(kernels):
            source = source_of(seen)
            if source.hash in known:
                continue
            known.add(source.hash)
            files = files_of(source)
            if files is None:
                raise CarriedError(f"{seen.name} is not in {cache}")
            for name, path in files.items():
                _add(made, f"kernels/{len(lines)}/{name}", path.read_bytes())
            lines.append(Kernel(seen, source.key, source.name))
        for path in sorted(cache.glob("*/*.so")):
            _add(made, f"modules/{path.parent.name}/{path.name}", path.read_bytes())
        manifest = {
            "compiler": Compiler.here()._asdict(),
            "revision": revision,
            "kernels": [asdict(line) | {"seen": line.seen._asdict()} for line in lines],
        }
        _add(made, MANIFEST, json.dumps(manifest).encode())
    part.replace(archive)
    return len(lines)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    archive.addfile(info, io.BytesIO(content))


class Found(NamedTuple):
    """What became of an archive.

    Attributes:
        compiler: by which it was made.
        revision: of the sources.
        filed: kernels that Triton's cache has now.
        missing: kernels that it has not, since they are other ones here.
    """

    compiler: Compiler
    revision: str | None
    filed: list[Kernel]
    missing: list[Kernel]


def unpack(archive: Path, cache: Path) -> Found:
    """Fill Triton's cache, which is ``cache``, with an archive's kernels and launchers.

    Raises:
        CarriedError: it is no archive; or another version of Triton or of the assembler has compiled it.
    """
    try:
        with tarfile.open(archive, "r:xz") as given:
            contents = {member.name: _content(given, member) for member in given if member.isfile()}
        manifest = json.loads(contents[MANIFEST])
        made_by = Compiler(**manifest["compiler"])
        kernels = [Kernel(Seen(**line["seen"]), line["key"], line["name"]) for line in manifest["kernels"]]
    except (OSError, EOFError, tarfile.TarError, ValueError, KeyError, TypeError) as error:
        raise CarriedError(f"{archive}: {error or type(error).__name__}") from error
    here = Compiler.here()
    if (made_by.triton, made_by.ptxas) != (here.triton, here.ptxas):
        raise CarriedError(f"{archive} was compiled by {made_by}, here is {here}")
    filed: list[Kernel] = []
    missing: list[Kernel] = []
    for number, kernel in enumerate(kernels):
        (filed if _filed(kernel, f"kernels/{number}/", contents) else missing).append(kernel)
    for name, content in contents.items():
        if name.startswith("modules/") and name.endswith(made_by.modules):
            _write(cache / Path(name).relative_to("modules"), content)
    return Found(made_by, manifest["revision"], filed, missing)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None
    return file.read()


def _filed(kernel: Kernel, folder: str, contents: dict[str, bytes]) -> bool:
    """Whether Triton's cache has a kernel, now or before."""
    from triton.runtime.cache import get_cache_manager

    try:
        source = source_of(kernel.seen)
    except Exception:  # a kernel that is another one now cannot be asked for with the arguments that it had
        return False
    if source.key != kernel.key:
        return False
    if files_of(source) is None:
        manager = get_cache_manager(source.hash)
        names = (f"{kernel.name}.cubin", f"{kernel.name}.json")
        manager.put_group(f"{kernel.name}.json", {name: manager.put(contents[folder + name], name) for name in names})
    return True


def _write(path: Path, content: bytes) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{os.getpid()}-{path.name}")
        part.write_bytes(content)
        part.replace(path)


def names(kernels: Sequence[Kernel]) -> Iterator[str]:
    """Of kernels, each once."""
    yield from dict.fromkeys(kernel.seen.name for kernel in kernels)
