"""What a search varies, what it proposes next, and what it found: pure functions, and a record on storage."""
