"""Pages and queries -> multi-vectors: one embedder a module, behind one protocol."""
