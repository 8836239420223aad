"""From a finished stage to a repository on the hub, whole or not at all."""
