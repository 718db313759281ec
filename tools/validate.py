"""Door to `segtrain validate`: see segtrain/cli/validate.py."""

import sys

from segtrain.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["validate", *sys.argv[1:]]))
