"""Files, folders, hubs and streams to raw records."""
