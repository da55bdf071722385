"""What the daemon does when nobody asks: recompression, scrub, repair, tasks, changes of models. It knows no FUSE."""
