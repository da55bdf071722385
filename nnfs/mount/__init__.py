"""The daemon: FUSE requests, life cycle, control socket."""
