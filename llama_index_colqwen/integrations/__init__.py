"""Pages for other frameworks, and a cluster to embed them: one file each, each behind its extra.

Nothing but the command line imports from here.
"""
