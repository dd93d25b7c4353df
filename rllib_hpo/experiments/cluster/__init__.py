"""Ray sessions, the nodes of a cluster, and checks of cluster files."""
