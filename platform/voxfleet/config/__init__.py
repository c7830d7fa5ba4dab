"""One frozen dataclass per job."""
