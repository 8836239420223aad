"""What a person opens: reports made from records on disk. No torch at import."""
