"""Training files: their schema, and the reading, checking and writing of them."""

from __future__ import annotations

from segtrain.config.dump import config_to_dict, dump_config
from segtrain.config.load import load_config, parse_config
from segtrain.config.schema import Config

__all__ = ["Config", "config_to_dict", "dump_config", "load_config", "parse_config"]
