"""Trackers as mirrors: what may be told (`told`), the libraries (`mirrors`), and the process they live in (`child`)."""
