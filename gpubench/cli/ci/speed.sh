#!/bin/sh
# Is what is checked out slower than where it left a branch (default: main)?  sh speed.sh [BRANCH]
# Exit code 0: no; 1: yes; 2: bad input; 4: a cell could not be measured.
set -eu
PROJECT="."
SUITE="gpubench.toml"
cd "$(git rev-parse --show-toplevel)"
git fetch -q origin "refs/heads/${1:-main}" || exit 2
base=$(git merge-base HEAD FETCH_HEAD) || {
  echo "HEAD and ${1:-main} have nothing in common here; in a shallow clone: git fetch --unshallow" >&2
  exit 2
}
cd "$PROJECT"
uv run gpubench ab "$SUITE" --baseline-ref "$base" --budget 10m --fail-on regressed,missing
