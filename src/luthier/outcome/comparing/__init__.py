"""Parts of a comparison of runs: their records, what differs, paired scores, flips, the probe, ballots and votes."""
