"""Whether a run would go well on a cluster: facts of every node, and what follows from them."""
