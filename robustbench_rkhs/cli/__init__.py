"""The commands, one per file: `main` is what the console script runs. Heavy imports happen inside, so that --help is quick."""
