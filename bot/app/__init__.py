"""Wires the application: settings, leader election, metrics, the parts and their tasks."""
