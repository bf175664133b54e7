"""Every source by the configuration that names it."""

from __future__ import annotations

from functools import lru_cache

from gfmsum.config import DataConfig, LocalConfig, ShardsConfig, SyntheticConfig
from gfmsum.data.sample import Source


@lru_cache(maxsize=1)  # a worker's jobs share one, and with it the labelled items it has made
def open_source(config: DataConfig) -> Source:
    """The source that ``config`` describes.

    Raises:
        ValueError: one line, if it cannot be read.
    """
    if isinstance(config, SyntheticConfig):
        from gfmsum.data.synthetic import Synthetic

        return Synthetic(config)
    if isinstance(config, LocalConfig):
        from gfmsum.data.local import Local

        return Local(config)
    if isinstance(config, ShardsConfig):
        from gfmsum.data.shards import Shards

        return Shards(config)
    from gfmsum.data.geo import Torchgeo

    return Torchgeo(config)
