"""Puts the recipes on Hydra's search path, so that `+recipe=steer_grpo` works wherever we are installed.

`hydra_plugins` is a namespace package shared by every Hydra plugin: it must not get an `__init__.py`.
"""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class VerlSteerSearchPath(SearchPathPlugin):
    """Appends `pkg://verl_steer.recipes`, whose folder `recipe/` holds the YAML files."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra before it composes."""
        search_path.append(provider="verl_steer", path="pkg://verl_steer.recipes")
