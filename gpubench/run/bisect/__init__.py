"""Which commit, or which release of a library, brought a change."""
