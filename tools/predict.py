"""Door to `segtrain predict`: see segtrain/cli/predict.py."""

import sys

from segtrain.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["predict", *sys.argv[1:]]))
