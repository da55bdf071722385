"""`nnfs doctor`: checks of this machine and of a store, and a bundle of facts for a report of a bug."""
