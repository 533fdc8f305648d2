"""A local page to look at an index: to search, to see what matches, to add files, and to ask."""
