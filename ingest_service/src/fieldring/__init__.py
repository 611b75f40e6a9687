"""Fieldring's ingest service: takes sensor data, keeps it, judges it, gives it back."""

__version__ = "0.1.0"
