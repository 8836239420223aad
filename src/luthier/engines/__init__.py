"""Models that answer while somebody waits: chats word by word, recordings with a verdict."""
