"""The parts of `luthier sweep`: the space of settings, trials in child processes, the search, the table of trials."""
