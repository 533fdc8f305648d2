"""Turn each file of sample_content into a PDF, with one module for each kind of document."""
