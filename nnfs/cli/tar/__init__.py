"""Trees as tar archives: members in the form of PAX, their writing and reading, and what they must not do."""
