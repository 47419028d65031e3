"""Dynamic prompt tuning."""
