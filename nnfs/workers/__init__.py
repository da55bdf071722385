"""The processes that encode and decode: pool, board, supervisor, worker, batches, wire. They never see an inode."""
