"""``python -m gpubench``: the same command as ``gpubench``."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the working directory, which may be a stranger's

    from gpubench.cli.main import main

    main()
