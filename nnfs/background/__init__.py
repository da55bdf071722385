"""Work that no request waits for: recompression, scrub, repair, tasks, changes of models. It knows no FUSE."""
