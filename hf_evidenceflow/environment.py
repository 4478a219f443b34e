"""What belongs in a bug report: versions, devices, and which extras are complete."""

import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from .dependencies import REQUIREMENTS, check_versions
from .version import __version__


def describe_environment() -> Iterator[str]:
    """The lines of a Markdown list. Those on devices come last, as torch is imported for them."""
    yield f"- hf_evidenceflow: {__version__}"
    yield f"- Python: {platform.python_version()} ({sys.executable})"
    yield f"- Platform: {platform.platform()}"
    for name in (*REQUIREMENTS, "datasets", "tokenizers", "huggingface_hub", "safetensors"):
        yield f"- {name}: {_installed(name) or 'not installed'}"
    try:
        check_versions()
    except ImportError as error:
        yield f"- Unsupported: {error}"
    for extra, requirements in sorted(_extras().items()):
        missing = [need.name for need in requirements if _installed(need.name) is None]
        yield f"- Extra `{extra}`: " + (f"without {', '.join(missing)}" if missing else "complete")
    yield from _devices()


def _devices() -> Iterator[str]:
    try:
        import torch
    except ImportError as error:
        yield f"- Devices: unknown, as torch cannot be imported: {error}"
        return
    yield f"- CPU threads: {torch.get_num_threads()}"
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None:
        yield "- Devices: CPU only"
    elif accelerator.type == "cuda":
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        yield f"- Devices: {', '.join(names)} (CUDA {torch.version.cuda}, HIP {torch.version.hip})"
    else:
        yield f"- Devices: {torch.accelerator.device_count()} of kind {accelerator.type}"


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _extras() -> dict[str, list[Requirement]]:
    """The requirements of each extra; none in a checkout that pip did not install."""
    try:
        lines = requires("hf-evidenceflow") or []
    except PackageNotFoundError:
        return {}
    extras: dict[str, list[Requirement]] = {}
    for requirement in map(Requirement, lines):
        if requirement.marker is not None:
            extra = str(requirement.marker).split('"')[1]
            extras.setdefault(extra, []).append(requirement)
    extras.pop("test", None)
    return extras
