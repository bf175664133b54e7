"""Every source by the configuration that names it."""

from __future__ import annotations

from functools import lru_cache

from gfmsum.config import LocalConfig, SyntheticConfig
from gfmsum.data.sample import Source


@lru_cache(maxsize=1)  # a worker's jobs share one, and with it the labelled items it has made
def open_source(config: SyntheticConfig | LocalConfig) -> Source:
    """The source that ``config`` describes.

    Raises:
        ValueError: one line, if it cannot be read.
    """
    if isinstance(config, SyntheticConfig):
        from gfmsum.data.synthetic import Synthetic

        return Synthetic(config)
    from gfmsum.data.local import Local

    return Local(config)
