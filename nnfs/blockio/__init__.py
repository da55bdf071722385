"""Data between requests and store: dirty chunks, group commit, verified reads. The trio side of content."""
