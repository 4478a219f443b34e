"""The name of the cache's argument: transformers 5.24 calls `cache` what was `past_key_values` before."""

import functools

import transformers


CACHE = "cache" if tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 24) else "past_key_values"


def accepts_cache(forward):
    """Lets a `forward` that has the argument `past_key_values` take it under its new name too."""

    @functools.wraps(forward)
    def wrapped(self, *args, **kwargs):
        if "cache" in kwargs:
            kwargs["past_key_values"] = kwargs.pop("cache")
        return forward(self, *args, **kwargs)

    return wrapped
