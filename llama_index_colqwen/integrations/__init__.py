"""Pages for other frameworks: one file each, each behind its extra. Nothing but the command line imports from here."""
