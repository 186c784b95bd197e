"""The commands, one per file: the console script runs `main`. Heavy imports are inside it, so that --help is quick."""
