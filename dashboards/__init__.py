"""Pictures and pages of a sweep, drawn from its records."""
