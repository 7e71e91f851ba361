"""Tools for developing this repository; nothing of it is installed."""
