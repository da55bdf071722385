"""The processes that code: pool, board, supervisor, worker, batches, wire. They never see an inode."""
