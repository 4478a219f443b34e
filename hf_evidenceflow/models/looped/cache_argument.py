"""The name of the cache's argument: transformers 5.24 calls `cache` what was `past_key_values` before."""

import transformers
from transformers.utils.deprecation import deprecate_kwarg


CACHE = "cache" if tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 24) else "past_key_values"

# For a `forward` that has `past_key_values`, which it then takes under the other name too; as of version 5 in silence
accepts_cache = deprecate_kwarg("cache", version="5.0", new_name="past_key_values")
