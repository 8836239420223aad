"""Speech to text: one interface, and the engines that are installed."""
