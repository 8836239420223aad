"""What is brought from the web: politely, within bounds, and never from a private address."""
