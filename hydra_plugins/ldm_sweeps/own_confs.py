"""Hydra also searches a user's own config folders (docs/extend.md)."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from ldm.construct import own_confs


class OwnConfs(SearchPathPlugin):
    """Adds the folders after those of this package, whose files take precedence."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Appends them; called by Hydra."""
        for folder in own_confs():
            search_path.append("own", f"file://{folder}")
