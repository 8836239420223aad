"""The page that one can talk to, and the HTTP API beside it."""
