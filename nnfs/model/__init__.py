"""The network, its integer inference, its features, and the mixing of its predictions with what a chunk's past says."""
