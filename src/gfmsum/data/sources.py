"""Every source by the configuration that names it."""

from __future__ import annotations

from gfmsum.config import LocalConfig, SyntheticConfig
from gfmsum.data.sample import Source


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
