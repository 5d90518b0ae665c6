"""Pytest fixtures for the test suites of users."""
