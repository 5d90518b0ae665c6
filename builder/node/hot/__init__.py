"""The blocks that a container's start reads, in order, and the small program that reads them first on a node."""
