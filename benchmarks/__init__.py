"""Measured reports and the peers they are measured against."""
