"""Usage: missing.py MODULE < NAMES. Prints the dotted names that MODULE's classes do not have.

Only looks at class attributes, never creates an object, so it runs over inert libraries.
"""

import importlib
import sys

module = importlib.import_module(sys.argv[1])
for name in sys.stdin.read().split():
    found = module
    for part in name.split("."):
        found = getattr(found, part, None)
        if found is None:
            print(name)
            break
